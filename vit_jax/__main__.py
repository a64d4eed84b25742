"""`python -m vit_jax VERB`, the same as `vit-jax VERB`."""

import sys

from vit_jax.cli import main
from vit_jax.huge_pages import restart_with_huge_pages


def command() -> None:
  """The whole process is ours."""
  if {"train", "sweep", "evaluate"} & set(sys.argv[1:3]):
    restart_with_huge_pages()
  main()


if __name__ == "__main__":
  command()
