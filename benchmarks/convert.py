"""Converting a checkpoint, verification included, against copying its file.

Makes a Hugging Face checkpoint of random weights, then in turn copies its model.safetensors
(flushed to the disk) and converts the directory with `vit-jax convert`; prints medians, their
ratio, and the peak of the conversion's host memory over the size of the weights.

    PYTHONPATH=. python benchmarks/convert.py --variant=H/14 --rounds=3
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

import machine
from vit_jax.interop import huggingface
from vit_jax.interop.tensor_table import put
from vit_jax.models.variants import variant_shape
from vit_jax.models.vit import DEFAULTS, param_shapes


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--variant", default="H/14", help="size and patch [H/14]")
  parser.add_argument("--to", default="huggingface", help="the format [huggingface]")
  parser.add_argument("--rounds", type=int, default=3, help="of copying and converting [3]")
  parser.add_argument("--directory", help="to work in, on the disk that is measured [temporary]")
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
    measure(pathlib.Path(directory), arguments)


def measure(directory, arguments):
  source = directory / "source"
  make(source, arguments.variant)
  weights = source / "model.safetensors"
  size = weights.stat().st_size
  copies, conversions, peaks = [], [], []
  for _ in range(arguments.rounds):
    copies.append(copy(weights, directory / "copy"))
    seconds, peak = convert(source, directory / "converted", arguments.to)
    conversions.append(seconds)
    peaks.append(peak)
  copied, converted = statistics.median(copies), statistics.median(conversions)
  print(f"- {machine.processor()}; medians of {arguments.rounds} interleaved rounds\n")
  print("| model | to | weights, GB | copy, s | convert, s | ratio | peak memory / weights |")
  print("| --- | --- | --- | --- | --- | --- | --- |")
  print(
      f"| {arguments.variant} | {arguments.to} | {size / 1e9:.2f} | {copied:.1f} | "
      f"{converted:.1f} | {converted / copied:.2f} | {max(peaks) / size:.2f} |"
  )


def make(directory, variant):
  """A Hugging Face checkpoint of random weights."""
  model = DEFAULTS | variant_shape(variant) | {
      "image_size": 224, "num_classes": 1000, "layer_norm_epsilon": 1e-6,
  }
  rng, params = np.random.default_rng(0), {}
  for path, shape in param_shapes(model).items():
    values = rng.standard_normal(shape, np.float32)
    values *= np.float32(0.02)
    put(params, path, values + 1 if path[-1] == "scale" else values)
  directory.mkdir()
  huggingface.write(directory, model=model, params=params, preprocessing=None, labels=None)


def copy(source, target) -> float:
  """Seconds to copy a file and flush it to the disk."""
  began = time.perf_counter()
  shutil.copyfile(source, target)
  with open(target, "rb+") as file:
    os.fsync(file.fileno())
  seconds = time.perf_counter() - began
  target.unlink()
  return seconds


def convert(source, target, to) -> tuple[float, int]:
  """Seconds and peak resident bytes of the verb in its own process."""
  began = time.perf_counter()
  command = [
      sys.executable, "-m", "vit_jax", "convert", f"--model={source}", f"--output={target}",
      f"--to={to}",
  ]
  process = subprocess.Popen(command)
  _, status, usage = os.wait4(process.pid, 0)
  seconds = time.perf_counter() - began
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise SystemExit(f"{' '.join(command)} left with {process.returncode}")
  shutil.rmtree(target)
  return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
  main()
