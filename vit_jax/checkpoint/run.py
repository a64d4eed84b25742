"""What a run owns: the files of its directory."""

import errno
import json
import os

from etils import epath

from vit_jax.checkpoint import atomic
from vit_jax.checkpoint.paths import absolute
from vit_jax.errors import CheckpointError, ConfigError


def canonical_json(value) -> str:
  """One text for equal values: sorted keys, no spaces, no NaN.

  Raises:
    ValueError, TypeError: `value` is not JSON-able.
  """
  return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


class RunDirectory:
  """The directory of one run, local or in a bucket.

  Attributes:
    path: the directory itself.
    config_path: config.json, the resolved config.
    info_path: run.json, what else was decided at the start.
    history_path: config_history.jsonl, one line for each change of the config.
    metrics_path: metrics.jsonl.
    checkpoints: directory of the checkpoints.
  """

  def __init__(self, path: epath.PathLike):
    self.path = absolute(path)
    self.config_path = self.path / "config.json"
    self.info_path = self.path / "run.json"
    self.history_path = self.path / "config_history.jsonl"
    self.metrics_path = self.path / "metrics.jsonl"
    self.checkpoints = self.path / "checkpoints"

  def exists(self) -> bool:
    """Whether a run was begun here."""
    return self.info_path.exists()

  def check_writable(self) -> None:
    """Makes the directory and a trial file in it.

    Raises:
      ConfigError: naming the path and the operating system's reason.
    """
    trial = self.path / f".writable.{os.getpid()}"
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      trial.write_text("")
      trial.unlink()
    except OSError as error:
      code = errno.errorcode.get(error.errno, "error")
      raise ConfigError(
          f"The run's directory {self.path} cannot be written: {error.strerror or error}"
          f" ({code}). Choose another --workdir, or make it writable for this user"
      ) from error

  def read_config(self) -> dict:
    """The content of config.json; CheckpointError where it is missing or damaged."""
    return _read(self.config_path)

  def write_config(self, config: dict) -> None:
    """Replaces config.json."""
    _write(self.config_path, config)

  def read_info(self) -> dict:
    """The content of run.json; CheckpointError where it is missing or damaged."""
    return _read(self.info_path)

  def write_info(self, info: dict) -> None:
    """Replaces run.json."""
    _write(self.info_path, info)

  def append_history(self, entry: dict) -> None:
    """Adds a line to config_history.jsonl; the file is rewritten, as buckets cannot append."""
    before = self.history_path.read_text() if self.history_path.exists() else ""
    atomic.write_text(self.history_path, before + canonical_json(entry) + "\n")


def _read(path: epath.Path) -> dict:
  try:
    content = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise CheckpointError(
        f"{path} cannot be read: {error}. Copy it from where the run came, or begin another run"
    ) from error
  if not isinstance(content, dict):
    raise CheckpointError(f"{path} is damaged: it holds no JSON object")
  return content


def _write(path: epath.Path, content: dict) -> None:
  atomic.write_text(path, json.dumps(content, sort_keys=True, indent=1, allow_nan=False) + "\n")
