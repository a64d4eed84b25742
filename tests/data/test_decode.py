"""Decoding, judged by Pillow and by libjpeg's own bits."""

import io
import struct
import threading
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
import pytest

from vit_jax.data import decode as decode_module
from vit_jax.data import turbojpeg
from vit_jax.data.decode import UnreadableImage, decode, decode_part

SAMPLE = Path(__file__).parents[2].parent / "shared" / "data" / "imagenet_sample_250.zip"


def picture(height=97, width=131, seed=0):
  noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
  return Image.fromarray(cv2.GaussianBlur(noise, (7, 7), 0))


def encoded(image, kind, **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def pillow(data):
  return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_equals_pillow(subsampling, progressive):
  data = encoded(picture(), "JPEG", subsampling=subsampling, progressive=progressive)
  pixels = decode(data, exif_orientation=True)
  assert pixels.dtype == np.uint8
  np.testing.assert_array_equal(pixels, pillow(data))


@pytest.mark.parametrize("mode, kind", [
    ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("L", "PNG"), ("1", "PNG"), ("P", "PNG"),
    ("RGB", "BMP"), ("RGB", "WEBP"), ("P", "GIF"),
    ("RGB", "TIFF"), ("CMYK", "TIFF"), ("RGB", "PPM"),
])
def test_every_mode_and_format_equals_pillow(mode, kind):
  data = encoded(picture().convert(mode), kind)
  pixels = decode(data, exif_orientation=False)
  assert pixels.shape == (97, 131, 3) and pixels.dtype == np.uint8
  np.testing.assert_array_equal(pixels, pillow(data))


def transparent(mode: str) -> bytes:
  """A PNG whose pixels fade out, or whose palette has a transparent entry."""
  if mode == "P":
    return encoded(picture().quantize(16), "PNG", transparency=3)
  image = picture().convert(mode)
  image.putalpha(Image.linear_gradient("L").resize(image.size))
  return encoded(image, "PNG")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_white(mode):
  image = Image.open(io.BytesIO(transparent(mode))).convert("RGBA")
  pixels = np.asarray(image).astype(np.float64)
  opacity = pixels[..., 3:] / 255
  on_white = pixels[..., :3] * opacity + 255 * (1 - opacity)
  found = decode(transparent(mode), exif_orientation=True)
  assert np.abs(found - on_white).max() <= 1


@pytest.mark.torch
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_as_transformers(mode):
  transforms = pytest.importorskip("transformers.image_transforms")
  theirs = transforms.convert_to_rgb(
      Image.open(io.BytesIO(transparent(mode))), return_numpy=True
  )
  np.testing.assert_array_equal(decode(transparent(mode), exif_orientation=True), theirs)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_keeps_its_high_byte(kind):
  gray = np.random.default_rng(0).integers(0, 65536, (20, 30)).astype(np.uint16)
  pixels = decode(encoded(Image.fromarray(gray), kind), exif_orientation=True)
  np.testing.assert_array_equal(pixels, np.repeat((gray // 256)[..., None], 3, axis=-1))


def test_animation_gives_its_first_frame():
  frames = [picture(seed=i).quantize(64) for i in range(3)]
  data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
  np.testing.assert_array_equal(decode(data, exif_orientation=True), pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind, mode", [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"),
                                        ("PNG", "RGB")])
def test_exif_orientation(orientation, kind, mode):
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encoded(picture(40, 60).convert(mode), kind, exif=exif)
  upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  np.testing.assert_array_equal(
      decode(data, exif_orientation=True), np.asarray(upright.convert("RGB"))
  )
  assert decode(data, exif_orientation=False).shape == (40, 60, 3)
  np.testing.assert_array_equal(decode(data, exif_orientation=False), pillow(data))


def test_orientations_that_do_not_exist_are_ignored():
  for tag in (0, 9, 4711):
    exif = Image.Exif()
    exif[0x0112] = tag
    data = encoded(picture(), "JPEG", exif=exif)
    np.testing.assert_array_equal(decode(data, exif_orientation=True), pillow(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_truncated(kind, share):
  data = encoded(picture(), kind)
  with pytest.raises(UnreadableImage) as error:
    decode(data[: int(share * len(data))], exif_orientation=True)
  assert error.value.reason


@pytest.mark.parametrize("missing", [1, 2, 3, 20, 200])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_without_its_end(missing, progressive):
  # A thumbnail in the EXIF data has an end marker of its own, which must not be mistaken.
  exif = Image.Exif()
  exif[0x927C] = encoded(picture(20, 20), "JPEG")
  data = encoded(picture(), "JPEG", progressive=progressive, exif=exif)
  decode(data, exif_orientation=True)
  with pytest.raises(UnreadableImage, match="truncated"):
    decode(data[:-missing], exif_orientation=True)


@pytest.mark.parametrize("data, reason", [
    (b"", "empty"), (b"hello, world", "not an image"), (b"\xff\xd8\xff\xe0 no JPEG", "."),
    (b"\x89PNG\r\n\x1a\n" + bytes(50), "."), (b"\xff\xd8\xff", "."),
])
def test_what_is_no_image(data, reason):
  with pytest.raises(UnreadableImage, match=reason):
    decode(data, exif_orientation=True)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_size_limit(monkeypatch, kind):
  data = encoded(picture(100, 101), kind)
  monkeypatch.setattr(decode_module, "MAX_PIXELS", 100 * 101)
  decode(data, exif_orientation=True)
  monkeypatch.setattr(decode_module, "MAX_PIXELS", 100 * 101 - 1)
  with pytest.raises(UnreadableImage, match="limit"):
    decode(data, exif_orientation=True)


def test_a_bomb_is_refused_unopened(monkeypatch):
  # 20000 x 20000 of one colour: some kilobytes of PNG, 1.2 GB of pixels.
  header = encoded(Image.new("L", (20000, 1)), "PNG")
  at = header.index(b"IHDR")
  body = b"IHDR" + struct.pack(">II", 20000, 20000) + header[at + 12 : at + 17]
  data = header[:at] + body + struct.pack(">I", zlib.crc32(body)) + header[at + 21 :]
  for pillows_own in (Image.MAX_IMAGE_PIXELS, None):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_own)
    with pytest.raises(UnreadableImage, match="limit"):
      decode(data, exif_orientation=True)


def test_threads_agree():
  data = [encoded(picture(seed=i), "JPEG") for i in range(8)]
  expected = [pillow(d) for d in data]
  wrong = []

  def work():
    for _ in range(5):
      for d, e in zip(data, expected):
        if not np.array_equal(decode(d, exif_orientation=True), e):
          wrong.append(1)

  threads = [threading.Thread(target=work) for _ in range(4)]
  [t.start() for t in threads]
  [t.join() for t in threads]
  assert not wrong


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"{SAMPLE.name} is not at hand")
def test_imagenet_sample_equals_pillow():
  with zipfile.ZipFile(SAMPLE) as archive:
    names = [n for n in archive.namelist() if n.endswith("JPEG")][::5]
    assert len(names) >= 50
    for name in names:
      data = archive.read(name)
      np.testing.assert_array_equal(decode(data, exif_orientation=True), pillow(data), name)


def boxes(height, width, count, seed=0):
  """Random boxes, some of which touch the borders."""
  rng = np.random.default_rng(seed)
  for _ in range(count):
    top, left = (int(rng.integers(0, side)) * int(rng.integers(2)) for side in (height, width))
    yield top, left, int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1))


@pytest.mark.skipif(turbojpeg._library() is None, reason="no libturbojpeg 3 for this machine")
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "gray"])
def test_parts_equal_the_whole(subsampling, progressive):
  image = picture().convert("L") if subsampling == "gray" else picture()
  options = {} if subsampling == "gray" else {"subsampling": subsampling}
  data = encoded(image, "JPEG", progressive=progressive, **options)
  whole = pillow(data)
  for top, left, height, width in boxes(*whole.shape[:2], count=60):
    part = turbojpeg.decode_part(data, (top, left, height, width), size=whole.shape[:2])
    np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_part_of_a_turned_photo(monkeypatch, orientation, library):
  if not library:
    monkeypatch.setattr(turbojpeg, "_library", lambda: None)
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encoded(picture(), "JPEG", exif=exif)
  whole = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
  for box in boxes(*whole.shape[:2], count=10, seed=orientation):
    asked = []
    part = decode_part(data, lambda *size: asked.append(size) or box, exif_orientation=True)
    assert asked == [whole.shape[:2]]
    top, left, height, width = box
    np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("at_least, reduction", [(12, 8), (13, 4), (24, 4), (25, 2), (49, 1)])
def test_large_photos_are_decoded_at_a_fraction(monkeypatch, orientation, at_least, reduction):
  """Judged by Pillow's draft mode, whose fractions are libjpeg's, and by averages of pixels."""
  exif = Image.Exif()
  exif[0x0112] = orientation
  photo = picture(161, 203)
  data = encoded(photo, "JPEG", exif=exif, subsampling=0, quality=95)
  box = (16, 40, 96, 104) if orientation == 1 else (40, 16, 104, 96)
  with Image.open(io.BytesIO(data)) as image:
    image.draft("RGB", (203 // reduction, 161 // reduction))
    assert image.size == (-(-203 // reduction), -(-161 // reduction))
    draft = np.asarray(ImageOps.exif_transpose(image))
  top, left, height, width = (x // reduction for x in box)
  draft = draft[top : top + height, left : left + width]
  for library in (turbojpeg._library, lambda: None):
    monkeypatch.setattr(turbojpeg, "_library", library)
    part = decode_part(data, lambda *_: box, exif_orientation=True, at_least=at_least)
    np.testing.assert_array_equal(part, draft)
  if orientation == 1:  # else the blocks that are averaged begin at another border
    blocks = np.asarray(photo).astype(int)[16:112, 40:144]
    blocks = blocks.reshape(height, reduction, width, reduction, 3).mean((1, 3))
    assert np.abs(part - blocks).mean() < 3


def judgements(data: bytes, box):
  """Pixels of a box, or why there are none, with libturbojpeg and without."""
  for library in (turbojpeg._library, lambda: None):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(turbojpeg, "_library", library)
      try:
        yield decode_part(data, lambda *_: box, exif_orientation=True)
      except UnreadableImage as error:
        yield error.reason


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_file_is_unreadable_wherever_the_crop_lies(progressive):
  data = encoded(picture(), "JPEG", progressive=progressive)
  for at in np.random.default_rng(0).integers(2, len(data), 60):
    ours, whole = judgements(data[:at], (0, 0, 20, 30))
    assert isinstance(ours, str) and ours == whole


@pytest.mark.parametrize("length", [1, 2, 30])
def test_damage_before_the_end_of_the_crop_is_judged_as_in_the_whole(length):
  data, rng, unreadable = encoded(picture(), "JPEG"), np.random.default_rng(length), 0
  for at in rng.integers(2, len(data) - 32, 150):
    broken = data[:at] + rng.bytes(length) + data[at + length :]
    ours, whole = judgements(broken, (60, 40, 37, 50))  # down to the last row
    np.testing.assert_array_equal(ours, whole)
    unreadable += isinstance(ours, str)
  assert 0 < unreadable < 150


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"{SAMPLE.name} is not at hand")
@pytest.mark.skipif(turbojpeg._library() is None, reason="no libturbojpeg 3 for this machine")
def test_parts_of_the_imagenet_sample():
  with zipfile.ZipFile(SAMPLE) as archive:
    files = [archive.read(n) for n in archive.namelist() if n.endswith("JPEG")][1::5]
  decoded = 0
  for seed, data in enumerate(files):
    whole = pillow(data)
    for box in boxes(*whole.shape[:2], count=3, seed=seed):
      top, left, height, width = box
      part = turbojpeg.decode_part(data, box, size=whole.shape[:2])
      decoded += part is not None
      if part is not None:
        np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])
  assert decoded >= 3 * len(files) - 6
