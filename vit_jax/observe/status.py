"""How a run stands, read from its directory alone: no jax, and nothing is changed."""

import json
import math
import os
import pathlib
import time

from vit_jax.bucket import path as bucket
from vit_jax.bucket.path import BucketPath
from vit_jax.errors import ConfigError
from vit_jax.observe.eta import Eta, clock
from vit_jax.observe.metrics import read_metrics
from vit_jax.observe.sessions import read_sessions, summary


def read_status(workdir: str | os.PathLike) -> dict:
  """Reads run.json, the metrics, sessions.json and the list of checkpoints.

  Args:
    workdir: of the run, on a disk or in a bucket.

  Returns:
    JSON-able: "workdir"; "state", one of "not started", "in progress or stopped", "complete";
    "step", the newest in the metrics or committed; "total_steps" or None; "metrics", the latest
    value of each; "evaluations", by split the newest {"step", metric: value}; "updated_seconds_ago"
    or None; "eta_seconds" or None, were it running; "checkpoints", committed steps;
    "last_verified_checkpoint", the newest of them, or None: a step is committed after all its files
    were read back and hashed; "checkpoint_seconds_ago", since then, or None; "quarantined", names
    of damaged ones, set aside or without their manifest; "best", None or {"step", "metric",
    "value"}; what `sessions.summary` returns; and "chip_hours_to_go", of "eta_seconds" on the chips
    of the newest session: neither start-up, nor evaluation, nor what may fail is in it; None where
    it is not known.

  Raises:
    ConfigError: there is no such directory, or run.json is damaged; a bucket cannot be read.
  """
  path = bucket.place(workdir)
  bucket.check(path)
  if not path.is_dir():
    raise ConfigError(f"There is no directory {path}: --workdir names the directory of a run")
  info = _read_info(path / "run.json")
  total = info.get("total_steps")
  lines = read_metrics(path)
  committed, quarantined = _checkpoints(path / "checkpoints")
  latest = {name: value for line in lines for name, value in line.items()}
  updated = latest.pop("time", None)
  step = max(latest.pop("step", 0), max(committed, default=0))
  if total is not None and total in committed:
    state = "complete"
  else:
    state = "in progress or stopped" if lines or committed or info else "not started"
  sessions = read_sessions(path)
  eta = _eta(lines, total or 0, since=sessions[-1]["started"] if sessions else 0.0)
  left = None if total is None or state == "complete" else eta.seconds()
  held = summary(sessions, seconds_per_step=eta.seconds_per_step(), step=step)
  to_go = 0.0 if state == "complete" else None
  if left is not None and sessions:
    to_go = left * sessions[-1]["chips"] / 3600
  return {
      "workdir": str(path),
      "state": state,
      "step": step,
      "total_steps": total,
      "metrics": latest,
      "evaluations": _evaluations(lines),
      "updated_seconds_ago": None if updated is None else max(0.0, time.time() - updated),
      "eta_seconds": left,
      "checkpoints": committed,
      "last_verified_checkpoint": committed[-1] if committed else None,
      "checkpoint_seconds_ago": _age(path / "checkpoints", committed),
      "quarantined": quarantined,
      "best": _best(path / "checkpoints", committed, info),
      **held,
      "chip_hours_to_go": to_go,
  }


def format_status(status: dict) -> str:
  """`read_status`'s result as lines for a reader."""
  total = status["total_steps"]
  progress = f"step {status['step']}" + (
      f" of {total} ({status['step'] / total:.1%})" if total else ""
  )
  lines = [f"{status['workdir']}: {status['state']}, {progress}"]
  if status["updated_seconds_ago"] is not None:
    lines.append(f"  last metrics  {clock(status['updated_seconds_ago'])} ago")
  if status["eta_seconds"] is not None:
    lines.append(f"  left          {clock(status['eta_seconds'])} while it runs")
  lines.append(f"  checkpoints   {', '.join(map(str, status['checkpoints'])) or 'none'}")
  if (verified := status["last_verified_checkpoint"]) is not None:
    age = status["checkpoint_seconds_ago"]
    lines.append(
        f"  last verified checkpoint {verified}"
        + (f", {clock(age)} ago" if age is not None else "")
        + ": read back and hashed when it was written"
    )
  if status["quarantined"]:
    lines.append(f"  damaged       {', '.join(status['quarantined'])}")
  if best := status["best"]:
    lines.append(f"  best          step {best['step']}, {best['metric']} {best['value']:.6g}")
  if status["held_seconds"]:
    to_go, goodput = status["chip_hours_to_go"], status["goodput"]
    lines.append(
        f"  chip-hours    {status['chip_hours']:.3g} used"
        + (f", about {to_go:.3g} to go" if to_go else "")
        + (f"; goodput {goodput:.0%}" if goodput is not None else "")
    )
    lines.append(
        f"  restarts      {status['restarts']}, after which {status['steps_lost']} steps were done "
        "again"
    )
  for name, found in status["evaluations"].items():
    values = ", ".join(f"{key} {_number(found[key])}" for key in found if key != "step")
    lines.append(f"  eval/{name}  step {found['step']}: {values}")
  for name, value in sorted(status["metrics"].items()):
    if "_norm/" in name or name.startswith("eval/"):
      continue  # of each block: in --json and in metrics.jsonl
    lines.append(f"  {name}  {_number(value)}")
  return "\n".join(lines)


def _number(value: float | None) -> str:
  return "not finite" if value is None else format(value, ".6g")


def _read_info(path: pathlib.Path | BucketPath) -> dict:
  if not path.exists():
    return {}
  try:
    return dict(json.loads(path.read_text(encoding="utf-8")))
  except (OSError, ValueError, TypeError) as error:
    raise ConfigError(f"{path} cannot be read: {error}") from error


def _checkpoints(directory: pathlib.Path | BucketPath) -> tuple[list[int], list[str]]:
  """Steps with a manifest, ascending, and the names of those that are damaged.

  Those were set aside, or have lost their manifest (`checkpoint.commit`); only a start and `vit-jax
  checkpoint verify` look at the other files.
  """
  names = [entry.name for entry in directory.iterdir()] if directory.is_dir() else []
  steps = {name for name in names if name.isascii() and name.isdigit()}
  committed = {name for name in steps if (directory / name / "manifest.json").exists()}
  # Asked last: of a step that is just being deleted the mark goes first.
  lost = {name for name in steps - committed if (directory / f"{name}.committed").exists()}
  damaged = lost | {name for name in names if ".corrupt" in name}
  return sorted(map(int, committed)), sorted(damaged)


def _eta(lines: list[dict], total: int, *, since: float) -> Eta:
  """By the lines since then, for it may have had other chips before; by all where those are few."""
  everything, recent = Eta(total), Eta(total)
  for line in lines:
    if "train/loss" in line:
      everything.seen(line["step"], line["time"])
      if line["time"] >= since:
        recent.seen(line["step"], line["time"])
  return everything if recent.seconds_per_step() is None else recent


def _evaluations(lines: list[dict]) -> dict[str, dict]:
  """By split what was measured last, and at which step."""
  found = {}
  for line in lines:
    for key, value in line.items():
      kind, _, rest = key.partition("/")
      if kind == "eval":
        split, _, metric = rest.rpartition("/")
        if found.get(split, {}).get("step") != line["step"]:
          found[split] = {"step": line["step"]}
        found[split][metric] = value
  return found


def _age(directory: pathlib.Path | BucketPath, committed: list[int]) -> float | None:
  """Seconds since the newest checkpoint was committed."""
  if not committed:
    return None
  manifest = directory / str(committed[-1]) / "manifest.json"
  try:
    stat = manifest.stat()
  except OSError:  # retention was faster
    return None
  changed = stat.mtime if bucket.is_bucket(manifest) else stat.st_mtime
  return max(0.0, time.time() - changed)


def _best(
    directory: pathlib.Path | BucketPath, committed: list[int], info: dict
) -> dict | None:
  """By the manifests' own metrics; the earliest of equals, as retention has it."""
  metric = info.get("best_metric")
  if metric is None:
    return None
  found = []
  for step in committed:
    try:
      content = json.loads((directory / str(step) / "manifest.json").read_text())
      value = content["metrics"][metric]
    except (OSError, ValueError, KeyError, TypeError):
      continue
    if isinstance(value, (int, float)) and math.isfinite(value):
      found.append((value, step))
  if not found:
    return None
  sign = -1 if info.get("best_is_smallest") else 1
  value, step = max(found, key=lambda pair: (sign * pair[0], -pair[1]))
  return {"step": step, "metric": metric, "value": value}
