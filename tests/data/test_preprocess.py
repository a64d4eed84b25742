"""The evaluation transform, judged by transformers' image processors and by Pillow."""

import json

import numpy as np
from PIL import Image
import pytest

from vit_jax.data.decode import UnreadableImage
from vit_jax.data.preprocess import Preprocessing
from vit_jax.errors import ConfigError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPES = [(64, 48), (48, 64), (33, 217), (500, 20), (32, 32), (7, 5), (1, 1), (41, 40)]


def images():
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, shape + (3,), dtype=np.uint8) for shape in SHAPES]


def processor(preprocessing: Preprocessing, kind: str):
  import transformers

  p = preprocessing
  size = dict(zip(("height", "width"), p.size))
  whole = ["shortest_edge"] if p.resize == "center" else size
  crop = {"do_center_crop": True, "crop_size": size, "size": dict.fromkeys(whole, p.short_side)}
  return getattr(transformers, kind)(
      **(crop if p.short_side else {"size": size}),
      resample={"bilinear": 2, "bicubic": 3}[p.interpolation], do_convert_rgb=True,
      image_mean=list(p.mean), image_std=list(p.std),
  )


def theirs(preprocessing, kind, pictures):
  pixels = [
      processor(preprocessing, kind)(picture, return_tensors="np")["pixel_values"][0]
      for picture in pictures
  ]
  return np.stack(pixels).transpose(0, 2, 3, 1)


@pytest.mark.torch
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind, geometry", [
    ("ViTImageProcessor", {"resize": "squash"}),
    ("BitImageProcessor", {"resize": "center", "short_side": 36}),
    ("BitImageProcessor", {"resize": "center", "short_side": 32}),
    ("CLIPImageProcessor", {"resize": "center", "short_side": 37}),
    ("DeiTImageProcessor", {"resize": "squash", "short_side": 37}),
    ("ViTImageProcessor", {"resize": "squash", "image_size": (24, 40)}),
    ("BitImageProcessor", {"resize": "center", "short_side": 41, "image_size": (40, 24)}),
    ("DeiTImageProcessor", {"resize": "squash", "short_side": 43, "image_size": (24, 40)}),
])
def test_equals_transformers(kind, geometry, interpolation):
  pytest.importorskip("transformers")
  values = {"image_size": 32, "interpolation": interpolation, "mean": MEAN, "std": STD} | geometry
  p = Preprocessing(**values)
  pictures = [Image.fromarray(image) for image in images()]
  np.testing.assert_array_equal(p(images()), theirs(p, kind, pictures))


def test_squash_is_pillows_resize():
  p = Preprocessing(image_size=24)
  for image in images():
    expected = Image.fromarray(image).resize((24, 24), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(p.resized(image), np.asarray(expected))


@pytest.mark.parametrize("resize, between", [("squash", (30, 30)), ("center", (40, 30))])
def test_what_is_cropped_is_the_centre(resize, between):
  image = images()[0]
  p = Preprocessing(image_size=[16, 24], resize=resize, short_side=30)
  whole = np.asarray(Image.fromarray(image).resize(between[::-1], Image.Resampling.BILINEAR))
  top, left = (between[0] - 16) // 2, 3
  np.testing.assert_array_equal(p.resized(image), whole[top : top + 16, left : left + 24])


def test_normalize():
  p = Preprocessing(image_size=8, mean=MEAN, std=STD)
  pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(2, 128, 3)
  out = p.normalize(pixels)
  assert out.dtype == np.float32 and out.shape == (2, 128, 3)
  exact = (pixels.astype(np.float64) / 255 - MEAN) / STD
  np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-6)


def test_paths_bytes_pillow_and_arrays_agree(tmp_path):
  image = images()[0]
  path = tmp_path / "a.png"
  Image.fromarray(image).save(path)
  p = Preprocessing(image_size=16)
  out = p([path, str(path), path.read_bytes(), Image.open(path), image])
  assert out.shape == (5, 16, 16, 3) and out.dtype == np.float32
  for other in out[1:]:
    np.testing.assert_array_equal(out[0], other)
  assert p([]).shape == (0, 16, 16, 3)
  assert Preprocessing(image_size=[8, 16])([path]).shape == (1, 8, 16, 3)
  assert Preprocessing(image_size=[8, 16])([]).shape == (0, 8, 16, 3)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_exif_is_a_key(tmp_path, orientation):
  image = Image.fromarray(images()[1])
  exif = Image.Exif()
  exif[0x0112] = orientation
  path = tmp_path / "a.jpg"
  image.save(path, exif=exif)
  turned = np.rot90(np.asarray(Image.open(path)), {1: 0, 3: 2, 6: 3}[orientation])
  for key, pixels in ((True, turned), (False, np.asarray(Image.open(path)))):
    p = Preprocessing(image_size=16, exif_orientation=key)
    expected = p([np.ascontiguousarray(pixels)])[0]
    for given in (path, path.read_bytes(), Image.open(path)):
      np.testing.assert_array_equal(p([given])[0], expected)


def test_the_json_form():
  p = Preprocessing(image_size=224, resize="center", short_side=256, mean=MEAN, std=STD)
  values = {
      "image_size": 224, "resize": "center", "short_side": 256, "interpolation": "bilinear",
      "mean": list(MEAN), "std": list(STD), "exif_orientation": True,
  }
  assert Preprocessing.from_dict(json.loads(json.dumps(values))) == p
  assert hash(Preprocessing.from_dict(values)) == hash(p)
  oblong = Preprocessing.from_dict({"image_size": [224, 320]})
  assert oblong == Preprocessing(image_size=(224, 320)) and oblong.size == (224, 320)
  assert hash(oblong) and p.size == (224, 224)


@pytest.mark.parametrize("values, text", [
    ({"size": 3}, "unknown size"), ({}, "image_size is missing"),
    ({"image_size": 8, "resize": "crop"}, "must be squash or center"),
    ({"image_size": 8, "interpolation": "nearest"}, "must be bilinear or"),
    ({"image_size": 8, "resize": "center"}, "needs a short_side"),
    ({"image_size": 8, "short_side": 7}, "smaller"),
    ({"image_size": 8, "resize": "center", "short_side": 7}, "smaller"),
    ({"image_size": [8, 16], "resize": "center", "short_side": 15}, "smaller"),
    ({"image_size": [8, 0]}, "above 0"), ({"image_size": [8, 8, 8]}, "height, width"),
    ({"image_size": "8"}, "height, width"), ({"image_size": 8.0}, "height, width"),
    ({"image_size": 8, "std": [1, 1, 0]}, "std"), ({"image_size": 8, "mean": [0.5]}, "three"),
    ({"image_size": 8, "std": [1, 1, float("nan")]}, "std is .* three finite numbers"),
    ({"image_size": 8, "mean": None}, "mean is None"), ({"image_size": 0}, "above 0"),
    ({"image_size": 8, "std": "abc"}, "std is 'abc'"),
])
def test_wrong_values(values, text):
  with pytest.raises(ConfigError, match=text):
    Preprocessing.from_dict(values)


def test_bad_input_is_named(tmp_path):
  p = Preprocessing(image_size=8)
  (tmp_path / "broken.jpg").write_bytes(b"no image")
  with pytest.raises(UnreadableImage, match="broken.jpg: not an image") as error:
    p([tmp_path / "broken.jpg"])
  assert error.value.reason.startswith("not an image")
  with pytest.raises(UnreadableImage, match="image 1: the file is empty"):
    p([images()[0], b""])
  with pytest.raises(FileNotFoundError):
    p([tmp_path / "nowhere.jpg"])
  with pytest.raises(TypeError, match="image 0 is ndarray"):
    p([np.zeros((4, 4, 3), np.float32)])
