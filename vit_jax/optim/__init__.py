"""Optimizer chain and learning-rate schedules, of optax parts."""
