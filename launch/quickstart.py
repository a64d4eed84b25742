"""Parts of `quickstart.sh` that need Python: image files for PyTorch, and the summary.

    python launch/quickstart.py images|summary|show DIR

`show` needs nothing but Python's own library.
"""

import json
import pathlib
import statistics
import sys

_SHOWN = (
    "accuracy_pretrained", "accuracy_jax", "accuracy_pytorch", "max_logit_difference",
    "train_seconds", "images_per_second", "huggingface_dir",
)
_LEAST_ACCURACY = 0.97
_LOGIT_TOLERANCE = 2e-5  # of the largest logit


def write_images(directory: pathlib.Path) -> int:
  """Writes the held-out digits as `images/CLASS/INDEX.png`, 8 x 8 pixels as they come."""
  from PIL import Image

  from vit_jax.data.open import open_dataset

  config = _read_json(directory / "finetune" / "config.json")
  dataset = open_dataset("digits", path=None, held_out=config["input"]["held_out"])
  source = dataset.splits["validation"]
  for index in range(len(source)):
    record = source.record(index)
    file = directory / "images" / dataset.classes[record["label"]] / f"{index:04d}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(record["image"]).save(file)
  return 0


def summarise(directory: pathlib.Path) -> int:
  """Collects what the run's files say, and concludes; returns the exit code."""
  judged = _read_json(directory / "pytorch.json")
  ours, theirs = _logits(directory, judged["logits"])
  pretrained, finetuned = (
      _read_json(directory / f"{run}.json")["metrics"]["accuracy"]
      for run in ("pretrain", "finetune")
  )
  metrics = (directory / "pretrain" / "metrics.jsonl").read_text().splitlines()
  speeds = [json.loads(line).get("train/images_per_second") for line in metrics]
  attempts = (directory / "train_seconds").read_text().split()
  summary = {
      "accuracy_pretrained": pretrained,
      "accuracy_jax": finetuned,
      "accuracy_pytorch": judged["accuracy"],
      "max_logit_difference": float(abs(ours - theirs).max()),
      "largest_logit": float(abs(ours).max()),
      "train_seconds": sum(map(int, attempts)),
      "images_per_second": round(statistics.median(s for s in speeds if s)),
      "huggingface_dir": str(directory / "huggingface"),
  }
  return conclude(summary, directory)


def _logits(directory: pathlib.Path, judged: dict):
  """Logits `[images, classes]` of the fine-tuned run and of PyTorch, for the same image files."""
  import numpy as np

  import vit_jax

  checkpoint = vit_jax.load(directory / "finetune")
  pixels = checkpoint.preprocess([directory / "images" / name for name in judged])
  ours = checkpoint.model.apply({"params": checkpoint.params}, pixels)
  return np.asarray(ours), np.asarray(list(judged.values()))


def broken_promises(summary: dict) -> list[str]:
  """The promises of the quickstart that a summary does not keep; a NaN keeps none."""
  promises = {
      "accuracy_jax equals accuracy_pytorch":
          summary["accuracy_jax"] == summary["accuracy_pytorch"],
      f"max_logit_difference <= {_LOGIT_TOLERANCE:g} of the largest logit":
          summary["max_logit_difference"] <= _LOGIT_TOLERANCE * summary["largest_logit"],
      f"accuracy_jax >= {_LEAST_ACCURACY:g}":
          summary["accuracy_jax"] >= _LEAST_ACCURACY,
  }
  return [promise for promise, holds in promises.items() if not holds]


def conclude(summary: dict, directory: pathlib.Path) -> int:
  """Writes `summary.json` and shows it; where a promise is broken, returns 1 and writes none."""
  text = json.dumps(summary, indent=2)
  file = directory / "summary.json"
  if broken := broken_promises(summary):
    file.unlink(missing_ok=True)
    print(text)
    print(f"quickstart: does not hold: {'; '.join(broken)}", file=sys.stderr)
    return 1
  file.write_text(text + "\n")
  return show(directory)


def show(directory: pathlib.Path) -> int:
  """Prints `summary.json` as a small table."""
  summary = _read_json(directory / "summary.json")
  for name in _SHOWN:
    value = summary[name]
    if name.startswith("accuracy"):
      value = f"{value:.2%}"
    elif name == "max_logit_difference":
      value = f"{value:.2g} (largest logit {summary['largest_logit']:.3g})"
    print(f"  {name:<22} {value}")
  return 0


def _read_json(file: pathlib.Path):
  return json.loads(file.read_text())


if __name__ == "__main__":
  verb = {"images": write_images, "summary": summarise, "show": show}[sys.argv[1]]
  sys.exit(verb(pathlib.Path(sys.argv[2])))
