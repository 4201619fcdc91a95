"""Text to fixed-length token batches; batch(step) is a pure function."""
