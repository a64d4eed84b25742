"""Several runs of one recipe with other values, and the best of them by its held-out split.

    DIR/00_learning_rate=0.003/    a run like any other
    DIR/sweep.csv                  a line each: values, state, measure
    DIR/winner.json                the best by `checkpoint.best_metric` [accuracy], and what it
                                   reaches on the test split
"""

import contextlib
import csv
import dataclasses
import fcntl
import io
import json
import pathlib
import re
import time
from typing import Any

import jax

from vit_jax import config as config_lib
from vit_jax.bucket import atomic
from vit_jax.bucket.path import BucketPath, is_bucket, place
from vit_jax.checkpoint.lease import Lease
from vit_jax.checkpoint.processes import decided_by_first
from vit_jax.checkpoint.retention import less_is_better
from vit_jax.checkpoint.run import RunDirectory
from vit_jax.data.open import open_configured
from vit_jax.data.source import has_labels
from vit_jax.data.split import shared
from vit_jax.errors import ConfigError, NonFiniteError
from vit_jax.evaluate import evaluate, evaluation_split
from vit_jax.observe.status import read_status
from vit_jax.resume import continue_or_begin
from vit_jax.train import train


_STATES = ("waiting", "begun", "finished", "failed")


@dataclasses.dataclass(frozen=True)
class Member:
  """One run of a sweep.

  Attributes:
    values: dotted config keys to values, what the recipe's `sweep()` says of it.
    config: the whole config.
    workdir: its directory.
  """

  values: dict[str, Any]
  config: Any
  workdir: pathlib.Path | BucketPath

  @property
  def failure(self) -> pathlib.Path | BucketPath:
    """A file that says why it cannot be finished."""
    return self.workdir.with_name(self.workdir.name + ".failed")


def members(spec: str, overrides: dict[str, str], workdir: str) -> list[Member]:
  """The runs that a recipe's `sweep()` asks for, in its order.

  Raises:
    ConfigError: the recipe has no sweep, or an unknown key or wrong value in it, or two are alike.
  """
  base = config_lib.load(spec, overrides)
  found = []
  for number, values in enumerate(config_lib.sweep(spec)):
    for key in values:
      if key in overrides:
        raise ConfigError(
            f"--config.{key} is what the sweep of {spec} varies: leave it out, or train one run"
        )
      if key == "checkpoint.best_metric":
        raise ConfigError(
            f"the sweep of {spec} varies config.{key}, by which its runs are compared: leave it "
            f"out there, and give all the same with --config.{key}=loss"
        )
    config = config_lib.override_values(base, values, origin=f"the sweep of {spec}")
    text = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items())
    name = f"{number:02d}_" + re.sub(r"[^\w.,=+-]+", "-", text)[:100]
    found.append(Member(values, config, place(workdir) / name))
  if len({json.dumps(config_lib.to_json(member.config)) for member in found}) < len(found):
    raise ConfigError(f"the sweep of {spec} holds the same values twice")
  return found


def sets_threads(chosen: list[Member]) -> Member:
  """The member whose number of CPU threads, see `resume.pin_cpu_threads`, all of them get.

  A process has one number for all that it trains.  The first that was begun and is not finished
  goes on with its own, so that it goes on bit for bit; where another was begun with another number,
  its training says so.  Else it is the first member, begun or not.
  """
  return next((member for member in chosen if _state(member) == "begun"), chosen[0])


def sweep(chosen: list[Member], everything: list[Member], *, workdir: str) -> None:
  """Trains the chosen members that are not finished; then compares all that are.

  A member whose training is no longer finite is recorded and left out; the others go on.

  Args:
    chosen: some of `everything`: a job of an array does one.
    workdir: of the sweep, made if missing.

  Raises:
    ConfigError: a member's directory holds a run of another config; or see `_held_out`.
    what `train` raises, except NonFiniteError.
  """
  for member in everything:
    # A directory of another sweep's, or of other values, is not taken for this one's.
    if RunDirectory(member.workdir).exists():
      continue_or_begin(RunDirectory(member.workdir), member.config, amend=False)
  held_out, tested = _held_out(everything)
  then = f"the winner is tested on {tested}" if tested else "no split is left to test the winner on"
  print(f"{workdir}: chosen by {held_out}; {then}")
  directory = place(workdir)
  directory.mkdir(parents=True, exist_ok=True)
  with _alone(directory):
    _write_table(everything, workdir)
  for member in chosen:
    # Process 0 writes the checkpoints: the others may see the last one late, and must do the same.
    state = _STATES[decided_by_first(lambda: _STATES.index(_state(member)))]
    if state == "failed":
      print(f"{member.workdir}: failed already; to try again delete it and {member.failure}")
      continue
    if state == "finished":
      print(f"{member.workdir}: finished already")
      continue
    print(f"{member.workdir}: {member.values}")
    try:
      train(member.config, workdir=member.workdir)
    except NonFiniteError as error:
      print(f"{member.workdir}: failed: {error}")
      _write(member.failure, f"{error}\n")
    with _alone(directory):
      _write_table(everything, workdir)
  if decided_by_first(lambda: all(_state(m) in ("finished", "failed") for m in everything)):
    with _alone(directory):
      _announce_winner(everything, workdir)


@contextlib.contextmanager
def _alone(directory: pathlib.Path | BucketPath):
  """Holds the directory: of the jobs of an array that end together one writes its files at a time,
  and one tests the winner."""
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0 and is_bucket(directory):
      while True:
        with contextlib.suppress(ConfigError):  # another job has it
          stack.enter_context(Lease(directory / ".lock"))
          break
        time.sleep(5)
    elif jax.process_index() == 0:
      file = stack.enter_context((directory / ".lock").open("a"))
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _held_out(everything: list[Member]) -> tuple[str, str | None]:
  """The split that chooses, and the one that the winner is tested on, None for none.

  Raises:
    ConfigError: it would be the test split, or a part of it, or images that a run is trained on, or
      not the same images for all.
  """
  opened, judged_on = set(), {}
  for member in everything:
    config = member.config
    data = (config.input.dataset, config.input.path, config.input.held_out)
    key = (*data, config.input.split, config.evaluate.split)
    if key in opened:
      continue
    opened.add(key)
    dataset = open_configured(config)
    split = evaluation_split(config, dataset)
    judged_on[*data, split] = member.workdir.name, split
    wrong = None
    if split.replace(" ", "").partition("[")[0] == "test":
      wrong = "of test"
    elif count := _trained_on(config, split, dataset.splits):
      wrong = f"of which {count} images are trained on"
    if wrong:
      raise ConfigError(
          "the runs of a sweep are compared by a held-out split, and config.evaluate.split of "
          f"{member.workdir.name} would be {split!r}, {wrong}: hold out a part of train "
          "with --config.input.split='train[:90%]' --config.evaluate.split='train[90%:]', and let "
          "sweep() name no part of test"
      )
  if len(judged_on) > 1:
    (first, one), (second, other), *_ = judged_on.values()
    raise ConfigError(
        f"the runs of a sweep are compared, but {first} would be judged on {one!r} and {second} on "
        f"{other!r}, which are not the same images: give all the same config.evaluate.split, "
        "input.dataset, input.path and input.held_out"
    )
  return split, _test_split(split, dataset.splits)


def _trained_on(config, held_out: str, splits) -> int:
  """How many images of a split a run is trained on.

  Args:
    splits: of the data as the run's config opens it.
  """
  if config.input.split != "train":  # then there is no more train as a whole among the splits
    whole = {"input.split": "train", "input.held_out": 0.0, "evaluate.split": None}
    splits = open_configured(config_lib.replace(config, whole)).splits
  name = config.input.split.partition("[")[0].strip()
  return shared(config.input.split, held_out, splits) if name in splits else 0


def _write(file: pathlib.Path | BucketPath, text: str) -> None:
  """Writes a file, once where there are several processes."""
  if jax.process_index() == 0:
    atomic.write_text(file, text)


def _state(member: Member) -> str:
  """One of `_STATES`."""
  if member.failure.exists():
    return "failed"
  if not RunDirectory(member.workdir).exists():
    return "waiting"
  status = read_status(str(member.workdir))
  return "finished" if status["state"] == "complete" else "begun"


def _metric(member: Member) -> str:
  """Name of the measure that the runs are compared by."""
  return f"eval/{_evaluated(member)}/{member.config.checkpoint.best_metric or 'accuracy'}"


def _best(member: Member, status: dict) -> dict | None:
  """What its status says of the member's @best, where that is kept by this measure; else None."""
  best = status["best"]
  return best if best and best["metric"] == _metric(member) else None


def _measure(member: Member) -> tuple[str, float | None]:
  """Name of the measure, and the member's last value, or best where its best is kept."""
  name, status = _metric(member), read_status(str(member.workdir))
  best = _best(member, status)
  return name, best["value"] if best else status["metrics"].get(name)


def _evaluated(member: Member) -> str:
  return RunDirectory(member.workdir).read_info()["evaluation_split"]


def _write_table(everything: list[Member], workdir: str) -> None:
  if jax.process_index() > 0:
    return
  keys = list(dict.fromkeys(key for member in everything for key in member.values))
  text = io.StringIO()
  table = csv.writer(text, lineterminator="\n")
  table.writerow(["run", *keys, "state", "measure", "value"])
  for member in everything:
    state = _state(member)
    measure = _measure(member) if state == "finished" else ("", "")
    values = [member.values.get(key, "") for key in keys]
    table.writerow([member.workdir.name, *values, state, *measure])
  atomic.write_text(place(workdir) / "sweep.csv", text.getvalue())


def _tested(winner: Member) -> dict:
  """What the winner reaches on a split that nothing was chosen by: test, else validation."""
  kept = decided_by_first(
      lambda: _best(winner, read_status(str(winner.workdir))) is not None,
      "which checkpoint is tested",
  )
  ref = f"{winner.workdir}@best" if kept else str(winner.workdir)
  held_out = _evaluated(winner)
  split = _test_split(held_out, open_configured(winner.config).splits)
  if split is None:
    print(f"{winner.workdir.parent}: no split is left to test on; {held_out} chose the winner")
    return {}
  found = evaluate(ref, config_spec=None, overrides={"evaluate.split": split})["metrics"]
  return {"test_split": split, "test": found}


def _test_split(held_out: str, splits) -> str | None:
  """The split that nothing is chosen by, None where there is none with labels.

  Args:
    held_out: the one that chooses.
  """
  for split in ("test", "validation"):
    if held_out.startswith(split):  # it, a part of it, or it with other labels
      return None
    if split in splits:
      source = splits[split]
      if decided_by_first(lambda: has_labels(source), f"whether {split} has labels"):
        return split
  return None


def _announce_winner(everything: list[Member], workdir: str) -> None:
  """Chooses by the held-out split; only the winner sees the test split, once."""
  finished = [member for member in everything if _state(member) == "finished"]
  measured = [(member, *_measure(member)) for member in finished]
  measured = [row for row in measured if row[2] is not None]
  if not measured:
    raise ConfigError(f"{workdir}: no run of the sweep finished with a measure: see sweep.csv")
  choose = min if less_is_better(measured[0][1]) else max
  winner, name, value = choose(measured, key=lambda row: row[2])
  report = {"run": winner.workdir.name, "values": winner.values, "measure": name, "value": value}
  report = json.loads(json.dumps(report))  # tuples become what they are in the file
  file = place(workdir) / "winner.json"
  known = lambda: file.exists() and json.loads(file.read_text()).items() >= report.items()
  if not decided_by_first(known):
    _write(file, json.dumps(report | _tested(winner), indent=2) + "\n")
  print(f"{file}: {winner.workdir.name} wins with {name} {value:.6g}")
