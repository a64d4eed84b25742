"""What every reader of this room gives: a foreign checkpoint in our terms."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Imported:
  """A foreign checkpoint in our terms.

  Attributes:
    model: the description of the model, every key of `models.vit.DESCRIPTION`; JSON-able.
    params: nested dict of float32 NumPy arrays.
    preprocessing: the evaluation transform, None where the checkpoint does not say.
    labels: class names in order, None where there are none.
    report: what a user should be told, one line each.
  """

  model: dict
  params: dict
  preprocessing: dict | None
  labels: tuple[str, ...] | None
  report: tuple[str, ...]
