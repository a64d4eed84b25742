"""A compiled program's text, as far as one has to read it: which instructions run how often."""

import collections
import dataclasses
import re
from typing import Iterator

_HEADER = re.compile(r"(ENTRY\s+)?%?([\w.$-]+)\s.*\{$")
_BEGINNING = re.compile(r"\s+(?:ROOT\s+)?%?([\w.$-]+) = ")
_OPCODE = re.compile(r"\s*([\w-]+)\(")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.$-]+)"
)
_CALLED_LIST = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"(\d+)\)")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line: `%name = shape opcode(rest`; `rest` holds operands and attributes."""

  name: str
  shape: str
  opcode: str
  rest: str


def executed(text: str) -> Iterator[tuple[Instruction, int, bool]]:
  """Yields every instruction that runs, how often in one run of the program, and whether that is
  known.

  Computations that instructions call (fusions, loops, branches, asynchronous ones) are followed:
  the body of a loop counts as often as the compiler says that it runs, or as its condition compares
  a counter from 0 with; where neither can be read it counts once, and that is not known.  Of
  branches each counts.

  Args:
    text: `compiled.as_text()`.
  """
  computations, entry = _computations(text)

  def walk(name: str, times: int, known: bool):
    for instruction in computations.get(name, ()):
      yield instruction, times, known
      # The second half of an asynchronous pair names what the first has called.
      if not instruction.opcode.endswith(("-done", "-update")):
        for called, factor in _calls(instruction, computations):
          yield from walk(called, times if factor is None else times * factor,
                          known and factor is not None)

  return walk(entry, 1, True)


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """Instructions by computation, and the name of the one that the program starts with."""
  computations, entry, current = collections.defaultdict(list), "", ""
  for line in text.splitlines():
    if line[:1].isspace():
      if current and (instruction := _instruction(line)):
        computations[current].append(instruction)
    elif (match := _HEADER.match(line)) and not line.startswith("HloModule"):
      current = match[2]
      entry = current if match[1] else entry
  return computations, entry


def _instruction(line: str) -> Instruction | None:
  beginning = _BEGINNING.match(line)
  if not beginning:
    return None
  end = _end_of_shape(line, beginning.end())
  opcode = _OPCODE.match(line, end)
  if not opcode:
    return None
  return Instruction(beginning[1], line[beginning.end() : end], opcode[1], line[opcode.end() :])


def _end_of_shape(line: str, start: int) -> int:
  """A tuple ends with its bracket, anything else at the next space."""
  if line[start] != "(":
    return line.find(" ", start)
  depth = 0
  for index in range(start, len(line)):
    depth += {"(": 1, ")": -1}.get(line[index], 0)
    if not depth:
      return index + 1
  return len(line)


def _calls(instruction: Instruction, computations) -> list[tuple[str, int | None]]:
  """Computations that an instruction calls, and how often; None where that cannot be read."""
  single = _CALLED.findall(instruction.rest)
  several = [
      name.strip().lstrip("%") for names in _CALLED_LIST.findall(instruction.rest)
      for name in names.split(",")
  ]
  if instruction.opcode != "while":
    return [(name, 1) for _, name in single] + [(name, 1) for name in several]
  parts = dict(single)
  trips = _TRIPS.search(instruction.rest)
  times = int(trips[1]) if trips else _compared(computations.get(parts["condition"], ()))
  return [(parts["body"], times)]


def _compared(condition: list[Instruction]) -> int | None:
  """The one integer constant of a loop's condition `counter < constant`, if there is one."""
  constants = [
      int(found[1]) for i in condition
      if i.opcode == "constant" and i.shape.startswith(("s32[]", "s64[]", "u32[]"))
      and (found := _CONSTANT.match(i.rest))
  ]
  return constants[0] if len(constants) == 1 else None
