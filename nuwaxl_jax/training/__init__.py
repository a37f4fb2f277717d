"""Training: tasks, the step, the loop, metrics and checkpoints."""
