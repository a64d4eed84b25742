"""timm's pretrained_cfg to our preprocessing and back; and what timm itself makes of it."""

import json
import math
import os
from pathlib import Path
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from vit_jax.data.preprocess import Preprocessing
from vit_jax.errors import CheckpointError
from vit_jax.interop.timm_preprocessing import from_timm_pretrained_cfg, timm_pretrained_cfg

from photos import photo_files, photos  # pylint: disable=unused-import

SQUASH = {
    "image_size": 32, "resize": "squash", "short_side": None, "interpolation": "bilinear",
    "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "exif_orientation": True,
}
OURS = {
    "squash": SQUASH,
    "squash oblong": SQUASH | {"image_size": [24, 40], "interpolation": "bicubic"},
    "squash crop": SQUASH | {"short_side": 37},
    "center": SQUASH | {"resize": "center", "short_side": 36, "interpolation": "bicubic"},
    "center whole": SQUASH | {"resize": "center", "short_side": 32},
    "center of 33": SQUASH | {"resize": "center", "image_size": 33, "short_side": 37},
    "center of 224": SQUASH | {"resize": "center", "image_size": 224, "short_side": 248},
}
THEIRS = {
    "augreg": {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.9,
               "mean": [0.5] * 3, "std": [0.5] * 3},
    "silent": {"num_classes": 1000},
    # 71 - 64 is 7: timm crops one pixel later than we do, whatever the image.
    "later": {"input_size": [3, 64, 64], "interpolation": "bicubic", "crop_pct": 0.9,
               "crop_mode": "squash"},
    "false": {"input_size": [3, 64, 64], "crop_pct": None, "crop_mode": "", "mean": None},
}


@pytest.mark.parametrize("preprocessing", OURS.values(), ids=OURS)
def test_round_trip(preprocessing):
  cfg = json.loads(json.dumps(timm_pretrained_cfg(preprocessing)))
  assert from_timm_pretrained_cfg(cfg) == preprocessing


def test_every_size_comes_back():
  for size in range(32, 641):
    for short in {size, size + 1, round(size * 8 / 7), round(size / 0.9), round(size * 1.37)}:
      cfg = timm_pretrained_cfg(
          SQUASH | {"resize": "center", "image_size": size, "short_side": short}
      )
      assert math.floor(size / cfg["crop_pct"]) == short, (size, short)
      assert from_timm_pretrained_cfg(cfg)["short_side"] == short


@pytest.mark.parametrize("size, short, expected", [
    (224, 256, 0.875), (224, 248, 0.9), (384, 384, 1.0), (384, 426, 0.9), (224, 235, 0.95),
])
def test_crop_pct_is_what_people_write(size, short, expected):
  cfg = timm_pretrained_cfg(SQUASH | {"resize": "center", "image_size": size, "short_side": short})
  assert cfg["crop_pct"] == expected


def test_silence_means_timms_defaults():
  assert from_timm_pretrained_cfg({}) == {
      "image_size": 224, "resize": "center", "short_side": 256, "interpolation": "bicubic",
      "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "exif_orientation": True,
  }


@pytest.mark.parametrize("changes, message", [
    ({"crop_mode": "border"}, "crop_mode .* is 'border'"),
    ({"interpolation": "random"}, "interpolation .* is 'random'"),
    ({"crop_pct": 1.1}, "crop_pct .* is 1.1, above 1"),
    ({"input_size": [1, 32, 32]}, "3 channels"), ({"input_size": [32, 32]}, "not three numbers"),
    ({"input_size": [3, 32, 64], "crop_pct": 1.0}, "only a square"),
    ({"input_size": [3, 32, 64], "crop_mode": "squash"}, "cover 36 x 73 pixels"),
    ({"mean": [0.5]}, "mean .* not three"), ({"std": 3}, "std .* not three"),
])
def test_what_cannot_be_said_is_refused(changes, message):
  with pytest.raises(CheckpointError, match=message) as error:
    from_timm_pretrained_cfg(changes, Path("dir/config.json"))
  assert "dir/config.json" in str(error.value)


@pytest.mark.parametrize("resize", ["center", "squash"])
def test_a_crop_that_is_no_square_cannot_be_written(resize):
  with pytest.raises(CheckpointError, match="crops 24 x 40 pixels out of images resized to 48"):
    timm_pretrained_cfg(SQUASH | {"resize": resize, "image_size": [24, 40], "short_side": 48})


@pytest.fixture(scope="module")
def timm_answers(tmp_path_factory, photo_files):
  """timm's evaluation of RGB images, by the name of a pretrained_cfg above and of the image."""
  packages = Path(sys.prefix) / "timm"
  if not packages.is_dir():
    pytest.skip(f"timm is not in {packages}; launch/test.sh puts it there")
  directory = tmp_path_factory.mktemp("timm")
  images = {
      name: np.asarray(Image.open(path).convert("RGB"))
      for name, path in photo_files.items() if name.startswith("jpeg")
  }
  rng = np.random.default_rng(0)
  for height, width in [(64, 48), (33, 217), (40, 41), (7, 5)]:
    images[f"{height} x {width}"] = rng.integers(0, 256, (height, width, 3), np.uint8)
  np.savez(directory / "images.npz", **images)
  cfgs = {name: timm_pretrained_cfg(values) for name, values in OURS.items()} | THEIRS
  for name, cfg in cfgs.items():
    (directory / name).write_text(json.dumps(cfg))
  subprocess.run(
      [sys.executable, Path(__file__).with_name("transform_worker.py"), "timm",
       directory / "images.npz", *(directory / name for name in cfgs)],
      check=True, env={**os.environ, "PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1"},
  )
  answers = {}
  for name in cfgs:
    with np.load(directory / f"{name}.npz") as arrays:
      answers[name] = dict(arrays)
  return images, answers


@pytest.mark.torch
@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_timm_does_the_same(timm_answers, name):
  images, answers = timm_answers
  values = OURS[name] if name in OURS else from_timm_pretrained_cfg(THEIRS[name])
  ours = Preprocessing.from_dict(values)
  exact = 0
  for key, image in images.items():
    theirs = answers[name][key] * np.float32(ours.std)
    mine = ours([image])[0] * np.float32(ours.std)
    odd = [cropped % 4 == 3 for cropped in _cropped(ours, image)]
    # Where timm rounds half a pixel up, its crop begins one pixel later.
    shared = tuple(slice(1, None) if x else slice(None) for x in odd)
    earlier = tuple(slice(None, -1) if x else slice(None) for x in odd)
    np.testing.assert_allclose(mine[shared], theirs[earlier], atol=1e-6, rtol=0, err_msg=key)
    exact += not any(odd)
  assert exact >= 2 or name == "later"


def _cropped(preprocessing, image):
  """How many rows and columns are cropped away."""
  height, width = preprocessing.size
  rows, columns = preprocessing.short_side or height, preprocessing.short_side or width
  if preprocessing.resize == "center":
    long = int(preprocessing.short_side * max(image.shape[:2]) / min(image.shape[:2]))
    rows, columns = (long, columns) if image.shape[0] >= image.shape[1] else (rows, long)
  return rows - height, columns - width
