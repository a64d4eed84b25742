"""Flax modules and their variants.  Knows arrays only: imports jax, flax and NumPy alone."""
