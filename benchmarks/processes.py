"""What the host does in each step, by the number of processes that train together.

    PYTHONPATH=. python benchmarks/processes.py [--processes=1,2,4] [--rounds=12] [--steps=40]

Each group of processes trains the quickstart's model, connected by gloo over the loopback; each
process has two CPU devices and 32 images a step, however many there are.  Groups take turns, in
alternating order, and sleep otherwise.  Figures are medians over all steps, as process 0 sees them:
the time to put a batch on the devices, the time until the call of the step returns, and the CPU
time of the main thread in both, which waiting for a core does not lengthen.  The time of the whole
step is no measure of anything here: the processes compute on the same cores.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time

from machine import OtherWork, machine_notes

_HERE = pathlib.Path(__file__).parent
_DEVICES, _IMAGES = 2, 32  # of a process
_COLUMNS = (
    ("put", "put a batch, ms"), ("call", "step call, ms"), ("host", "both, ms"),
    ("cpu", "CPU time of both, ms"), ("step", "whole step, ms"),
)


class Contestant:
  """One process of a group, run by `worker.py`."""

  def __init__(self, job):
    import jax

    from vit_jax import config as config_lib
    from vit_jax.parallel.memory import device_bytes
    from vit_jax.parallel import mesh, processes
    from vit_jax.plan import make_plan
    from vit_jax.resolve import resolve

    processes.start(
        coordinator=job["coordinator"], processes=job["processes"], process=job["process"]
    )
    images = str(_IMAGES * job["processes"])
    config = config_lib.load(
        "quickstart", {"input.batch_size": images}
    )
    config = resolve(config, checkpoint=None, platform=jax.default_backend())
    plan = make_plan(
        config, examples=1438, num_classes=10, device_bytes=device_bytes(jax.local_devices()[0])
    )
    self._state = jax.jit(plan.init, out_shardings=plan.state_shardings)(plan.init_key)
    self._key = jax.jit(lambda key: key, out_shardings=mesh.replicated(plan.mesh))(plan.step_key)
    self._step, self._put = plan.train_step, lambda batch: mesh.to_devices(batch, plan.mesh)
    self._batch = _host_batch(config.model.image_size)
    self._samples = []
    self.facts = {"devices": plan.mesh.size}

  def run(self, steps: int):
    for _ in range(steps):
      began, cpu = time.perf_counter(), time.thread_time()
      batch = self._put(self._batch)
      put = time.perf_counter()
      self._state, values = self._step(self._state, batch, self._key)
      called, cpu = time.perf_counter(), time.thread_time() - cpu
      values["loss"].block_until_ready()
      self._samples.append({
          "put": put - began, "call": called - put, "host": called - began, "cpu": cpu,
          "step": time.perf_counter() - began,
      })

  def finish(self) -> dict:
    samples = self._samples[len(self._samples) // 10 :]  # the first compile
    return {
        name: 1e3 * statistics.median(sample[name] for sample in samples) for name, _ in _COLUMNS
    }


def _host_batch(side: int) -> dict:
  """A process's part of a batch, of noise."""
  import numpy as np

  random = np.random.default_rng(0)
  return {
      "image": random.integers(0, 256, (_IMAGES, side, side, 3), np.uint8),
      "label": random.integers(0, 10, _IMAGES, np.int32),
      "mask": np.ones(_IMAGES, np.float32),
  }


class Group:
  """Processes that train together."""

  def __init__(self, processes: int):
    """Starts them and waits for their first step."""
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={_DEVICES}",
    }
    job = {"module": "processes", "processes": processes, "coordinator": coordinator}
    self._processes = [
        subprocess.Popen(
            [sys.executable, str(_HERE / "worker.py"), json.dumps(job | {"process": i})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        for i in range(processes)
    ]
    self.pids = [process.pid for process in self._processes]
    self._answer()

  def run(self, steps: int):
    for process in self._processes:
      process.stdin.write(f"{steps}\n")
      process.stdin.flush()
    self._answer()

  def finish(self) -> dict:
    """Ends them; process 0's figures."""
    for process in self._processes:
      process.stdin.close()
    answer = self._answer()
    for process in self._processes:
      process.wait()
    return answer

  def kill(self):
    for process in self._processes:
      process.kill()
      process.wait()

  def _answer(self) -> dict:
    answers = [json.loads(process.stdout.readline() or "{}") for process in self._processes]
    if not all(answers) or any("error" in answer for answer in answers):
      sys.exit(f"a worker failed: {answers}")
    return answers[0]


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
      "--processes", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 4],
      help="sizes of the groups, with commas [1,2,4]",
  )
  parser.add_argument("--rounds", type=int, default=12, help="turns of each group [12]")
  parser.add_argument("--steps", type=int, default=40, help="of a turn [40]")
  arguments = parser.parse_args()

  notes = machine_notes(lambda text: print(text, file=sys.stderr, flush=True))
  groups = {}
  try:
    for n in arguments.processes:
      groups[n] = Group(n)
    watch = OtherWork(pid for group in groups.values() for pid in group.pids)
    for turn in range(arguments.rounds):
      for n in list(groups)[:: -1 if turn % 2 else 1]:
        groups[n].run(arguments.steps)
    other = watch.share()
    results = {n: group.finish() for n, group in groups.items()}
  finally:
    for group in groups.values():
      group.kill()

  notes += [
      f"{arguments.rounds} turns of {arguments.steps} steps each",
      "other work on the CPUs: " + ("not known" if other is None else f"{other:.0%}"),
  ]
  print("\n".join(f"- {note}" for note in notes) + "\n")
  names = ["processes", *(title for _, title in _COLUMNS)]
  rows = [[str(n), *(f"{result[name]:.2f}" for name, _ in _COLUMNS)]
          for n, result in results.items()]
  for row in (names, ["---"] * len(names), *rows):
    print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
  main()
