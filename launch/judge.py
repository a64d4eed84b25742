"""PyTorch's own opinion of a Hugging Face directory: imports neither jax nor vit_jax.

    python launch/judge.py --model=HF_DIR --images=DIR --output=FILE

DIR holds CLASS/*.png.  Writes JSON: the accuracy, the number of images and, for every
CLASS/NAME.png, the logits in float32.
"""

import argparse
import json
import pathlib
import sys

from PIL import Image
import torch
from transformers import AutoImageProcessor, ViTForImageClassification

_BATCH = 64


def judge(model_directory: str, files: list[pathlib.Path]) -> dict:
  """Classifies image files whose directories are named after their classes."""
  processor = AutoImageProcessor.from_pretrained(model_directory)
  model = ViTForImageClassification.from_pretrained(model_directory).eval()
  correct, logits = 0, {}
  for begin in range(0, len(files), _BATCH):
    batch = files[begin : begin + _BATCH]
    pixels = processor([Image.open(file) for file in batch], return_tensors="pt")
    with torch.no_grad():
      scores = model(**pixels).logits
    for file, row in zip(batch, scores):
      named = file.parent.name
      correct += model.config.id2label[row.argmax().item()] == named
      logits[f"{named}/{file.name}"] = row.tolist()
  print(f"PyTorch: {correct} of {len(files)} right")
  return {"accuracy": correct / len(files), "examples": len(files), "logits": logits}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", required=True, help="the Hugging Face directory")
  parser.add_argument("--images", required=True, help="directory of CLASS/*.png")
  parser.add_argument("--output", required=True, help="JSON file to write")
  arguments = parser.parse_args()

  files = sorted(pathlib.Path(arguments.images).glob("*/*.png"))
  if not files:
    sys.exit(f"judge: there is no CLASS/*.png in {arguments.images}")
  pathlib.Path(arguments.output).write_text(json.dumps(judge(arguments.model, files)))


if __name__ == "__main__":
  main()
