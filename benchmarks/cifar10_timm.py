"""timm's side of `cifar10.py`: model, optimizer, schedule and loss of timm, in a PyTorch loop.

Images lie in memory as uint8; they are padded, cropped and mirrored a batch at a time.
"""

import time

_STARTED = time.perf_counter()

import argparse
import importlib
import json
import pathlib

import numpy as np
import torch

from worker_timm import import_timm

_CALIBRATION_STEPS = 300


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--images", required=True, type=pathlib.Path, help="cifar-10-batches-bin")
  parser.add_argument("--seconds", type=float, required=True, help="of everything")
  parser.add_argument("--margin", type=float, required=True, help="share that is not planned for")
  parser.add_argument("--seed", type=int, required=True)
  parser.add_argument("--settings", required=True, help="JSON of `cifar10.settings`")
  arguments = parser.parse_args()
  settings = json.loads(arguments.settings)
  timm = import_timm()
  for part in ("loss", "models.vision_transformer", "optim", "scheduler"):
    importlib.import_module(f"timm.{part}")
  train = load(sorted(arguments.images.glob("data_batch_*.bin")))
  test = load([arguments.images / "test_batch.bin"])
  # Not counted, as vit_jax's calibration is not: how many steps fit.
  before = time.perf_counter()
  fit(timm, model_of(timm, settings), train, settings, steps=_CALIBRATION_STEPS)
  rate = _CALIBRATION_STEPS / (time.perf_counter() - before)
  begun = time.perf_counter()
  accuracy(model_of(timm, settings), test)
  evaluation = time.perf_counter() - begun
  not_counted = time.perf_counter() - before

  torch.manual_seed(arguments.seed)
  model = model_of(timm, settings)
  left = arguments.seconds - (before - _STARTED) - evaluation
  steps = int(left * (1 - arguments.margin) * rate)
  fit(timm, model, train, settings, steps=steps)
  found = accuracy(model, test)
  print(json.dumps({
      "accuracy": found, "steps": steps,
      "seconds": round(time.perf_counter() - _STARTED - not_counted, 1),
  }))


def model_of(timm, settings: dict):
  return timm.models.vision_transformer.VisionTransformer(
      img_size=32, patch_size=settings["patch_size"], num_classes=10,
      embed_dim=settings["width"], depth=settings["depth"], num_heads=settings["num_heads"],
      mlp_ratio=settings["mlp_dim"] / settings["width"], class_token=False, global_pool="avg",
      fc_norm=False,
  )


def load(files: list[pathlib.Path]):
  """Images uint8 `[N, 3, 32, 32]` and labels int64 `[N]` of CIFAR-10's binary files."""
  rows = np.concatenate([np.fromfile(file, np.uint8) for file in files]).reshape(-1, 1 + 3 * 32**2)
  return torch.tensor(rows[:, 1:]).view(-1, 3, 32, 32), torch.tensor(rows[:, 0]).long()


def fit(timm, model, data, settings: dict, *, steps: int) -> None:
  """Trains for so many steps."""
  images, labels = data
  batch = settings["batch_size"]
  optimizer = timm.optim.create_optimizer_v2(
      model, opt="adamw", lr=settings["learning_rate"], weight_decay=settings["weight_decay"]
  )
  schedule = timm.scheduler.CosineLRScheduler(
      optimizer, t_initial=steps, warmup_t=int(steps * settings["warmup_percent"] / 100),
      warmup_lr_init=0.0, warmup_prefix=False, t_in_epochs=False,
  )
  loss_of = timm.loss.LabelSmoothingCrossEntropy(settings["label_smoothing"])
  padded = torch.nn.functional.pad(images, [settings["padding"]] * 4)
  model.train()
  order = torch.empty(0, dtype=torch.long)
  for step in range(steps):
    if len(order) < batch:
      order = torch.cat([order, torch.randperm(len(images))])
    rows, order = order[:batch], order[batch:]
    schedule.step_update(step)
    loss = loss_of(model(augmented(padded, rows, settings["padding"])), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip_global_norm"])
    optimizer.step()
    if step % 1000 == 0:
      print(f"step {step} of {steps}: loss {loss.item():.4f}", flush=True)


def augmented(padded, rows, padding: int):
  """Windows of the padded images, every second mirrored: float32 `[B, 3, 32, 32]` in -1..1."""
  size, count = padded.shape[-1] - 2 * padding, len(rows)
  top, left = torch.randint(2 * padding + 1, (2, count, 1))
  line = torch.arange(size).expand(count, size)
  columns = torch.where(torch.rand(count, 1) < 0.5, line, line.flip(1)) + left
  picked = padded[
      rows[:, None, None, None], torch.arange(3)[None, :, None, None],
      (line + top)[:, None, :, None], columns[:, None, None, :],
  ]
  return picked.float() / 127.5 - 1


@torch.inference_mode()
def accuracy(model, data) -> float:
  images, labels = data
  model.eval()
  right = sum(
      (model(part.float() / 127.5 - 1).argmax(-1) == own).sum().item()
      for part, own in zip(images.split(500), labels.split(500))
  )
  return right / len(labels)


if __name__ == "__main__":
  main()
