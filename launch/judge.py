"""PyTorch's own opinion of a Hugging Face directory: imports neither jax nor vit_jax.

    python launch/judge.py --model=HF_DIR --images=DIR --output=FILE

DIR holds CLASS/*.png.  Writes JSON: the accuracy and, for every file, the logits.
"""

import argparse
import json
import pathlib

from PIL import Image
import torch
from transformers import AutoImageProcessor, ViTForImageClassification


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", required=True, help="the Hugging Face directory")
  parser.add_argument("--images", required=True, help="directory of CLASS/*.png")
  parser.add_argument("--output", required=True, help="JSON file to write")
  arguments = parser.parse_args()

  processor = AutoImageProcessor.from_pretrained(arguments.model)
  model = ViTForImageClassification.from_pretrained(arguments.model).eval()
  files = sorted(pathlib.Path(arguments.images).glob("*/*.png"))
  correct, logits = 0, {}
  for begin in range(0, len(files), 64):
    batch = files[begin : begin + 64]
    pixels = processor([Image.open(f) for f in batch], return_tensors="pt")
    with torch.no_grad():
      scores = model(**pixels).logits
    for file, row in zip(batch, scores):
      correct += model.config.id2label[row.argmax().item()] == file.parent.name
      logits[f"{file.parent.name}/{file.name}"] = row.tolist()
  result = {"accuracy": correct / len(files), "examples": len(files), "logits": logits}
  pathlib.Path(arguments.output).write_text(json.dumps(result))
  print(f"PyTorch: {correct} of {len(files)} right")


if __name__ == "__main__":
  main()
