"""The shipped recipes, as `vit-jax configs` shows them."""

import ast
import pathlib
import shutil

from vit_jax import config
from vit_jax.errors import ConfigError


def list_recipes() -> str:
  """A line a recipe: its name and the first sentence of its docstring."""
  found = config.recipes()
  width = max(map(len, found))
  summaries = {
      name: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
      for name, path in found.items()
  }
  return "\n".join(f"{name:<{width}}  {summary}" for name, summary in summaries.items())


def list_keys() -> str:
  """A line a config key: its default, class and meaning."""
  rows = [
      (key, repr(field.default), field.key_class, field.doc)
      for key, field in config.FIELDS.items()
  ]
  widths = [max(len(row[i]) for row in rows) for i in range(3)]
  return "\n".join(
      "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths)) + f"  {row[3]}" for row in rows
  )


def copy(name: str) -> str:
  """Copies a recipe into the working directory; returns a sentence saying so.

  Raises:
    ConfigError: no such recipe, or a file of that name is there already.
  """
  found = config.recipes()
  if name not in found:
    raise ConfigError(f"there is no recipe {name!r}; there are: {', '.join(found)}")
  target = pathlib.Path(f"{name}.py")
  if target.exists():
    raise ConfigError(f"{target} exists already: move it away, or edit it")
  shutil.copyfile(found[name], target)
  return f"wrote {target}; train with it: vit-jax train --config={target} --workdir=RUN"
