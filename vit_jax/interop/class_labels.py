"""Class names as exports of every format hold them: one a class, or placeholders."""

from typing import Sequence

from vit_jax.errors import CheckpointError


def placeholders(count: int) -> tuple[str, ...]:
  """As transformers names classes without names."""
  return tuple(f"LABEL_{i}" for i in range(count))


def check_labels(labels: Sequence[str], count: int) -> None:
  """Raises CheckpointError where a head of `count` classes has another number of labels."""
  if len(labels) != count:
    raise CheckpointError(
        f"{len(labels)} labels were given for a head of {count} classes. Give one name a class, "
        "in the order of the classes."
    )
