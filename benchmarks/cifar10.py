"""CIFAR-10 from scratch on the CPU: configs/cifar10_scratch.py and timm, for equally long.

Both train a ViT of the same size on the same images, for the same wall time, which begins with the
process: imports, compilation and the final evaluation of all 10 000 test images are within it.  How
many steps fit is measured before, by a short run of the same program; a run that took longer all
the same, for the machine slowed down, does not count and is repeated.  timm trains with the same
hyper-parameters (cifar10_timm.py).  What differs: the implementation, how many steps it does, its
initialisation, and its positions, which are learned, for its VisionTransformer has no other.

    PYTHONPATH=. python benchmarks/cifar10.py --images=DIR --minutes=30 --seeds=0,1,2 \\
        --peers-python=PATH

DIR is cifar-10-batches-bin, the unpacked binary version of CIFAR-10.  Appends a JSON line for each
run to --log, and prints a markdown table of all that it holds.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import machine
from vit_jax import config as config_lib

_HERE = pathlib.Path(__file__).parent
_CALIBRATION_STEPS = 300
# Of both sides: activations in huge pages; else much of the time goes into page faults.
_ENVIRONMENT = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
# A device a core, as the recipe's docstring advises.
_OURS = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={os.cpu_count()}",
}
# Of the time that is left when the steps are chosen, what is not planned for: a neighbour may come.
_MARGIN = 0.08


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--images", required=True, type=pathlib.Path)
  parser.add_argument("--minutes", type=float, default=30, help="of each run [30]")
  parser.add_argument("--seeds", default="0,1,2", help="[0,1,2]")
  parser.add_argument("--sides", default="vit_jax,timm", help="[vit_jax,timm]")
  parser.add_argument("--peers-python", default=sys.executable, help="has torch, timm and Pillow")
  parser.add_argument(
      "--runs", type=pathlib.Path, help="keep vit_jax's runs there, seedN each, in place of any"
  )
  parser.add_argument("--log", type=pathlib.Path, default=_HERE / "cifar10.jsonl")
  arguments = parser.parse_args()
  for seed in map(int, arguments.seeds.split(",")):
    for side in arguments.sides.split(","):
      result = within(
          {"vit_jax": ours, "timm": theirs}[side], arguments, seed, 60 * arguments.minutes
      )
      result |= {"side": side, "seed": seed, "minutes": arguments.minutes}
      result |= {"date": time.strftime("%Y-%m-%d"), "processor": machine.processor()}
      print(json.dumps(result), flush=True)
      with arguments.log.open("a") as file:
        file.write(json.dumps(result) + "\n")
  print(table([json.loads(line) for line in arguments.log.read_text().splitlines()]))


def within(train, arguments, seed: int, seconds: float) -> dict:
  """The first result of a side that took no longer than it may."""
  while (result := train(arguments, seed, seconds))["seconds"] > seconds:
    print(f"took {result['seconds']:.0f} s, allowed are {seconds:.0f} s: again", flush=True)
  return result


def ours(arguments, seed: int, seconds: float) -> dict:
  """Trains `cifar10_scratch` by the command line."""
  with tempfile.TemporaryDirectory() as directory:
    start_up, rate = _calibrate(arguments, pathlib.Path(directory) / "calibration")
    steps = int((seconds - start_up) * (1 - _MARGIN) * rate)
    workdir = (arguments.runs or pathlib.Path(directory)) / f"seed{seed}"
    shutil.rmtree(workdir, ignore_errors=True)
    started = time.perf_counter()
    _train(arguments, workdir, steps, seed)
    took = time.perf_counter() - started
    last = _lines(workdir)[-1]
    return {"accuracy": last["eval/test/accuracy"], "steps": steps, "seconds": round(took, 1)}


def _calibrate(arguments, workdir: pathlib.Path) -> tuple[float, float]:
  """Seconds that a run takes beside its steps, and steps a second."""
  started = time.perf_counter()
  _train(arguments, workdir, _CALIBRATION_STEPS, seed=0)
  took = time.perf_counter() - started
  rates = [line["train/images_per_second"] for line in _lines(workdir)
           if "train/images_per_second" in line]
  rate = statistics.median(rates) / settings()["batch_size"]
  return took - _CALIBRATION_STEPS / rate, rate


def _train(arguments, workdir: pathlib.Path, steps: int, seed: int) -> None:
  subprocess.run(
      [
          sys.executable, "-m", "vit_jax", "train", "--config=cifar10_scratch",
          f"--workdir={workdir}", f"--config.seed={seed}",
          f"--config.input.path={arguments.images}",
          f"--config.total={steps} steps", f"--config.evaluate.every={steps} steps",
          "--config.log_every=50 steps",
      ],
      check=True, stdout=subprocess.DEVNULL, env=_ENVIRONMENT | _OURS,
  )


def _lines(workdir: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def theirs(arguments, seed: int, seconds: float) -> dict:
  """Trains timm's model in a process of its own."""
  done = subprocess.run(
      [
          arguments.peers_python, str(_HERE / "cifar10_timm.py"), f"--images={arguments.images}",
          f"--seconds={seconds}", f"--seed={seed}", f"--settings={json.dumps(settings())}",
          f"--margin={_MARGIN}",
      ],
      check=True, stdout=subprocess.PIPE, text=True, env=_ENVIRONMENT,
  )
  return json.loads(done.stdout.splitlines()[-1])


def settings() -> dict:
  """What timm's side needs to know of the recipe."""
  config = config_lib.load("cifar10_scratch")
  model, optimizer = config.model, config.optimizer
  return {
      "width": model.width, "depth": model.depth, "mlp_dim": model.mlp_dim,
      "num_heads": model.num_heads, "patch_size": int(model.variant.partition("/")[2]),
      "batch_size": config.input.batch_size, "padding": config.input.crop_padding,
      "learning_rate": optimizer.learning_rate, "weight_decay": optimizer.weight_decay,
      "clip_global_norm": optimizer.clip_global_norm,
      "label_smoothing": config.batch_ops.label_smoothing,
      "warmup_percent": float(config.schedule.warmup.partition(" ")[0]),
  }


def table(results: list[dict]) -> str:
  """Mean and range of each side over its seeds."""
  rows = ["| trained by | minutes | seeds | accuracy, mean | lowest | highest | steps |",
          "| --- | --- | --- | --- | --- | --- | --- |"]
  for side, minutes in dict.fromkeys((result["side"], result["minutes"]) for result in results):
    own = [r for r in results if (r["side"], r["minutes"]) == (side, minutes)]
    accuracies = [result["accuracy"] for result in own]
    rows.append(
        f"| {side} | {minutes:g} | {len(own)} | {statistics.mean(accuracies):.2%} | "
        f"{min(accuracies):.2%} | {max(accuracies):.2%} | "
        f"{statistics.mean(result['steps'] for result in own):.0f} |"
    )
  return "\n".join(rows)


if __name__ == "__main__":
  main()
