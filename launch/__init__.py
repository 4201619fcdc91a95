"""Command lines. `python -m launch.train --help` is the place to start."""
