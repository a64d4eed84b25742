"""Real photos as files of every kind that people have, for the tests of image processors."""

import io
from pathlib import Path
import zipfile

from PIL import Image
import pytest

_SAMPLE = Path(__file__).parents[2].parent / "shared" / "data" / "imagenet_sample_250.zip"
_ORIENTATION = 0x0112


@pytest.fixture(scope="session")
def photos() -> list[bytes]:
  """JPEGs of ImageNet's classes, of many sizes; two of them gray."""
  if not _SAMPLE.exists():
    pytest.skip(f"{_SAMPLE.name} is not at hand")
  with zipfile.ZipFile(_SAMPLE) as archive:
    data = [archive.read(name) for name in archive.namelist() if name.endswith(".JPEG")]
  gray = [x for x in data if Image.open(io.BytesIO(x)).mode == "L"]
  return data[::31] + gray[:2]


@pytest.fixture(scope="session")
def photo_files(photos, tmp_path_factory) -> dict[str, Path]:
  """Files by kind; those that end in "alpha" have transparent parts, the others have none."""
  directory = tmp_path_factory.mktemp("photos")
  pictures = [Image.open(io.BytesIO(data)) for data in photos]
  for picture in pictures:
    picture.thumbnail((300, 300))
  color, wide, gray = pictures[0], max(pictures, key=lambda p: p.width / p.height), pictures[-1]
  files = {}

  def save(kind, picture, name, **options):
    files[kind] = directory / name
    picture.save(files[kind], **options)

  for index, data in enumerate(photos):
    files[f"jpeg {index}"] = directory / f"{index}.jpg"
    files[f"jpeg {index}"].write_bytes(data)
  save("gray", gray, "gray.png")
  save("cmyk", color.convert("CMYK"), "cmyk.jpg")
  save("palette", color.quantize(64), "palette.png")
  save("gif", wide.quantize(64), "palette.gif")
  save("bilevel", gray.convert("1"), "bilevel.png")
  # Transparency that differs from pixel to pixel, on edges and inside.
  alpha = wide.convert("L").resize(color.size)
  rgba = color.convert("RGB")
  rgba.putalpha(alpha)
  save("rgba alpha", rgba, "rgba.png")
  save("gray alpha", Image.merge("LA", (alpha, alpha)), "la.png")
  save("palette alpha", color.quantize(64), "transparent.png", transparency=7)
  for orientation in range(1, 9):
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    save(f"orientation {orientation}", wide, f"turned{orientation}.jpg", exif=exif)
  return files
