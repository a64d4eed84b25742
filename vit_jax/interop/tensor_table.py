"""Tensors on both sides: a table of somebody's names, shapes and layouts beside our tree.

A format is a function from a model description to such a table; one table serves reading and
writing.
"""

import dataclasses
import math
from typing import Mapping, Sequence

import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.models.vit import param_shapes

# Rows that are transposed at a time: 32 float32 of one column fill two cache lines.
_STRIP = 32


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of a file and where it lies in our tree.

  Attributes:
    name: in the file.
    shape: in the file.
    paths: leaves of our tree, concatenated along the file's first axis (fused query, key and
      value); nearly always one.
    layer: index along the leaves' leading depth axis, None for a whole leaf.
    layout: how the axes relate, of each leaf to its share of the tensor: "same" up to a reshape,
      "matrix" (PyTorch's [out, in] against our kernel [*in, *out], the two flattened),
      "convolution" (PyTorch's out, in, height, width against ours height, width, in, out).
  """

  name: str
  shape: tuple[int, ...]
  paths: tuple[tuple[str, ...], ...]
  layer: int | None = None
  layout: str = "same"

  def to_disk(self, params: Mapping) -> np.ndarray:
    """Takes this tensor from our tree: shape `shape`, any memory order."""
    share = (self.shape[0] // len(self.paths), *self.shape[1:]) if self.shape else ()
    parts = []
    for path in self.paths:
      leaf = take(params, path)
      leaf = np.asarray(leaf if self.layer is None else leaf[self.layer])
      if self.layout == "convolution":
        parts.append(leaf.transpose(3, 2, 0, 1))
      elif self.layout == "matrix":
        parts.append(_transposed(leaf.reshape(-1, share[0])).reshape(share))
      else:
        parts.append(leaf.reshape(share))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)

  def into(self, params: Mapping, values: np.ndarray) -> None:
    """Copies values of shape `shape` into the leaves of our tree."""
    for path in self.paths:
      leaf = take(params, path)
      self.fill(path, leaf if self.layer is None else leaf[self.layer], values)

  def fill(self, path: tuple[str, ...], target: np.ndarray, values: np.ndarray) -> None:
    """Copies the share of one leaf, of `paths`, of values of shape `shape` into `target`."""
    part = np.split(values, len(self.paths))[self.paths.index(path)] if self.paths[1:] else values
    if self.layout == "convolution":
      target[...] = part.transpose(2, 3, 1, 0)
    elif self.layout == "matrix":
      _transpose_into(target.reshape(-1, part.shape[0]), part.reshape(part.shape[0], -1))
    else:
      target[...] = part.reshape(target.shape)


class StoredLeaf:
  """A stacked parameter that lies in a file and is read when it is asked for, a layer at a time.

  Attributes:
    shape, dtype, size: as of the array that `numpy.asarray` makes of it.
  """

  dtype = np.dtype(np.float32)

  def __init__(self, path, shape: tuple[int, ...], layers: list[tuple[Tensor, str]], source):
    """Reads nothing.

    Args:
      path: of the leaf.
      shape: of the leaf, its first axis the depth.
      layers: of each layer the tensor that holds it and its name in the file.
      source: can be read from for as long as the file is there.
    """
    self.shape = tuple(shape)
    self.size = math.prod(shape)
    self._path, self._layers, self._source = path, layers, source

  def __len__(self) -> int:
    return len(self._layers)

  def __getitem__(self, layer: int) -> np.ndarray:
    tensor, name = self._layers[layer]
    target = np.empty(self.shape[1:], np.float32)
    tensor.fill(self._path, target, self._source.read(name))
    return target

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    del copy
    return np.stack(list(self)).astype(dtype or np.float32, copy=False)


def _transposed(matrix: np.ndarray) -> np.ndarray:
  """A copy of `matrix.T` in C order."""
  target = np.empty(matrix.shape[::-1], matrix.dtype)
  _transpose_into(target, matrix)
  return target


def _transpose_into(target: np.ndarray, matrix: np.ndarray) -> None:
  """target[...] = matrix.T, a strip at a time: NumPy's own loop misses the cache at every element
  of a large matrix, which made it seven times slower than this (measured at 1280 x 5120)."""
  for start in range(0, len(matrix), _STRIP):
    target[:, start : start + _STRIP] = matrix[start : start + _STRIP].T


def read_params(
    model: Mapping, table: Sequence[Tensor], source, stored: Mapping[str, str], *,
    streamed: bool = False,
) -> dict:
  """Fills our tree from a file, having compared every name and shape.

  Args:
    model: the description.
    table: the tensors that the file must hold; leaves that it does not name become zero.
    source: has `path`, `shapes` (by name in the file) and `read(name)`.
    stored: names as in the table to names in the file.
    streamed: whether the blocks' parameters stay in the file (`StoredLeaf`) where that can be: a
      tensor a layer, in a source that says `lasting`.

  Returns:
    Nested dict of float32 arrays, every leaf of the model.

  Raises:
    CheckpointError: tensors missing, unexpected or misshapen, all listed by name.
  """
  expected = {tensor.name: tensor for tensor in table}
  found = {name: tuple(source.shapes[key]) for name, key in stored.items()}
  wrong = faults(
      missing=[name for name in expected if name not in found],
      unexpected=[stored[name] for name in found if name not in expected],
      misshapen=[
          f"{stored[name]} is {found[name]} instead of {tensor.shape}"
          for name, tensor in expected.items() if name in found and found[name] != tensor.shape
      ],
  )
  if wrong:
    raise CheckpointError(
        f"{source.path} does not hold the model that it is said to be. {wrong} Copy it again "
        "from its source, or correct the description beside it."
    )
  params, tensors = {}, {}
  for tensor in table:
    for path in tensor.paths:
      tensors.setdefault(path, []).append((tensor, stored[tensor.name]))
  streamed = streamed and getattr(source, "lasting", False)
  for path, shape in param_shapes(model).items():
    found = tensors.get(path, [])
    if streamed and found and found[0][0].layer is not None:
      found.sort(key=lambda item: item[0].layer)
      put(params, path, StoredLeaf(path, shape, found, source))
    else:
      put(params, path, (np.empty if found else np.zeros)(shape, np.float32))
  for tensor in table:
    if not isinstance(take(params, tensor.paths[0]), StoredLeaf):
      tensor.into(params, source.read(stored[tensor.name]))
  return params


def check_params(model: Mapping, params: Mapping) -> None:
  """Holds that parameters are those of their model, before anything is written.

  Raises:
    CheckpointError: leaves missing, unexpected or misshapen, all listed by path.
  """
  expected = param_shapes(model)
  found = {path: tuple(np.shape(leaf)) for path, leaf in leaves(params)}
  wrong = faults(
      missing=["/".join(path) for path in expected if path not in found],
      unexpected=["/".join(path) for path in found if path not in expected],
      misshapen=[
          f"{'/'.join(path)} is {found[path]} instead of {shape}"
          for path, shape in expected.items() if path in found and found[path] != shape
      ],
  )
  if wrong:
    raise CheckpointError(
        "The parameters are not those of the model they came with, so nothing was written. "
        f"{wrong}"
    )


def check_depth(model: Mapping, stored: Mapping[str, str], path) -> None:
  """Holds that a file has tensors for each block, before a table of all blocks is made.

  Args:
    stored: names of the tensors, of which a block has one at least.
    path: what an error should name.

  Raises:
    CheckpointError: it has fewer tensors than the model has blocks.
  """
  if model["depth"] > len(stored):
    raise CheckpointError(
        f"{path} has {len(stored)} tensors, too few for a model that is said to have "
        f"{model['depth']:,} blocks. Copy it again from its source, or correct the description "
        "beside it."
    )


def faults(**names) -> str:
  """"Missing (2): a, b. Unexpected (1): c." of the lists that are not empty."""
  return " ".join(
      f"{kind.capitalize()} ({len(found)}): {first_ten(found)}."
      for kind, found in names.items() if found
  )


def first_ten(names) -> str:
  """Joins names by commas; of more than ten the rest is a count."""
  names = list(names)
  rest = f" and {len(names) - 10} more" if len(names) > 10 else ""
  return ", ".join(names[:10]) + rest


def take(tree: Mapping, path: tuple[str, ...]):
  """The leaf at `path` of a nested dict."""
  for key in path:
    tree = tree[key]
  return tree


def put(tree: dict, path: tuple[str, ...], leaf) -> None:
  """Sets the leaf at `path`, making the dicts on the way."""
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = leaf


def leaves(tree: Mapping, path: tuple[str, ...] = ()):
  """Yields (path, leaf) of a nested dict."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from leaves(value, (*path, key))
    else:
      yield (*path, key), value
