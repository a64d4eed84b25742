"""Runs under transformers 4.57: `python transformers4_worker.py TASKS.json`.

Tasks: {"make": CLASS, "config": {...}, "directory": DIR} saves a random model of the class; every
task then has "directory" judged on "images" (.npz) and writes the answers to "answers" (.npz).
"""

import json
import sys

import numpy as np


def main():
  for task in json.loads(open(sys.argv[1]).read()):
    with np.load(task["images"]) as file:
      images = file["images"]
      mask = file["mask"] if "MaskedImage" in task["directory"] else None
    if task.get("make", "").startswith("Flax"):
      answers = make_flax(task, images)
    else:
      if "make" in task:
        make(task)
      answers = judged(task["directory"], images, mask)
    np.savez(task["answers"], **answers)


def judged(directory, images, mask):
  from vit_jax.interop.huggingface import judge

  return judge(directory, {"images": images}, mask)["images"]


def make(task):
  import torch
  import transformers

  torch.manual_seed(0)
  name = task["make"]
  options = {"add_pooling_layer": False} if task.get("without_pooler") else {}
  kind = getattr(transformers, name)
  model = kind(kind.config_class(**task["config"]), **options)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter += 0.2 * torch.randn_like(parameter)
  model.save_pretrained(task["directory"])


def make_flax(task, images):
  import jax
  import transformers

  kind = getattr(transformers, task["make"])
  model = kind(kind.config_class(**task["config"]))
  rng = np.random.default_rng(0)
  model.params = jax.tree.map(
      lambda leaf: leaf + 0.2 * rng.standard_normal(leaf.shape, np.float32), model.params
  )
  model.save_pretrained(task["directory"])
  pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
  with jax.default_matmul_precision("highest"):
    answer = model(pixels, output_hidden_states=True, output_attentions=True)
  return {
      "outputs": answer.logits if "logits" in answer else answer.pooler_output,
      "hidden_states": np.stack(answer.hidden_states),
      "attentions": np.stack(answer.attentions),
  }


if __name__ == "__main__":
  main()
