"""README.md of a published model: what was measured and recorded, and nothing else.

A fact that is not known is left out.  The text ends in a mark by which an edit shows.
"""

import dataclasses
import hashlib
import json
import re
from typing import Any, Mapping

from vit_jax.interop import card_usage
from vit_jax.interop.yaml_text import to_yaml

CARD = "README.md"
_MARK = re.compile(r"<!-- written by vit_jax, sha256 of the text above: ([0-9a-f]{64}) -->\n\Z")
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_LISTED_CLASSES = 20
_METRIC_NAMES = {
    "accuracy": "top-1 accuracy", "accuracy_top5": "top-5 accuracy", "loss": "loss",
}


@dataclasses.dataclass(frozen=True)
class Measurement:
  """One evaluation of one step.

  Attributes:
    split: of the data set.
    images: how many; None where it was not recorded.
    metrics: accuracy in 0..1, loss in nats, ...
  """

  split: str
  images: int | None
  metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Step:
  """One published step.

  Attributes:
    name: what the table calls it: "50000", "50000 (EMA)".
    path: where its files are: a directory, or "USER/NAME".
    revision: the branch; None where the files are only in a directory.
    measurements: may be empty.
    hashes: sha256 of each file of weights.
    chosen_on: the split by whose metric this step was chosen; None if it was named otherwise.
    verification: as in conversion.json.
  """

  name: str
  path: str
  revision: str | None
  measurements: tuple[Measurement, ...]
  hashes: Mapping[str, str]
  chosen_on: str | None
  verification: Mapping


@dataclasses.dataclass(frozen=True)
class Card:
  """What a card is made of.

  Attributes:
    name: of the model.
    license: the Hub's name of it.
    base_model: the Hub's name of the model that this one was trained from, or None.
    to, architecture, dtype, parameters: format, class, stored type and size of the export.
    model: description of the model that was trained.
    preprocessing: the evaluation transform.
    labels: class names, or None.
    dataset: name of the training data.
    steps: at least one; the last is what `main` and the snippets are.
    config: the run's, JSON-able.
    provenance: what to print about the origin, label to value, in order; None values are left out.
    timm: whether timm can hold the model, by way of `vit-jax convert`.
    notes: what the export leaves out or cannot say.
  """

  name: str
  license: str
  base_model: str | None
  to: str
  architecture: str
  dtype: str
  parameters: int
  model: Mapping
  preprocessing: Mapping
  labels: tuple[str, ...] | None
  dataset: str
  steps: tuple[Step, ...]
  config: Mapping[str, Any]
  provenance: Mapping[str, str | None]
  timm: bool
  notes: tuple[str, ...]

  @property
  def classifies(self) -> bool:
    """Whether the exported class answers with class scores."""
    written = self.to == "timm" or "ForImageClassification" in self.architecture
    return bool(self.model["num_classes"]) and written


def write_card(card: Card) -> str:
  """The text of README.md: YAML front matter, Markdown, and the mark of `is_untouched`."""
  sections = (
      f"# {card.name}", _what(card), "## Checkpoints", _table(card), "## How to use it",
      card_usage.usage(card), "## Preprocessing", _preprocessing(card), "## Training",
      _training(card), "## Provenance", _provenance(card), "## Limitations", _limitations(card),
  )
  text = f"---\n{to_yaml(_metadata(card))}---\n" + "\n\n".join(sections) + "\n\n"
  return text + f"<!-- written by vit_jax, sha256 of the text above: {_hash(text)} -->\n"


def is_untouched(text: str) -> bool:
  """Whether a README.md says nothing that somebody wrote: ours unedited, or front matter alone."""
  text = text.replace("\r\n", "\n")
  mark = _MARK.search(text)
  if mark:
    return mark[1] == _hash(text[:mark.start()])
  return not _FRONT_MATTER.sub("", text).strip()


def _hash(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def _metadata(card: Card) -> dict:
  """The front matter (huggingface.co/docs/hub/model-cards, model-index of its specification)."""
  task = "image-classification" if card.classifies else "image-feature-extraction"
  metadata = {
      "license": card.license,
      "library_name": "timm" if card.to == "timm" else "transformers",
      "pipeline_tag": task,
      "tags": ["vision", "vit", "jax", "vit_jax"],
  }
  if card.base_model:
    metadata["base_model"] = card.base_model
  results = [
      _result(card, step, measured)
      for step in reversed(card.steps) for measured in step.measurements
  ]
  if results:
    metadata["metrics"] = sorted({m["type"] for result in results for m in result["metrics"]})
    metadata["model-index"] = [{"name": card.name, "results": results}]
  return metadata


def _result(card: Card, step: Step, measured: Measurement) -> dict:
  return {
      # Also where the export leaves the head out: it was measured with it.
      "task": {"type": "image-classification", "name": "Image classification"},
      "dataset": {"type": card.dataset, "name": card.dataset, "split": measured.split},
      "metrics": [
          {
              "type": name, "value": value, "verified": False,
              "name": f"{_METRIC_NAMES.get(name, name)}, step {step.name}",
          }
          for name, value in measured.metrics.items()
      ],
  }


def _what(card: Card) -> str:
  model = card.model
  size = model["image_size"]
  height, width = (size, size) if isinstance(size, int) else size
  text = (
      f"A Vision Transformer with {card.parameters:,} parameters for images of {width} x {height} "
      f"pixels: width {model['width']}, depth {model['depth']}, {model['num_heads']} heads, MLP of "
      f"{model['mlp_dim']}, patches of {model['patch_size']} pixels, pooling `{model['pooling']}`. "
      f"Trained with [JAX](https://github.com/jax-ml/jax) by vit_jax; the files are a "
      f"`{card.architecture}`, stored in {card.dtype}."
  )
  if card.classifies and card.labels:
    shown = ", ".join(map(_code, card.labels[:_LISTED_CLASSES]))
    more = len(card.labels) - _LISTED_CLASSES
    text += f"\n\nIt knows {len(card.labels)} classes: {shown}"
    text += f" and {more} more, all in `config.json`." if more > 0 else "."
  return text


def _table(card: Card) -> str:
  """A line a step: where it is, what was measured, the hash of its weights."""
  columns = dict.fromkeys(
      (m.split, m.images, name) for step in card.steps for m in step.measurements
      for name in m.metrics
  )
  branches = any(step.revision for step in card.steps)
  header = ["step", "branch" if branches else "directory"]
  for split, images, name in columns:
    count = "" if images is None else f", {images:,} images"
    header.append(f"{_METRIC_NAMES.get(name, name)} ({split}{count})")
  rows = [header + ["sha256 of the weights"]]
  for step in card.steps:
    found = {
        (m.split, m.images, name): value for m in step.measurements
        for name, value in m.metrics.items()
    }
    where = step.revision if branches else step.path.rpartition("/")[2]
    figures = [_figure(column[2], found.get(column)) for column in columns]
    rows.append([step.name, _code(where), *figures, _hashes(step)])
  lines = ["| " + " | ".join(row) + " |" for row in rows]
  lines.insert(1, "|" + " --- |" * len(rows[0]))
  last = card.steps[-1]
  if branches:
    lines.append(f"\n`main` holds step {last.name}.")
  return "\n".join(lines)


def _figure(name: str, value: float | None) -> str:
  if value is None:
    return "not measured"
  return f"{value:.2%}" if name.startswith("accuracy") else f"{value:.4g}"


def _hashes(step: Step) -> str:
  if len(step.hashes) == 1:
    return _code(next(iter(step.hashes.values())))
  return "<br>".join(f"{_code(name)} {_code(value)}" for name, value in step.hashes.items())


def _preprocessing(card: Card) -> str:
  how = card.preprocessing
  size = how["image_size"]
  height, width = (size, size) if isinstance(size, int) else size
  if how["resize"] == "squash":
    resized = f"resized to {width} x {height} pixels whatever their shape"
  else:
    resized = f"resized to a short side of {how['short_side']} pixels, the centre cropped to {size}"
  turned = "turned upright as their EXIF data says" if how["exif_orientation"] else "never turned"
  return (
      f"RGB images, {turned}, {resized} ({how['interpolation']}, antialiased), scaled to 0..1, "
      f"minus {_numbers(how['mean'])}, divided by {_numbers(how['std'])} by channel: so in "
      "evaluation."
  )


def _numbers(values) -> str:
  return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _training(card: Card) -> str:
  """The recipe in a sentence, then every key."""
  config = card.config
  recipe, schedule, inputs = config["optimizer"], config["schedule"], config["input"]
  text = (
      f"{config['total']} on `{card.dataset}` in batches of {inputs['batch_size']}: "
      f"{recipe['name']}, learning rate {recipe['learning_rate']:g}, weight decay "
      f"{recipe['weight_decay']:g}, {schedule['name']} schedule, warm-up of {schedule['warmup']}, "
      f"seed {config['seed']}. The whole config, without directories:"
  )
  return f"{text}\n\n```json\n{json.dumps(config, indent=2, sort_keys=True)}\n```"


def _provenance(card: Card) -> str:
  return "\n".join(f"- {label}: {value}" for label, value in card.provenance.items() if value)


def _limitations(card: Card) -> str:
  """What follows from the facts above."""
  lines = []
  if card.classifies:
    lines.append(
        f"Every image gets one of the {card.model['num_classes']} classes, also one that shows "
        "none of them."
    )
  measured = {(m.split, m.images) for step in card.steps for m in step.measurements}
  for split, images in sorted(measured, key=str):
    count = "images" if images is None else f"{images:,} images"
    lines.append(f"Measured on the {count} of `{card.dataset}`, split {split}, alone.")
  missing = [step.name for step in card.steps if not step.measurements]
  if missing:
    lines.append(f"Not measured: step {', '.join(missing)}.")
  for step in card.steps:
    if step.chosen_on:
      lines.append(
          f"Step {step.name} was chosen because it was the best on {step.chosen_on}: its figure "
          "there is better than on images that had no say in it."
      )
    if rounding := step.verification.get("rounding"):
      lines.append(
          f"Step {step.name}: rounding the weights to {card.dtype} changed outputs by up to "
          f"{rounding['difference']:.2g}, where the largest was {rounding['largest']:.3g}; what "
          "was measured is the model before rounding."
      )
  lines += [f"{note[0].upper()}{note[1:]}." for note in card.notes]
  return "\n".join(f"- {line}" for line in lines) or "None is recorded."


def _code(text: str) -> str:
  """Inline code that survives in a table: backticks, bars and line breaks become harmless."""
  return f"`{' '.join(text.split()).replace('`', chr(39)).replace('|', '/')}`"
