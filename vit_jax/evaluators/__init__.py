"""Measures of a model, one file each."""
