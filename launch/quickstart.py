"""Parts of `quickstart.sh` that need Python: image files for PyTorch, and the summary.

    python launch/quickstart.py images|summary|show DIR
"""

import json
import pathlib
import statistics
import sys

_SHOWN = (
    "accuracy_pretrained", "accuracy_jax", "accuracy_pytorch", "max_logit_difference",
    "train_seconds", "images_per_second", "huggingface_dir",
)


def write_images(directory: pathlib.Path) -> None:
  """Writes the held-out digits as `images/CLASS/INDEX.png`, 8 x 8 pixels as they come."""
  from PIL import Image

  from vit_jax.data.open import open_dataset

  config = json.loads((directory / "finetune" / "config.json").read_text())
  dataset = open_dataset("digits", path=None, held_out=config["input"]["held_out"])
  source = dataset.splits["validation"]
  for index in range(len(source)):
    record = source.record(index)
    file = directory / "images" / dataset.classes[record["label"]] / f"{index:04d}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(record["image"]).save(file)


def summarise(directory: pathlib.Path) -> int:
  """Compares the two judges, writes `summary.json`; returns 1 if a promise is broken."""
  import numpy as np

  import vit_jax

  judged = json.loads((directory / "pytorch.json").read_text())
  names, theirs = zip(*judged["logits"].items())
  checkpoint = vit_jax.load(directory / "finetune")
  pixels = checkpoint.preprocess([directory / "images" / name for name in names])
  ours = np.asarray(checkpoint.model.apply({"params": checkpoint.params}, pixels))
  evaluations = [
      json.loads((directory / run / "evaluation.json").read_text())["metrics"]
      for run in ("pretrain", "finetune")
  ]
  metrics = (directory / "pretrain" / "metrics.jsonl").read_text().splitlines()
  speeds = [json.loads(line).get("train/images_per_second") for line in metrics]
  seconds = (directory / "train_seconds").read_text().split()
  difference = float(np.abs(ours - np.asarray(theirs)).max())
  summary = {
      "accuracy_pretrained": evaluations[0]["accuracy"],
      "accuracy_jax": evaluations[1]["accuracy"],
      "accuracy_pytorch": judged["accuracy"],
      "max_logit_difference": difference,
      "largest_logit": float(np.abs(ours).max()),
      "train_seconds": sum(map(int, seconds)),
      "images_per_second": round(statistics.median(s for s in speeds if s)),
      "huggingface_dir": str(directory / "huggingface"),
  }
  promises = {
      "accuracy_jax equals accuracy_pytorch":
          summary["accuracy_jax"] == summary["accuracy_pytorch"],
      "max_logit_difference <= 2e-5 of the largest logit":
          difference <= 2e-5 * summary["largest_logit"],
      "accuracy_jax >= 0.97": summary["accuracy_jax"] >= 0.97,
  }
  broken = [promise for promise, holds in promises.items() if not holds]
  if broken:
    print(json.dumps(summary, indent=2))
    print(f"quickstart: does not hold: {'; '.join(broken)}", file=sys.stderr)
    return 1
  (directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
  return show(directory)


def show(directory: pathlib.Path) -> int:
  """Prints the summary as a small table."""
  summary = json.loads((directory / "summary.json").read_text())
  for name in _SHOWN:
    value = summary[name]
    if name.startswith("accuracy"):
      value = f"{value:.2%}"
    elif isinstance(value, float):
      value = f"{value:.2g} (largest logit {summary['largest_logit']:.3g})"
    print(f"  {name:<22} {value}")
  return 0


if __name__ == "__main__":
  verb = {"images": write_images, "summary": summarise, "show": show}[sys.argv[1]]
  sys.exit(verb(pathlib.Path(sys.argv[2])))
