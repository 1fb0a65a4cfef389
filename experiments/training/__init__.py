"""ONE run: configuration, Trainer, checkpoints, loggers, preemption."""
