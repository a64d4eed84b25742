"""How a run stands, read from its directory alone: no jax, and nothing is changed."""

import json
import math
import os
import pathlib
import time

from vit_jax.errors import ConfigError
from vit_jax.observe.eta import Eta, clock
from vit_jax.observe.metrics import read_metrics


def read_status(workdir: str | os.PathLike) -> dict:
  """Reads run.json, metrics.jsonl and the list of checkpoints.

  Returns:
    JSON-able: "workdir"; "state", one of "not started", "in progress or stopped", "complete";
    "step", the newest in the metrics or committed; "total_steps" or None; "metrics", the latest
    value of each; "updated_seconds_ago" or None; "eta_seconds" or None, were it running;
    "checkpoints", committed steps; "quarantined", names of damaged ones set aside; "best", None
    or {"step", "metric", "value"}.

  Raises:
    ConfigError: there is no such directory, or run.json is damaged.
  """
  path = pathlib.Path(workdir)
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
  return {
      "workdir": str(path),
      "state": state,
      "step": step,
      "total_steps": total,
      "metrics": latest,
      "updated_seconds_ago": None if updated is None else max(0.0, time.time() - updated),
      "eta_seconds": None if total is None or state == "complete" else _eta(lines, total),
      "checkpoints": committed,
      "quarantined": quarantined,
      "best": _best(path / "checkpoints", committed, info),
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
  if status["quarantined"]:
    lines.append(f"  damaged       {', '.join(status['quarantined'])}")
  if best := status["best"]:
    lines.append(f"  best          step {best['step']}, {best['metric']} {best['value']:.6g}")
  for name, value in sorted(status["metrics"].items()):
    if "_norm/" in name:
      continue  # of each block: in --json and in metrics.jsonl
    lines.append(f"  {name}  {'not finite' if value is None else format(value, '.6g')}")
  return "\n".join(lines)


def _read_info(path: pathlib.Path) -> dict:
  if not path.exists():
    return {}
  try:
    return dict(json.loads(path.read_text(encoding="utf-8")))
  except (OSError, ValueError, TypeError) as error:
    raise ConfigError(f"{path} cannot be read: {error}") from error


def _checkpoints(directory: pathlib.Path) -> tuple[list[int], list[str]]:
  """Steps with a manifest, ascending, and the names of those that were found damaged."""
  names = [entry.name for entry in directory.iterdir()] if directory.is_dir() else []
  steps = (name for name in names if name.isascii() and name.isdigit())
  committed = [int(name) for name in steps if (directory / name / "manifest.json").exists()]
  return sorted(committed), sorted(name for name in names if ".corrupt" in name)


def _eta(lines: list[dict], total: int) -> float | None:
  eta = Eta(total)
  for line in lines:
    if "train/loss" in line:
      eta.seen(line["step"], line["time"])
  return eta.seconds()


def _best(directory: pathlib.Path, committed: list[int], info: dict) -> dict | None:
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
  value, step = max(found, key=lambda pair: (pair[0], -pair[1]))
  return {"step": step, "metric": metric, "value": value}
