"""A run that is killed, frozen, starved of disk and robbed of its files, and what is left of it.

    PYTHONPATH=. python benchmarks/soak.py --workdir=DIR [--minutes=30] [--faults=60] [--seed=0]

Trains the quickstart's model twice by the command line, on the CPU: once in peace (DIR/reference),
once under that many faults, at moments drawn from the seed (DIR/run); the same command is repeated
whenever it has ended.  How many steps fit into the minutes is measured before.  After each fault
the run must

  - leave with the exit code that docs/reliability.md promises, or go on where nothing ended it;
  - name what was damaged, and set it aside;
  - go on from the newest checkpoint that is good, at most two intervals behind where it was.

In the end both runs must have the same bits in every array of the last checkpoint, and the same
metrics, each step once.  Prints a markdown table of the faults by kind and, below it, every promise
that was broken; leaves with 1 where one was.  What the runs said is in DIR/output.log.  Needs Linux
(prlimit).  The kinds:

"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import shutil
import statistics
import sys
import time

import machine
from soak_faults import DAMAGES, KINDS
from soak_run import Broken, Fault, Run

# Of a step's metrics those that the clock has a part in.
_TIMED = {"time", "train/images_per_second", "train/input_wait_fraction", "train/mfu"}
_LEAST = 4.0  # seconds of training between two faults


def main():
  options = _arguments()
  directory = pathlib.Path(os.path.abspath(options.workdir))
  directory.mkdir(parents=True, exist_ok=True)
  if any(directory.iterdir()):
    sys.exit(f"{directory} is not empty: choose another --workdir")
  notes = machine.machine_notes(_say)
  starting, step = measured(directory)
  notes.append(f"a start takes {starting:.1f} s, a step {1e3 * step:.0f} ms")
  # A fault costs a start and a half in the mean, and some seconds that it lasts.
  training = 60 * options.minutes / options.faults - 1.5 * starting - 3
  each = max(30, int(max(_LEAST, training) / step))
  plan = {"total": each * (options.faults + 1), "every": each // 6}
  notes.append("{total} steps, a checkpoint every {every}".format(**plan))
  _say("; ".join(notes[-2:]))
  reference = Run(directory / "reference", **plan)
  in_peace(reference)

  run = Run(directory / "run", starting=starting, **plan)
  faults = planned(options.kinds, faults=options.faults, each=each, seed=options.seed)
  began = time.monotonic()
  alike, broken = soak(run, reference, faults, dice=random.Random(options.seed))
  struck = sum(fault.step is not None for fault in faults)
  notes.append(f"{struck} faults of seed {options.seed} in {(time.monotonic() - began) / 60:.0f}"
               f" minutes; {sum(fault.steps_again for fault in faults)} steps trained again")
  report(faults + run.unasked, notes=notes, alike=alike, broken=broken, file=options.json)
  sys.exit(1 if broken else 0)


def measured(directory: pathlib.Path) -> tuple[float, float]:
  """Seconds that a start takes, once its programs are compiled, and a step."""
  run = Run(directory / "measured", total=64, every=16)
  for _ in range(2):  # the first compiles
    shutil.rmtree(run.directory, ignore_errors=True)
    took = in_peace(run)
  times = [line["time"] for line in _metrics(run)]
  step = (times[-1] - times[0]) / (run.total - 1)
  return took - step * run.total, step


def in_peace(run: Run) -> float:
  """Runs it to its end and returns the seconds; leaves where it fails."""
  began = time.monotonic()
  run.start()
  run.until(lambda: False)
  if run.unasked:
    sys.exit(f"undisturbed the run left with {run.unasked[0].codes}: see output.log")
  return time.monotonic() - began


def planned(kinds: list[str], *, faults: int, each: int, seed: int) -> list[Fault]:
  """Faults of all kinds about equally often, in random order; one in each `each` steps."""
  dice, order = random.Random(seed), []
  while len(order) < faults:
    order += dice.sample(kinds, len(kinds))
  return [Fault(kind, int((number + dice.uniform(0.2, 1)) * each))
          for number, kind in enumerate(order[:faults])]


def soak(run: Run, reference: Run, faults: list[Fault], *, dice) -> tuple[list[str], list[str]]:
  """Does the faults to the run; what then is as it should be, and what not, in words."""
  alike, broken = [], []
  try:
    run.start()
    for number, fault in enumerate(faults, start=1):
      strike(run, fault, dice)
      _say(f"{number} of {len(faults)}: {fault}")
    run.until(lambda: False)
    alike, broken = compared(run, reference)
    damaged = sum(fault.kind in DAMAGES and fault.step is not None for fault in faults)
    aside = len(list(run.directory.glob("checkpoints/*.corrupt*")))
    (alike if aside == damaged else broken).append(
        f"{aside} of {damaged} damaged checkpoints set aside"
    )
  except Broken as error:
    broken.append(str(error))
  finally:
    run.process.kill()
  if missed := sum(fault.step is None for fault in faults):
    broken.append(f"{missed} faults did not happen: the run was over before")
  return alike, broken + [f"{fault.kind} at step {fault.step}: {text}"
                          for fault in faults + run.unasked for text in fault.broken]


def strike(run: Run, fault: Fault, dice) -> None:
  """Waits for the fault's moment, does it, and waits until the run trains again."""
  if not run.until(lambda: run.step() >= fault.due and len(run.committed()) > 1):
    return
  run.strikes(fault)
  words = KINDS[fault.kind](run, dice)
  began = time.monotonic()
  if run.process.poll() is not None:
    run.start()
  before = run.step()
  run.until(lambda: run.step() > before)
  fault.seconds = round(time.monotonic() - began, 1)
  run.damaged = None
  if words and not run.until(run.says(*words), seconds=300):
    fault.broken.append(f"did not say {' ... '.join(words)}")


def compared(run: Run, reference: Run) -> tuple[list[str], list[str]]:
  """What both runs have alike, and what not, in words."""
  ours, theirs = ([{name: value for name, value in line.items() if name not in _TIMED}
                   for line in _metrics(one)] for one in (run, reference))
  wrong = [f"metrics: step {line['step']} differs"
           for line, other in zip(ours, theirs) if line != other]
  if [line["step"] for line in ours] != list(range(1, run.total + 1)):
    wrong.append("metrics: not every step is there exactly once")
  ours, theirs = _arrays(run), _arrays(reference)
  wrong += [f"{path} differs" for path in sorted(ours.keys() | theirs.keys())
            if ours.get(path) != theirs.get(path)]
  alike = [f"{len(ours)} arrays with the same bits", f"{run.total} steps with the same metrics"]
  return [] if wrong else alike, wrong


def _metrics(run: Run) -> list[dict]:
  return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def _arrays(run: Run) -> dict[str, tuple]:
  """Path to (dtype, shape, bytes) of every array of the last checkpoint; Broken: it is damaged."""
  os.environ["JAX_PLATFORMS"] = "cpu"  # counts from the import on
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  from vit_jax.checkpoint import manifest

  directory = run.checkpoint(run.total)
  if problems := manifest.problems(directory):
    raise Broken(f"{directory} is damaged: {problems}")
  found = {}
  for name in ("params", "training"):
    tree = ocp.PyTreeCheckpointer().restore(directory / name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      leaf = np.asarray(leaf)
      found[name + jax.tree_util.keystr(path)] = (str(leaf.dtype), leaf.shape, leaf.tobytes())
  return found


def report(faults: list[Fault], *, notes, alike, broken, file: pathlib.Path | None) -> None:
  """Prints notes, table and verdict, and writes all, with each fault, to a file of JSON."""
  print("\n".join(f"- {note}" for note in notes) + f"\n\n{table(faults)}\n")
  if broken:
    print("**Something was lost or not as promised:**\n\n- " + "\n- ".join(broken))
  else:
    print(f"Nothing was lost: {', '.join(alike)}.")
  if file:
    content = {"notes": notes, "alike": alike, "broken": broken,
               "faults": [dataclasses.asdict(fault) for fault in faults]}
    file.write_text(json.dumps(content, indent=1) + "\n")


def table(faults: list[Fault]) -> str:
  """Those that happened, by kind."""
  titles = ["fault", "times", "as promised", "exit codes", "steps trained again, mean", "most",
            "seconds until it trained on, median"]
  rows = [titles, ["---"] * len(titles)]
  for kind in (*KINDS, "unasked"):
    own = [fault for fault in faults if fault.kind == kind and fault.step is not None]
    if own:
      codes = collections.Counter(code for fault in own for code in fault.codes)
      again = [fault.steps_again for fault in own]
      seconds = [fault.seconds for fault in own if fault.seconds is not None]
      rows.append([
          KINDS[kind].__doc__ if kind in KINDS else "it ended by itself", str(len(own)),
          str(sum(not fault.broken for fault in own)),
          ", ".join(f"{code} ({times}x)" for code, times in sorted(codes.items())) or "it went on",
          f"{statistics.mean(again):.1f}", str(max(again)),
          f"{statistics.median(seconds):.1f}" if seconds else "",
      ])
  return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      description=__doc__ + "\n".join(f"  {name:15}{do.__doc__}" for name, do in KINDS.items()),
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--workdir", required=True, type=pathlib.Path, help="empty, or not there")
  parser.add_argument(
      "--minutes", type=float, default=30, help="for the run under faults, about; at least "
      f"{_LEAST:g} s are trained between two of them [30]",
  )
  parser.add_argument("--faults", type=int, default=60, help="[60]")
  parser.add_argument("--seed", type=int, default=0, help="of kinds and moments [0]")
  parser.add_argument("--kinds", default=list(KINDS), type=lambda text: text.split(","),
                      help="only these, with commas [all]")
  parser.add_argument("--json", type=pathlib.Path, help="each fault, to this file besides")
  options = parser.parse_args()
  if unknown := sorted(set(options.kinds) - KINDS.keys()):
    parser.error(f"--kinds: there is no {', '.join(unknown)}; there are {', '.join(KINDS)}")
  if options.faults < 1:
    parser.error("--faults: at least one")
  return options


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
  main()
