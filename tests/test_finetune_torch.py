"""Fine-tuning a Hugging Face directory: 100 steps of ours against a PyTorch loop."""

import json

import numpy as np
from PIL import Image
import pytest

from vit_jax import config as config_lib
from vit_jax.data.augment import TrainTransform
from vit_jax.data.bad_records import BadRecords
from vit_jax.data.folder import open_folder
from vit_jax.data.pipeline import train_batches
from vit_jax.train import train

STEPS, BATCH, SIZE = 100, 16, 32


def write_shapes(directory):
  """Three classes of gratings in noise, learnable but not at once."""
  noise = np.random.default_rng(1)
  y, x = np.mgrid[:SIZE, :SIZE]
  for name, phase in (("down", y), ("slant", x + y), ("up", x)):
    (directory / name).mkdir(parents=True)
    for i in range(24):
      wave = 127 + 60 * np.sin(phase[..., None] * 0.9 + noise.uniform(0, 6, 3))
      pixels = np.clip(wave + noise.normal(0, 30, (SIZE, SIZE, 3)), 0, 255)
      Image.fromarray(pixels.astype(np.uint8)).save(directory / name / f"{i}.png")
  return directory


@pytest.mark.slow
@pytest.mark.torch
def test_hundred_steps_equal_pytorch(tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  folder = write_shapes(tmp_path / "shapes")
  torch.manual_seed(0)
  shape = dict(
      hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
      image_size=SIZE, patch_size=8, hidden_act="gelu", layer_norm_eps=1e-6,
  )
  model = transformers.ViTForImageClassification(
      transformers.ViTConfig(**shape, num_labels=5, initializer_range=0.1)
  )
  model.save_pretrained(tmp_path / "pretrained")

  config = config_lib.load("folder", {
      "init.checkpoint": str(tmp_path / "pretrained"), "input.path": str(folder),
      "total": f"{STEPS} steps", "log_every": "1 steps", "evaluate.every": "0 steps",
      "model.dtype": "float32", "input.crop": "none", "input.flip": "False",
      "input.batch_size": str(BATCH), "optimizer.name": "sgd", "optimizer.learning_rate": "0.05",
      "optimizer.weight_decay": "0", "schedule.warmup": "10 steps",
  })
  train(config, workdir=tmp_path / "run")
  rows = [json.loads(line) for line in open(tmp_path / "run" / "metrics.jsonl")]
  ours = np.array([row["train/loss"] for row in rows])

  # The same in PyTorch: the new head starts at zero, cosine after a linear warm-up from 0.
  model.classifier = torch.nn.Linear(32, 3)
  torch.nn.init.zeros_(model.classifier.weight)
  torch.nn.init.zeros_(model.classifier.bias)
  model.train()
  optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
  batches = train_batches(
      open_folder(folder).splits["train"], batch_size=BATCH, seed=config.seed, start=0,
      shard=0, shards=1, threads=0, bad=BadRecords(),
      transform=TrainTransform(
          image_size=SIZE, crop="none", crop_min_area=1.0, crop_padding=0, flip=False,
          exif_orientation=True,
      ),
  )
  theirs = []
  for step in range(STEPS):
    rate = step / 10 if step < 10 else 0.5 * (1 + np.cos(np.pi * (step - 10) / (STEPS - 10)))
    optimizer.param_groups[0]["lr"] = 0.05 * rate
    batch = next(batches)
    pixels = torch.from_numpy((batch["image"] / 255.0 - 0.5) / 0.5).float().permute(0, 3, 1, 2)
    logits = model(pixel_values=pixels).logits
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch["label"]).long())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    theirs.append(loss.item())

  assert theirs[-1] < 0.5 * theirs[0]  # it learns, so there is something to agree about
  assert np.abs(ours - theirs).max() <= 1e-4
