"""Data sets by name."""

import difflib

from vit_jax.data.digits import open_digits
from vit_jax.data.folder import open_folder
from vit_jax.data.source import DataSet
from vit_jax.errors import ConfigError

_NAMES = ("digits", "folder")


def open_dataset(name: str, *, path: str | None, held_out: float) -> DataSet:
  """Opens a data set.

  Args:
    name: "digits", or "folder" for images of one's own.
    path: the folder; None or empty for digits.
    held_out: share held out for validation where the data has no such split, in [0, 1).

  Raises:
    ConfigError: no such data set, or the path is missing or in excess.
    DataError: the data is missing or unusable.
  """
  if name not in _NAMES:
    near = difflib.get_close_matches(name, _NAMES, n=1, cutoff=0)[0]
    raise ConfigError(
        f"config.input.dataset is {name!r}, not one of {', '.join(_NAMES)}; did you mean "
        f"{near!r}?"
    )
  if name == "digits":
    if path:
      raise ConfigError(
          f"config.input.path is {str(path)!r}, but the digits come with scikit-learn: leave "
          "it out, or set config.input.dataset=folder"
      )
    return open_digits(held_out=held_out)
  if not path:
    raise ConfigError("config.input.path is not set: give the folder with your images")
  return open_folder(path, held_out=held_out)
