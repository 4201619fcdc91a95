"""One file a recipe; each holds `get_config()`."""
