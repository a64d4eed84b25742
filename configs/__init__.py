"""Recipes: one file each, `get_config(arg)`, whose docstring gives the command and the result."""
