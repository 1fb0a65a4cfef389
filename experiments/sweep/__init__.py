"""MANY runs: what a target or a sweep file asks for, run on this machine or by Slurm."""
