"""Training: one step, one stage, its checkpoints and its records."""
