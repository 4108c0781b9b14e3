"""Runs on a Slurm cluster: equal workers on a shared folder, submitted once, watched from records and locks."""
