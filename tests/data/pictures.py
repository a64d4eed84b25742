"""Pictures for the tests of image operations, and what other libraries make of them."""

import functools
import io
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
from PIL import Image
import pytest

PACKAGES = Path(sys.prefix) / "timm"
_SAMPLE = Path(__file__).parents[2].parent / "shared" / "data" / "imagenet_sample_250.zip"


@functools.cache
def pictures() -> dict[str, np.ndarray]:
  """Small uint8 `[H, W, 3]`: photos where there are any, noise, flat, and of few levels."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:48, :64]
  found = {
      "noise": rng.integers(0, 256, (41, 57, 3), dtype=np.uint8),
      "ramps": np.stack([y * 5, x * 4, 255 - x - y], axis=-1).astype(np.uint8),
      "flat": np.full((40, 40, 3), (3, 128, 255), np.uint8),
      "levels": rng.choice(np.array([20, 21, 200], np.uint8), (40, 60, 3)),
      "dim": rng.integers(90, 120, (50, 44, 3), dtype=np.uint8),
  }
  if _SAMPLE.exists():
    with zipfile.ZipFile(_SAMPLE) as archive:
      names = [name for name in archive.namelist() if name.endswith(".JPEG")]
      for name in names[::90]:
        picture = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
        picture.thumbnail((90, 90))
        found[f"photo{len(found)}"] = np.array(picture)
  return found


@functools.cache
def _judged() -> dict[str, np.ndarray]:
  with tempfile.TemporaryDirectory() as directory:
    images, answers = Path(directory, "images.npz"), Path(directory, "answers.npz")
    np.savez(images, **pictures())
    subprocess.run(
        [sys.executable, Path(__file__).with_name("augment_worker.py"), images, answers],
        env=os.environ | {"PYTHONPATH": str(PACKAGES), "OMP_NUM_THREADS": "1"}, check=True,
    )
    with np.load(answers) as arrays:
      return dict(arrays)


@pytest.fixture(scope="session")
def judged() -> dict[str, np.ndarray]:
  """What timm and torchvision answer; see augment_worker.py."""
  if not (PACKAGES / "timm").is_dir():
    pytest.skip(f"timm is not in {PACKAGES}; launch/test.sh puts it there")
  return _judged()
