"""What a run recorded about its steps, as a model card may print it: no directories of anybody."""

import json
import os

import vit_jax
from vit_jax import measures
from vit_jax.checkpoint import manifest
from vit_jax.checkpoint.run import RunDirectory
from vit_jax.interop.model_card import Measurement
from vit_jax.observe.metrics import read_metrics
from vit_jax.observe.versions import commit

# Sources whose names mean the same everywhere.
_PUBLIC = ("hf:", "timm:", "gs://")
# What evaluators count beside what they measure.
_COUNTS = ("examples", "unreadable")


def measurements(run: RunDirectory, step: int) -> tuple[Measurement, ...]:
  """Everything measured at exactly this step, on the run's own data: by training, and by
  `vit-jax evaluate`.  All is of the averaged weights where the run keeps an average."""
  found: dict[str, dict[str, float]] = {}
  for line in read_metrics(run.path):
    for key, value in line.items():
      kind, _, rest = key.partition("/")
      split, _, name = rest.rpartition("/")
      if line["step"] == step and kind == "eval" and split and value is not None:
        found.setdefault(split, {})[name] = value
  for evaluated in _evaluations(run, step):
    found[evaluated["split"]] = evaluated["metrics"]
  return tuple(
      Measurement(
          split, int(values["examples"]) if "examples" in values else None,
          {name: value for name, value in values.items() if name not in _COUNTS},
      )
      for split, values in sorted(found.items())
  )


def _evaluations(run: RunDirectory, step: int) -> list[dict]:
  """What lies in RUN/evaluations of this step and of the data that the run was trained on."""
  info, found = run.read_info(), []
  inputs = info["resolved"]["input"]
  for directory in run.evaluations.iterdir() if run.evaluations.is_dir() else ():
    try:
      content = json.loads((directory / "evaluation.json").read_text())
      own_data = content["data"] == (inputs["path"] or inputs["dataset"])
      # The same directory may have been parted otherwise.
      own_data &= content["fingerprint"] == info["fingerprint"]
      own_step = content["model"].endswith((f"@{step}", f"@{step}+ema"))
      as_it_is = not set(measures.OTHERWISE) & set(content)
      if own_data and own_step and as_it_is and content["metrics"] and content["split"]:
        found.append(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
      continue  # unfinished, or written by something else
  return found


def recorded(run: RunDirectory, step: int) -> dict:
  """The manifest of a step: "config", "examples_seen", "versions", ... (`checkpoint.manager`)."""
  return manifest.read(run.checkpoints / str(step))


def provenance(run: RunDirectory, step: int) -> dict[str, str | None]:
  """Where a step comes from, label to text, in the order to print; None where not recorded."""
  info, meta = run.read_info(), recorded(run, step)
  environment = info["environment"]
  seen = meta.get("examples_seen")
  return {
      "trained to step": f"{step:,} of {info['total_steps']:,}"
      + (f", {seen:,} images seen" if seen else ""),
      "started from": _public_name(info.get("init")) or "random weights",
      "data": f"fingerprint `{info['fingerprint']}`, {len(info['classes'])} classes",
      "devices": environment.get("devices"),
      "trained with": ", ".join(f"{k} {v}" for k, v in meta.get("versions", {}).items() if v),
      "written by": f"vit_jax {vit_jax.__version__}" + (f", commit {commit()}" if commit() else ""),
  }


def public_config(config: dict) -> dict:
  """A config without open keys, its directories reduced to their names."""
  tree = {
      key: public_config(value) if isinstance(value, dict) else value
      for key, value in config.items() if value is not None
  }
  for room, key in (("input", "path"), ("init", "checkpoint")):
    if tree.get(room, {}).get(key):
      tree[room][key] = _public_name(tree[room][key])
  return {key: value for key, value in tree.items() if value != {}}


def data_name(config: dict) -> str:
  """What the run's data set is called: a folder by its own name."""
  inputs = config["input"]
  return _public_name(inputs["path"]) if inputs["path"] else inputs["dataset"]


def hub_origin(run: RunDirectory) -> str | None:
  """The Hub's name of the model that a run started from, where it came from there."""
  kind, _, name = (run.read_info().get("init") or "").partition(":")
  name = name.partition("@")[0]
  return {"hf": name, "timm": f"timm/{name}"}.get(kind)


def _public_name(ref: str | None) -> str | None:
  """A REF without the directories that lead to it."""
  if not ref or ref.startswith(_PUBLIC):
    return ref
  return os.path.basename(os.path.normpath(ref))
