"""preprocessor_config.json to our preprocessing and back."""

import pytest

from vit_jax.errors import CheckpointError
from vit_jax.interop.huggingface import read
from vit_jax.interop.huggingface_processor import to_preprocessing, to_processor

CENTER = {
    "image_size": 16, "resize": "center", "short_side": 20, "interpolation": "bicubic",
    "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "exif_orientation": True,
}


@pytest.mark.parametrize("changes", [
    {}, {"interpolation": "bilinear"}, {"resize": "squash", "short_side": None},
])
def test_round_trip(tmp_path, changes):
  preprocessing = CENTER | changes
  assert to_preprocessing(to_processor(preprocessing), tmp_path) == preprocessing


def test_google_files(tmp_path):
  # As google/vit-base-patch16-224 has it.
  file = {
      "do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
      "size": 224, "feature_extractor_type": "ViTFeatureExtractor", "resample": 2,
  }
  assert to_preprocessing(file, tmp_path) == {
      "image_size": 224, "resize": "squash", "short_side": None, "interpolation": "bilinear",
      "mean": [0.5] * 3, "std": [0.5] * 3, "exif_orientation": True,
  }


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
    ({"do_pad": True}, "do_pad is on"),
    ({"resample": 0}, "resample is 0"),
    ({"size": {"height": 16, "width": 20}}, "size is"),
    ({"size": {"shortest_edge": 16}}, "without a square crop"),
    ({"size": {"shortest_edge": 16}, "do_center_crop": True, "crop_size": 20}, "inside of it"),
    ({"image_processor_type": "DeiTImageProcessor"}, "a square of 256 and then crops 224"),
    ({"image_processor_type": "ConvNextImageProcessor"}, "is a ConvNextImageProcessor"),
    ({"image_mean": [0.5, 0.5]}, "not three numbers"),
])
def test_what_cannot_be_said_is_refused(tmp_path, changes, message):
  with pytest.raises(CheckpointError, match=message):
    to_preprocessing(changes, tmp_path)


def test_no_file_is_reported(export, model):
  imported = read(export(model, preprocessing=None))
  assert imported.preprocessing is None
  assert any("no preprocessor_config.json" in line for line in imported.report)
