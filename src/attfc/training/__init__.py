"""Training: the step and the loop around it, what it tells, optimizers and schedules, checkpoints and model files."""
