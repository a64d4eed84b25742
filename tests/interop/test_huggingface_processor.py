"""preprocessor_config.json to our preprocessing and back; and what transformers makes of it."""

import json
import os
from pathlib import Path
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from vit_jax.data.preprocess import Preprocessing
from vit_jax.errors import CheckpointError
from vit_jax.interop.huggingface import read
from vit_jax.interop.huggingface_processor import to_preprocessing, to_processor

from photos import photo_files, photos  # pylint: disable=unused-import

CENTER = {
    "image_size": 16, "resize": "center", "short_side": 20, "interpolation": "bicubic",
    "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "exif_orientation": True,
}
GEOMETRIES = {
    "squash": {"resize": "squash", "short_side": None},
    "squash oblong": {"resize": "squash", "short_side": None, "image_size": [16, 24]},
    "squash crop": {"resize": "squash", "short_side": 19},
    "squash crop oblong": {"resize": "squash", "short_side": 29, "image_size": [24, 16]},
    "center": {},
    "center whole": {"short_side": 16},
    "center oblong": {"short_side": 24, "image_size": [16, 24]},
}
SQUARE = {"height": 20, "width": 20}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_round_trip(tmp_path, geometry, interpolation):
  preprocessing = CENTER | geometry | {"interpolation": interpolation}
  file = json.loads(json.dumps(to_processor(preprocessing)))
  assert to_preprocessing(file, tmp_path) == preprocessing
  kind = "BitImageProcessor" if preprocessing["short_side"] else "ViTImageProcessor"
  assert file["image_processor_type"] == kind


def test_a_tuple_is_written_like_a_list():
  listed = CENTER | GEOMETRIES["squash oblong"]
  assert to_processor(listed | {"image_size": (16, 24)}) == to_processor(listed)


def test_an_unknown_interpolation_is_refused():
  with pytest.raises(CheckpointError, match="'lanczos'.*bilinear, bicubic"):
    to_processor(CENTER | {"interpolation": "lanczos"})


# As facebook/deit-*, google/siglip-*, microsoft/beit-* and facebook/dinov2-* have it.
@pytest.mark.parametrize("file, expected", [
    ({"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2,
      "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
     {"image_size": 224, "resize": "squash", "short_side": None, "interpolation": "bilinear"}),
    ({"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224,
      "do_center_crop": True, "resample": 3},
     {"image_size": 224, "resize": "squash", "short_side": 256, "interpolation": "bicubic"}),
    ({"image_processor_type": "SiglipImageProcessor", "resample": 3,
      "size": {"height": 384, "width": 384}},
     {"image_size": 384, "resize": "squash", "short_side": None, "interpolation": "bicubic"}),
    ({"feature_extractor_type": "BeitFeatureExtractor", "size": 224, "crop_size": 224,
      "do_center_crop": False, "resample": 2},
     {"image_size": 224, "resize": "squash", "short_side": None, "interpolation": "bilinear"}),
    ({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "resample": 3,
      "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
     {"image_size": 224, "resize": "center", "short_side": 256, "interpolation": "bicubic"}),
    ({"image_processor_type": "ViTImageProcessorFast", "size": [20, 30]},
     {"image_size": [20, 30], "resize": "squash", "short_side": None}),
    ({"image_processor_type": "CLIPImageProcessorPil", "size": SQUARE, "crop_size": [16, 20]},
     {"image_size": [16, 20], "resize": "squash", "short_side": 20}),
])
def test_published_files(tmp_path, file, expected):
  assert to_preprocessing(file, tmp_path).items() >= expected.items()


def test_silent_files_mean_the_processors_defaults(tmp_path):
  squash = to_preprocessing({}, tmp_path)
  assert (squash["resize"], squash["image_size"], squash["mean"]) == ("squash", 224, [0.5] * 3)
  center = to_preprocessing({"image_processor_type": "CLIPImageProcessorFast"}, tmp_path)
  assert center == {
      "image_size": 224, "resize": "center", "short_side": 224, "interpolation": "bicubic",
      "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711],
      "exif_orientation": True,
  }


def test_other_pixel_ranges_are_folded_into_mean_and_std(tmp_path):
  # (p - 100) / 50 on 0..255 is (p / 255 - 100 / 255) / (50 / 255).
  raw = to_preprocessing(
      {"do_rescale": False, "image_mean": 100.0, "image_std": [50.0] * 3}, tmp_path
  )
  assert raw["mean"] == pytest.approx([100 / 255] * 3)
  assert raw["std"] == pytest.approx([50 / 255] * 3)
  plain = to_preprocessing({"do_normalize": False}, tmp_path)
  assert (plain["mean"], plain["std"]) == ([0.0] * 3, [1.0] * 3)


@pytest.mark.parametrize("changes, message", [
    ({"do_resize": False}, "do_resize is off"),
    ({"do_pad": True}, "do_pad is True"),
    ({"resample": 0}, "resample is 0"),
    ({"size": {"height": 16}}, "size is"),
    ({"size": {"height": 16.5, "width": 16}}, "size is"),
    ({"size": {"shortest_edge": 16, "longest_edge": 20}}, "size is"),
    ({"size": [16, 16, 16]}, "size is"),
    ({"size": "224"}, "size is"),
    ({"size": {"shortest_edge": 16}}, "the short side to 16 without a centre crop"),
    ({"image_processor_type": "SiglipImageProcessor", "size": 16}, "without a centre crop"),
    ({"size": {"shortest_edge": 16}, "do_center_crop": True, "crop_size": 20}, "is smaller"),
    ({"size": {"shortest_edge": 16}, "do_center_crop": True, "crop_size": [8, 20]}, "is smaller"),
    ({"do_center_crop": True}, "crop_size is None"),
    ({"do_center_crop": True, "crop_size": {"shortest_edge": 9}}, "crop_size is"),
    ({"size": {"height": 16, "width": 20}, "do_center_crop": True, "crop_size": 16},
     "and then crops 16"),
    ({"image_processor_type": "ConvNextImageProcessor"}, "a ConvNextImageProcessor, which crops"),
    ({"image_processor_type": "Siglip2ImageProcessorFast"}, "as many patches as its aspect"),
    ({"image_processor_type": "MobileViTImageProcessor"}, "is a MobileViTImageProcessor."),
    ({"crop_pct": 0.875}, "crop_pct is 0.875"),
    ({"image_mean": [0.5, 0.5]}, "not three numbers"),
    ({"image_mean": "half"}, "not three numbers"),
])
def test_what_cannot_be_said_is_refused(tmp_path, changes, message):
  with pytest.raises(CheckpointError, match=message):
    to_preprocessing(changes, tmp_path)


def test_no_file_is_reported(export, model):
  imported = read(export(model, preprocessing=None))
  assert imported.preprocessing is None
  assert any("no preprocessor_config.json" in line for line in imported.report)


def write(directory, file):
  (directory / "preprocessor_config.json").write_text(json.dumps(file))


def difference(preprocessing, path, theirs):
  """Largest difference of a pixel in 0..1 between our transform of a file and theirs, [3, H, W]."""
  ours = Preprocessing.from_dict(preprocessing)([path])[0]
  return np.abs((ours - theirs.transpose(1, 2, 0)) * np.float32(preprocessing["std"])).max()


def opened(kind: str, path: Path):
  """What transformers is given: a path, which it opens and turns upright by itself.  Of pictures
  with transparency the opened ones, because its way of opening drops it: only its processors lay
  them on white, as we do."""
  return Image.open(path) if kind.endswith("alpha") else str(path)


@pytest.mark.torch
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_transformers_does_the_same_to_every_kind_of_file(tmp_path, photo_files, geometry):
  transformers = pytest.importorskip("transformers")
  preprocessing = CENTER | geometry
  write(tmp_path, to_processor(preprocessing))
  processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
  # Without torchvision, which resizes a little differently, every pixel is the same.
  tolerance = 0 if processor.backend == "pil" else 1 / 255
  for kind, path in photo_files.items():
    theirs = processor(opened(kind, path), return_tensors="np")["pixel_values"][0]
    assert difference(preprocessing, path, theirs) <= tolerance, kind


@pytest.mark.torch
@pytest.mark.parametrize("size", [224, 384])
def test_transformers_does_the_same_at_the_usual_sizes(tmp_path, photo_files, size):
  transformers = pytest.importorskip("transformers")
  preprocessing = CENTER | {"image_size": size, "short_side": size * 8 // 7}
  write(tmp_path, to_processor(preprocessing))
  processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
  path = photo_files["jpeg 1"]
  theirs = processor(str(path), return_tensors="np")["pixel_values"][0]
  assert difference(preprocessing, path, theirs) <= (0 if processor.backend == "pil" else 1 / 255)


@pytest.mark.torch
@pytest.mark.parametrize("kind, settings", [
    ("ViT", {}), ("ViT", {"size": {"height": 40, "width": 24}}),
    ("DeiT", {"size": SQUARE, "crop_size": {"height": 16, "width": 12}}),
    ("DeiT", {}), ("DeiT", {"do_center_crop": False}),
    ("Bit", {}), ("Bit", {"size": {"shortest_edge": 40}, "crop_size": 24}),
    ("CLIP", {}), ("CLIP", {"size": 40, "crop_size": {"height": 24, "width": 32}}),
    ("CLIP", {"size": SQUARE, "crop_size": 15}),
    ("Siglip", {}), ("Siglip", {"size": {"height": 20, "width": 28}, "resample": 2}),
    ("Beit", {}), ("Beit", {"size": 20, "do_center_crop": True, "crop_size": 16}),
    ("Siglip", {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}),
])
def test_we_do_as_every_processor_does(tmp_path, photo_files, kind, settings):
  """Files with all values, as transformers saves them, and with nothing but what differs."""
  transformers = pytest.importorskip("transformers")
  settings = {"do_convert_rgb": True} | settings
  write(tmp_path, {"image_processor_type": f"{kind}ImageProcessor"} | settings)
  processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
  assert type(processor).__name__.startswith(kind)
  saved = tmp_path / "saved"
  processor.save_pretrained(saved)
  read_back = []
  for directory in (tmp_path, saved):
    file = directory / "preprocessor_config.json"
    read_back.append(to_preprocessing(json.loads(file.read_text()), file))
  assert read_back[0] == read_back[1]
  # Where 1/255 is folded into mean and std, the roundings are others.
  tolerance = 1e-6 if processor.backend == "pil" else 1 / 255
  for name in ("jpeg 0", "orientation 6", "gray"):
    theirs = processor(str(photo_files[name]), return_tensors="np")["pixel_values"][0]
    assert difference(read_back[0], photo_files[name], theirs) <= tolerance


@pytest.mark.legacy
def test_transformers_4_does_the_same(tmp_path, photo_files):
  packages = Path(sys.prefix) / "transformers4"
  if not packages.is_dir():
    pytest.skip(f"{packages} is not there; launch/test.sh --all makes it")
  kinds = ("jpeg 0", "jpeg 3", "gray", "palette")
  images = {kind: np.asarray(Image.open(photo_files[kind]).convert("RGB")) for kind in kinds}
  images["gray"] = np.asarray(Image.open(photo_files["gray"]))
  np.savez(tmp_path / "images.npz", **images)
  directories = [tmp_path / name for name in GEOMETRIES]
  for directory, geometry in zip(directories, GEOMETRIES.values()):
    directory.mkdir()
    write(directory, to_processor(CENTER | geometry))
  subprocess.run(
      [sys.executable, Path(__file__).with_name("transform_worker.py"), "transformers",
       tmp_path / "images.npz", *directories],
      check=True, env={**os.environ, "PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1"},
  )
  for directory, geometry in zip(directories, GEOMETRIES.values()):
    ours = Preprocessing.from_dict(CENTER | geometry)
    with np.load(f"{directory}.npz") as theirs:
      for kind in kinds:
        np.testing.assert_array_equal(theirs[kind], ours([photo_files[kind]])[0])
