"""Plain data as YAML 1.1 text, such as the front matter of a model card.

PyYAML is no dependency of ours; strings are written as JSON strings, which YAML reads as they are.
"""

import json
import math
from typing import Mapping


def to_yaml(value: Mapping | list, *, indent: int = 0) -> str:
  """Block style: mappings and lists on lines of their own, scalars as JSON would write them.

  Args:
    value: nested dicts with keys of letters, digits, "-" and "_", lists, strings, finite numbers,
      booleans.
    indent: spaces before each line.

  Raises:
    ValueError: a number is not finite, or a container inside is empty.
    TypeError: anything else inside.
  """
  lines, space = [], " " * indent
  named = value.items() if isinstance(value, Mapping) else ((None, item) for item in value)
  for key, item in named:
    mark = "-" if key is None else f"{key}:"
    if not isinstance(item, (Mapping, list, tuple)):
      lines.append(f"{space}{mark} {_scalar(item)}\n")
      continue
    if not item:
      raise ValueError(f"{mark} is empty")
    block = to_yaml(item, indent=indent + 2)
    # A mapping in a list begins on the line of its dash.
    lines.append(f"{space}- {block.lstrip()}" if key is None else f"{space}{mark}\n{block}")
  return "".join(lines)


def _scalar(value) -> str:
  if isinstance(value, bool) or value is None:
    return json.dumps(value)
  if isinstance(value, (int, float)):
    if not math.isfinite(value):
      raise ValueError(f"{value} is not finite")
    text = repr(value)
    # YAML 1.1 takes 1e-05 for a string, 1.0e-05 for a number.
    return text.replace("e", ".0e") if "e" in text and "." not in text else text
  if isinstance(value, str):
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else _escape(c) for c in quoted)
  raise TypeError(f"{type(value).__name__} cannot be written as YAML")


def _escape(character: str) -> str:
  code = ord(character)
  return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
