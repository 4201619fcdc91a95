"""Tasks with published prompts: what a model is asked, where its answer stops, and whether it is right. Free of jax."""
