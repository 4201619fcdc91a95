"""Sharded Transformers behind `api.init` and `api.apply`."""
