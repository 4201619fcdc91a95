"""Attention: who sees whom (`visibility`) and how it is computed (`attend`, by backend name)."""
