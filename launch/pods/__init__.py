"""One command on all hosts of a job: TPU VMs, GKE, SLURM, or a list of machines. ``python -m launch.pods --help``."""
