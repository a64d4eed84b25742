"""What a compiled program sends between devices: kind, dtype, bytes, how often, over which axes."""

import dataclasses
import math
import re

import numpy as np

from vit_jax.parallel.hlo import Instruction, executed
from vit_jax.parallel.mesh import slice_count, slice_index

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-broadcast", "collective-permute",
)
_LEAF = re.compile(r"([a-z]+)(\d*)(\w*)\[([^\]]*)\]")
_EXPLICIT = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, ?device_ids=\(((?:[^()]|\([\d,]*\))*)\))? ?\{([^}]*)\}"
)
_SUB_AXIS = re.compile(r"'?([\w.-]+)'?(?::\((\d+)\)(\d+))?")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
# Between TPU slices the compiler's collectives are transfers of a host's.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective instruction of one dtype.

  Attributes:
    kind: one of `KINDS`.
    dtype: as HLO writes it, "bf16", "f32".
    bytes: on one device, of the whole array in one execution: what an all-reduce returns, what an
      all-gather returns, what a reduce-scatter takes.
    count: executions in one run of the program; those of a loop's body are multiplied.
    axes: mesh axes that the devices of a group differ in, in the mesh's order.
    group: devices that take part together.
    slices: of the mesh that such devices lie in; above 1 it leaves the slice.
    name: of the instruction.
    op: what it was compiled from, jax's name stack.
    counted: whether `count` is known; else it lies in a loop that counts as one turn.
  """

  kind: str
  dtype: str
  bytes: int
  count: int
  axes: tuple[str, ...]
  group: int
  slices: int
  name: str
  op: str
  counted: bool = True

  @property
  def total_bytes(self) -> int:
    """In one run of the program."""
    return self.bytes * self.count


def collectives(text: str, mesh) -> list[Collective]:
  """Reads the collectives off a compiled program, in its order.

  A pair of `-start` and `-done` is one; a tuple of several arrays is one of each dtype.  A group of
  one device sends nothing and is left out.  Between TPU slices there are collectives of their own,
  among the devices of one place in each.

  Args:
    text: `compiled.as_text()`.
    mesh: `jax.sharding.Mesh` that the program was compiled for.
  """
  found = []
  for instruction, count, counted in executed(text):
    kind, groups = _kind_and_groups(instruction, mesh)
    if not groups or (size := max(map(len, groups))) < 2:
      continue
    axes, slices = _span(groups, mesh)
    op = _OP_NAME.search(instruction.rest)
    # Both show a part of the array: what it leaves, and what is sent of it.
    is_part = kind == "reduce-scatter" or instruction.opcode == "send" and kind == "all-gather"
    factor = size if is_part else 1
    for dtype, taken in _result_bytes(instruction).items():
      found.append(Collective(
          kind, dtype, taken * factor, count, axes, size, slices, instruction.name,
          op[1] if op else "", counted,
      ))
  return found


def summarize(found: list[Collective]) -> list[dict]:
  """Adds up the collectives of equal kind, dtype and axes; the most bytes first.

  Returns:
    Dicts of `kind`, `dtype`, `axes`, `slices`, `instructions`, `executions` and `bytes`, the latter
    two of one run of the program.
  """
  sums = {}
  for one in found:
    key = (one.kind, one.dtype, one.axes, one.slices)
    row = sums.setdefault(key, {"instructions": 0, "executions": 0, "bytes": 0})
    row["instructions"] += 1
    row["executions"] += one.count
    row["bytes"] += one.total_bytes
  rows = [
      {"kind": kind, "dtype": dtype, "axes": list(axes), "slices": slices} | row
      for (kind, dtype, axes, slices), row in sums.items()
  ]
  return sorted(rows, key=lambda row: (-row["bytes"], row["kind"], row["dtype"], row["axes"]))


def _kind_and_groups(instruction: Instruction, mesh) -> tuple[str, list[list[int]]]:
  """What a collective does and who takes part in it; no groups for any other instruction."""
  kind = instruction.opcode.removesuffix("-start")
  if kind in KINDS:
    return kind, _groups(instruction, mesh.size)
  between = _BETWEEN_SLICES.search(instruction.rest) if kind == "send" else None
  if not between:
    return "", []
  # Each device exchanges with those at its place in the other slices.
  slices = {}
  for place, device in enumerate(mesh.devices.flat):
    slices.setdefault(slice_index(device), []).append(place)
  return between[1].lower().replace("_", "-"), [list(group) for group in zip(*slices.values())]


def _result_bytes(instruction: Instruction) -> dict[str, int]:
  """Bytes of an instruction's result by dtype."""
  shape = instruction.shape
  if instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start":
    # (operands, results, perhaps what the runtime needs)
    shape = _elements(shape)[1]
  elif instruction.opcode == "send":
    shape = _elements(shape)[0]
  sums = {}
  for letters, bits, rest, sides in _LEAF.findall(shape):
    width = 8 if letters == "pred" else int(bits or 0)  # a token has none
    count = math.prod(int(side.removeprefix("<=")) for side in sides.split(",") if side)
    dtype = letters + bits + rest
    sums[dtype] = sums.get(dtype, 0) + math.ceil(count * width / 8)
  return {dtype: taken for dtype, taken in sums.items() if taken}


def _elements(shape: str) -> list[str]:
  """Splits a tuple's shape at its own commas."""
  parts, depth, start = [], 0, 1
  for index, letter in enumerate(shape):
    depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(letter, 0)
    if letter == "," and depth == 1:
      parts.append(shape[start:index])
      start = index + 1
  return parts + [shape[start:-1]]


def _groups(instruction: Instruction, devices: int) -> list[list[int]]:
  """Which partitions exchange with each other; a partition is a place in `mesh.devices.flat`.

  Raises:
    ValueError: replica groups in a form that is not known here.
  """
  rest = instruction.rest
  if match := _PAIRS.search(rest):
    return [list(pair) for pair in _numbers(match[1]) if pair[0] != pair[1]]
  if match := _EXPLICIT.search(rest):
    return _numbers(match[1]) or [list(range(devices))]
  if match := _IOTA.search(rest):
    shape, sides, order = match.groups()
    return _iota(sides, order).reshape(list(map(int, shape.split(",")))[0], -1).tolist()
  if match := _MESH.search(rest):
    return _mesh_groups(*match.groups())
  if "replica_groups=" in rest:
    raise ValueError(f"replica groups in an unknown form: {instruction.name} = {rest[:300]}")
  return [list(range(devices))]


def _iota(sides: str, order: str | None) -> np.ndarray:
  """0, 1, 2, ... in a shape such as "4,2", its sides then permuted as by "1,0"."""
  sides = list(map(int, sides.split(",")))
  ids = np.arange(math.prod(sides)).reshape(sides)
  return ids.transpose(list(map(int, order.split(",")))) if order else ids


def _mesh_groups(axes: str, ids: str | None, chosen: str) -> list[list[int]]:
  """Groups along axes of a mesh that the compiler has named itself.

  Args:
    axes: "'a'=4,'b'=2".
    ids: of its devices where these are not 0, 1, 2, ...: "1,0,3,2" or "[2,4]T(1,0)".
    chosen: the axes of a group: "'a','b'"; "'a':(2)2" is the part of `a` that is `a` reshaped to
      (2, 2, rest) has in the middle.
  """
  sizes = {name: int(size) for name, size in re.findall(r"'?([\w.-]+)'?=(\d+)", axes)}
  if not ids:
    places = np.arange(math.prod(sizes.values()))
  elif match := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", ids):
    places = _iota(*match.groups()).ravel()
  else:
    places = np.array(list(map(int, ids.split(","))))
  taken = [
      (name, int(before or 1), int(before or 1) * int(size or sizes[name]))
      for name, before, size in _SUB_AXIS.findall(chosen)
  ]
  # Each axis is cut where a part begins or ends.
  sides, inside = [], []
  for name, size in sizes.items():
    parts = [(low, high) for axis, low, high in taken if axis == name]
    cuts = sorted({1, size} | {cut for part in parts for cut in part})
    for low, high in zip(cuts, cuts[1:]):
      sides.append(high // low)
      inside.append(any(first <= low < last for first, last in parts))
  order = np.argsort(inside, kind="stable")
  group = math.prod(side for side, is_inside in zip(sides, inside) if is_inside)
  return places.reshape(sides).transpose(order).reshape(-1, group).tolist()


def _numbers(text: str) -> list[list[int]]:
  """ "{0,1},{2,3}" to lists."""
  return [list(map(int, inner.split(","))) for inner in re.findall(r"\{([\d,]+)\}", text)]


def _span(groups: list[list[int]], mesh) -> tuple[tuple[str, ...], int]:
  """Mesh axes in which the devices of any group differ, and the most slices that one lies in."""
  sides = mesh.devices.shape
  places = np.stack(np.unravel_index(np.arange(mesh.size), sides), axis=1)
  differs = np.zeros(len(sides), bool)
  for group in groups:
    differs |= np.any(places[group] != places[group[0]], axis=0)
  devices = list(mesh.devices.flat)
  slices = max(slice_count(devices[member] for member in group) for group in groups)
  return tuple(np.array(mesh.axis_names)[differs].tolist()), slices
