"""Optimizer chain, rules over parameter paths, schedules and norms, of optax parts."""
