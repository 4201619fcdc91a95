"""One trainer: objectives, state, step, checkpoints, metrics."""
