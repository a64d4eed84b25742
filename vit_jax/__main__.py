"""`python -m vit_jax VERB`, the same as `vit-jax VERB`."""

from vit_jax.cli import main

if __name__ == "__main__":
  main()
