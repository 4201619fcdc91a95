"""The mathematics: schedules, the noise process, losses, exact draws. Imports jax and numpy alone."""
