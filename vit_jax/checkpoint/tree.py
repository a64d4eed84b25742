"""Trees of arrays by the path of each leaf, and what two of them disagree about."""

import jax


def by_path(tree) -> dict[str, tuple[tuple[int, ...], str]]:
  """Path, such as "opt_state/0/mu/head/kernel", to (shape, dtype name) of each leaf."""
  return {
      jax.tree_util.keystr(path, simple=True, separator="/"): (
          tuple(leaf.shape), str(leaf.dtype)
      )
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def recorded(tree) -> dict[str, list]:
  """`by_path` as JSON has it: path to [[dimension, ...], dtype name]."""
  return {path: [list(shape), dtype] for path, (shape, dtype) in by_path(tree).items()}


def differences(expected, found, *, prefix: str) -> list[str]:
  """One line for each leaf that `found` lacks, has too many or has in another shape or dtype.

  Args:
    expected: the tree that the run needs, leaves with shape and dtype.
    found: the tree in the checkpoint, likewise.
    prefix: put before each path.
  """
  expected, found = by_path(expected), by_path(found)
  lines = []
  for path in sorted(expected.keys() | found.keys()):
    if path not in found:
      lines.append(f"{prefix}/{path}: missing in the checkpoint")
    elif path not in expected:
      lines.append(f"{prefix}/{path}: only in the checkpoint")
    elif expected[path] != found[path]:
      (shape, dtype), (other_shape, other_dtype) = expected[path], found[path]
      lines.append(
          f"{prefix}/{path}: {other_dtype}{list(other_shape)} in the checkpoint,"
          f" {dtype}{list(shape)} in this run"
      )
  return lines
