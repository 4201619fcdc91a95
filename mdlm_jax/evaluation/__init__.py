"""Likelihood bounds and what to compare them with."""
