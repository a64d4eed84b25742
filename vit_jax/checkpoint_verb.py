"""`vit-jax checkpoint list|verify|prune`: a run's checkpoints from outside; no jax is started."""

import contextlib
import datetime
import json
import pathlib
import re
import time
from typing import NamedTuple

from etils import epath

from vit_jax.bucket.path import is_bucket
from vit_jax.checkpoint import commit, manifest, recovery
from vit_jax.checkpoint.retention import Every, Policy, Saved, delete
from vit_jax.checkpoint.run import RunDirectory
from vit_jax.errors import CheckpointError, ConfigError, warn

_OPTIONS = {
    "json": "list", "step": "verify", "keep_latest": "prune", "dry_run": "prune",
    "quarantined": "prune",
}
_COUNTS = ("/examples", "/unreadable")  # which evaluators report beside what they measure
# STEP, STEP.corrupt, STEP.corrupt2, STEP.orbax-checkpoint-tmp
_NAME = re.compile(r"(\d+)(?:\.(corrupt|orbax-checkpoint-tmp).*)?")


class Entry(NamedTuple):
  """A directory of RUN/checkpoints.

  Attributes:
    path: the directory.
    step: which step's it is.
    state: "committed", "damaged" (its manifest; `verify` sees the rest), "quarantined",
      "uncommitted", "unreadable" (now).
    content: the manifest, empty unless committed.
  """

  path: epath.Path
  step: int
  state: str
  content: dict


def run(arguments) -> int | None:
  """Does what the command line asks; returns its exit code.

  Raises:
    ConfigError: there is no run, or an option of another action was given.
    CheckpointError: the checkpoints cannot be read or deleted.
  """
  for name, action in _OPTIONS.items():
    value = getattr(arguments, name)
    if value is not None and value is not False and action != arguments.action:
      raise ConfigError(f"--{name.replace('_', '-')} belongs to `vit-jax checkpoint {action}`")
  if arguments.keep_latest is not None and arguments.keep_latest < 1:
    raise ConfigError("--keep-latest is at least 1: the newest good checkpoint always stays")
  directory = RunDirectory(arguments.workdir)
  if not directory.exists():
    raise ConfigError(
        f"{directory.path} is no run: it has no run.json. Name the directory that was given to"
        " `vit-jax train` as --workdir"
    )
  if arguments.action == "list":
    rows = table(directory)
    print(json.dumps(rows, indent=1) if arguments.json else format_table(rows))
    return None
  if arguments.action == "verify":
    return verify(directory, arguments.step)
  policy = policy_of(directory)
  if arguments.keep_latest:
    policy = policy._replace(keep_latest=arguments.keep_latest)
  prune(directory, policy, dry_run=arguments.dry_run, quarantined=arguments.quarantined)
  return None


def entries(directory: epath.Path) -> list[Entry]:
  """What lies in RUN/checkpoints, the newest step first."""
  found = []
  for path in directory.iterdir() if directory.is_dir() else ():
    if match := _NAME.fullmatch(path.name):
      found.append(Entry(path, int(match[1]), *_state(path, match[2])))
  return sorted(found, key=lambda entry: (-entry.step, entry.path.name))


def policy_of(directory: RunDirectory) -> Policy:
  """By which the run deletes; of one that began before it was recorded, from its config."""
  info = directory.read_info()
  if "retention" in info:
    return Policy.from_json(info["retention"])
  return Policy(info["resolved"]["checkpoint"]["keep_latest"], info["best_metric"], Every())


def table(directory: RunDirectory) -> list[dict]:
  """A dict for each entry, newest first.

  "name" of the directory; "step"; "state", see `Entry`; "time" of the save in seconds since the
  epoch, or None; "bytes" of its files; "marks", some of "newest", "best", "for ever";
  "examples_seen" or None; "metrics" {name: number}.
  """
  found = entries(directory.checkpoints)
  saved = {e.step: Saved.of(e.content) for e in found if e.state == "committed"}
  policy = policy_of(directory)
  marked = {
      "newest": {max(saved, default=None)}, "best": {policy.best(saved)},
      "for ever": policy.for_ever(saved),
  }
  return [
      {
          "name": entry.path.name, "step": entry.step, "state": entry.state,
          "time": entry.content.get("time"), "bytes": _bytes(entry),
          "marks": [
              mark for mark, steps in marked.items()
              if entry.state == "committed" and entry.step in steps
          ],
          "examples_seen": entry.content.get("examples_seen"),
          "metrics": entry.content.get("metrics", {}),
      }
      for entry in found
  ]


def format_table(rows: list[dict]) -> str:
  """`table`'s result as lines for a reader."""
  if not rows:
    return "no checkpoints yet"
  lines = [f"{'step':>9}  {'when':<19}  {'size':>9}  {'state':<11}  marks and metrics"]
  for row in rows:
    when = "-"
    if row["time"] is not None:
      when = datetime.datetime.fromtimestamp(row["time"]).strftime("%Y-%m-%d %H:%M:%S")
    metrics = [
        f"{name} {value:.6g}" for name, value in sorted(row["metrics"].items())
        if value is not None and not name.endswith(_COUNTS)
    ]
    named = [row["name"]] if row["name"] != str(row["step"]) else []
    rest = ", ".join(named + row["marks"] + metrics)
    size = _size(row["bytes"])
    lines.append(f"{row['step']:>9}  {when:<19}  {size:>9}  {row['state']:<11}  {rest}".rstrip())
  return "\n".join(lines)


def verify(directory: RunDirectory, step: int | None) -> int:
  """Hashes every file of every committed step, or of one; prints a line for each.

  Returns:
    5 where a file is damaged or cannot be read, else 0.

  Raises:
    ConfigError: there is no such committed step.
  """
  asked = [e for e in entries(directory.checkpoints) if step in (None, e.step)]
  asked = [e for e in asked if e.state in ("committed", "damaged", "unreadable")]
  if step is not None and not asked:
    raise ConfigError(
        f"{directory.checkpoints / str(step)} is no committed checkpoint: `vit-jax checkpoint list"
        f" {directory.path}` lists them"
    )
  damaged = 0
  for entry in asked:
    began = time.monotonic()
    try:
      problems = manifest.problems(entry.path)
      gone = bool(problems) and not commit.is_committed(entry.path)
    except OSError as error:
      print(f"step {entry.step}: CANNOT BE READ: {error.strerror or error}", flush=True)
      damaged += 1
      continue
    if gone:
      print(f"step {entry.step}: deleted meanwhile")
      continue
    damaged += bool(problems)
    found = f"DAMAGED: {'; '.join(problems)}" if problems else (
        f"good, {len(entry.content['files'])} files, {_size(_bytes(entry))},"
        f" {time.monotonic() - began:.1f} s"
    )
    print(f"step {entry.step}: {found}", flush=True)
  if not asked:
    print("no committed checkpoints")
  return CheckpointError.exit_code if damaged else 0


def prune(
    directory: RunDirectory, policy: Policy, *, dry_run: bool, quarantined: bool
) -> None:
  """Deletes what a policy does not keep, and prints what.

  The newest good step, and what lies above it, which is damaged, stay; so does what has lost its
  manifest, which the next start of the run sets aside.

  Raises:
    ConfigError: the run is being trained.
    CheckpointError: no step is good; nothing is deleted then.
  """
  with contextlib.nullcontext() if dry_run else directory.lock():
    found = entries(directory.checkpoints)
    committed = {e.step: e for e in found if e.state in ("committed", "damaged")}
    good = _newest_good(committed, directory)
    saved = {
        step: Saved.of(e.content) for step, e in committed.items()
        if step <= (good or -1) and manifest.exists(e.path)
    }
    doomed = [committed[step] for step in policy.superfluous(saved)]
    doomed += [e for e in found if quarantined and e.state == "quarantined"]
    total = 0
    for entry in doomed:
      size = _bytes(entry)
      print(f"{'would delete' if dry_run else 'deleting'} {entry.path.name}, {_size(size)}")
      if not dry_run:
        _remove(entry)
      total += size
  said = "would be freed; nothing was deleted" if dry_run else "freed"
  print(f"{_size(total)} {said}" if doomed else "nothing to delete")


def _newest_good(committed: dict[int, Entry], directory: RunDirectory) -> int | None:
  """The newest step whose every byte is as written, damaged ones above it said on stderr."""
  for step in sorted(committed, reverse=True):
    problems = manifest.problems(committed[step].path)
    if not problems:
      return step
    warn(
        f"step {step} is damaged ({recovery.summary(problems)}) and left alone: training sets it"
        " aside"
    )
  if committed:
    raise CheckpointError(
        f"No checkpoint in {directory.checkpoints} is good, so that nothing was deleted: copy one"
        " from where it is intact"
    )
  return None


def _remove(entry: Entry) -> None:
  """Deletes an entry's directory; raises CheckpointError where it cannot."""
  try:
    delete(entry.path)
  except OSError as error:
    raise CheckpointError(
        f"{entry.path} was not deleted: {error.strerror or error}. Make it writable for this user"
    ) from error


def _state(path: epath.Path, suffix: str | None) -> tuple[str, dict]:
  """`Entry.state` and `Entry.content`."""
  if suffix == "corrupt":
    return "quarantined", {}
  if suffix:
    return "uncommitted", {}
  try:
    if not commit.is_committed(path):
      return "uncommitted", {}
    return "committed", manifest.read(path)
  except CheckpointError:  # a run in progress may have deleted it just now
    return "damaged" if commit.is_committed(path) else "uncommitted", {}
  except OSError:
    return "unreadable", {}


def _bytes(entry: Entry) -> int:
  """Of its files: as the manifest has it, else as they lie there."""
  if entry.content:
    return sum(file["bytes"] for file in entry.content["files"].values())
  if is_bucket(entry.path):
    return sum(listed.size for listed in entry.path.below().values())
  try:
    below = pathlib.Path(entry.path).rglob("*")
    return sum(path.stat().st_size for path in below if path.is_file())
  except OSError:  # being written or deleted
    return 0


def _size(number: int) -> str:
  for unit in ("B", "kB", "MB", "GB"):
    if number < 1000:
      return f"{number:.3g} {unit}"
    number /= 1000
  return f"{number:.4g} TB"
