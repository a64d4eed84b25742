"""Whether a command begins a run, continues it, or contradicts it."""

import dataclasses
import os
import time

from vit_jax import config as config_lib
from vit_jax.checkpoint import manifest
from vit_jax.checkpoint.processes import decided_by_first
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.micro_batch import sizes
from vit_jax.observe.versions import versions


@dataclasses.dataclass(frozen=True)
class Continuation:
  """How a command relates to what its directory holds.

  Attributes:
    config: the config to go on with; with open keys (None) where the run is new.
    info: the run's `run.json`, or None where the run is new.
    changed: {key: (old, new)} of what the command changes.
  """

  config: object
  info: dict | None
  changed: dict[str, tuple]


def continue_or_begin(run, requested, *, amend: bool) -> Continuation:
  """Compares the requested config with the one that the run was begun with.

  Args:
    run: a `checkpoint.run.RunDirectory`.
    amend: whether recipe keys may change.

  Raises:
    ConfigError: an identity key differs, or a recipe key without `amend`.
  """
  if not run.exists():
    run.check_writable()
    return Continuation(requested, None, {})
  info = run.read_info()
  before = config_lib.from_json(info["requested"], origin=str(run.info_path))
  changed = config_lib.differences(before, requested)
  if changed[config_lib.IDENTITY]:
    raise ConfigError(
        f"{run.path} holds a run of another config: {_listed(changed[config_lib.IDENTITY])}. "
        "Choose another --workdir, or repeat the command that the run was begun with"
    )
  if changed[config_lib.RECIPE] and not amend:
    raise ConfigError(
        f"{run.path} was begun with another recipe: {_listed(changed[config_lib.RECIPE])}. Repeat "
        "the original command, choose another --workdir, or add --amend to go on from the last "
        "checkpoint with the new values"
    )
  if "input.batch_size" in changed[config_lib.RECIPE]:
    raise ConfigError(
        f"{run.path} was begun with batches of {before.input.batch_size}: its steps and schedule "
        "count those, so --amend cannot change config.input.batch_size. Begin a new run with "
        "--config.init.checkpoint instead"
    )
  values = changed[config_lib.RUNTIME] | changed[config_lib.RECIPE]
  resolved = config_lib.from_json(info["resolved"], origin=str(run.info_path))
  resolved = config_lib.replace(resolved, {key: new for key, (_, new) in values.items()})
  return Continuation(resolved, info, values)


def with_possible_micro_batch(config, requested, *, devices: int, amend: bool):
  """Lets `micro_batch="auto"` choose again where what it once chose does not fit other devices.

  Raises:
    ConfigError: each part has dropout of its own, so that another size is another recipe, and
      `amend` does not allow it.
  """
  if requested.micro_batch != "auto":
    return config
  shards = devices // config.mesh.tensor
  if config.micro_batch in sizes(config.input.batch_size, shards):
    return config
  again = config_lib.replace(config, {"micro_batch": "auto"})
  if config_lib.differences(config, again)[config_lib.RECIPE] and not amend:
    raise ConfigError(
        f"config.micro_batch=auto once chose {config.micro_batch}, which {shards} data shards do "
        "not divide; another size would draw other dropout. Go on with as many devices as before, "
        "or add --amend to let it choose again"
    )
  return again


def changes_of(continuation: Continuation, config) -> dict[str, tuple]:
  """{key: (old, new)} of what the command changes, and of what `micro_batch="auto"` chose anew."""
  if not continuation.info:
    return {}
  chosen = continuation.info["resolved"].get("micro_batch")
  again = {} if chosen == config.micro_batch else {"micro_batch": (chosen, config.micro_batch)}
  return continuation.changed | again


def history_entry(step: int, changed: dict[str, tuple], **more) -> dict:
  """A line of `config_history.jsonl`: what changed, from which step on, and what `more` to say."""
  return {
      "step": step,
      "time": time.time(),
      "changed": {key: {"from": old, "to": new} for key, (old, new) in changed.items()},
  } | more


def check_not_lost(checkpoints) -> None:
  """Asked where no good checkpoint was found: is it because all were damaged, or are gone?

  Args:
    checkpoints: `Checkpoints` or `Tiers`.

  Raises:
    CheckpointError: yes; from the beginning the run would overwrite its metrics.
  """
  if decided_by_first(checkpoints.is_lost, "whether the checkpoints are lost"):
    raise CheckpointError(
        f"All checkpoints in {checkpoints.directory} are damaged (STEP.corrupt) or gone"
        " (STEP.committed without STEP): copy one there from where it is intact, or begin another"
        " run; to begin this one from step 0, delete what is left there"
    )


def is_complete(run, info: dict) -> bool:
  """Whether the run's last step is committed, and every byte of it as it was written.

  Raises:
    CheckpointError: it cannot be read.
  """
  last = run.checkpoints / str(info["total_steps"])

  def good() -> int:
    try:
      return manifest.exists(last) and not manifest.problems(last)
    except OSError as error:
      raise CheckpointError(f"{last} cannot be read: {error}") from error

  return bool(decided_by_first(good, "whether the run is complete"))


def check_not_beyond(last_step: int | None, total_steps: int) -> None:
  """Raises ConfigError when a run is amended to end before where it stands."""
  if last_step is not None and last_step > total_steps:
    raise ConfigError(
        f"config.total is {total_steps} steps, but the run has done {last_step}: it can only be "
        "made longer"
    )


def check_same_data(
    path, info: dict, dataset, *, otherwise: str = "choose another --workdir"
) -> None:
  """Raises ConfigError unless the data set is the one that the run in `path` was begun on.

  Args:
    info: the run's `run.json`.
    otherwise: what to do where the data differs on purpose.
  """
  if info["fingerprint"] != dataset.fingerprint:
    raise ConfigError(
        f"{path} was begun on other data: the fingerprint of {dataset.name} is "
        f"{dataset.fingerprint[:12]}, was {info['fingerprint'][:12]}, so files, sizes or labels "
        f"changed. Restore them, or {otherwise}"
    )


def check_same_weights(path, info: dict, weights: tuple[float, ...] | None) -> None:
  """Raises ConfigError where a file of class weights has changed since the run in `path` began."""
  before = info.get("class_weights")
  if before and weights and tuple(before) != weights:
    raise ConfigError(
        f"{path} was begun with other class weights: the file config.objective.class_weights has "
        "changed. Restore it, or give another file's name and --amend"
    )


def environment(mesh) -> dict:
  """What must be equal for a resumed run to be bit-exact; cpu_threads is 0 off the CPU."""
  device = mesh.devices.flat[0]
  processes = len({d.process_index for d in mesh.devices.flat})
  return {
      "devices": f"{mesh.size} x {device.device_kind}"
      + (f" of {processes} processes" if processes > 1 else ""),
      "mesh": dict(mesh.shape),
      "cpu_threads": int(os.environ.get("NPROC", 0)) if device.platform == "cpu" else 0,
      "versions": versions(),
  }


def environment_changes(info: dict | None, now: dict) -> list[str]:
  """Sentences on what differs from the environment that the run was last in."""
  before = info["environment"] if info else now
  return [
      f"{name} was {before.get(name)}, is {now[name]}: the run goes on, but not bit for bit"
      for name in now
      if before.get(name) != now[name]
  ]


def pin_cpu_threads(run) -> None:
  """Sets NPROC, which fixes XLA's threads on the CPU and with them the bits of its results.

  To be called before a backend starts.  A run keeps the number that it was begun with; a new run
  takes the cores that this process may use.
  """
  # macOS has no affinity to ask for.
  usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
  threads = len(usable(0))
  if run.exists():
    threads = run.read_info()["environment"]["cpu_threads"] or threads
  os.environ.setdefault("NPROC", str(threads))


def _listed(changed) -> str:
  return "; ".join(f"config.{key} is {old!r}, asked for {new!r}" for key, (old, new) in
                   changed.items())
