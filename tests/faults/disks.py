"""Disks that misbehave under a run: full, read-only, refused, gone, slow, torn; each really.

A run is a process of its own, as in `test_resume`; what happens to its disk happens while it
trains, and can be undone.
"""

import ctypes
import os
import pathlib
import resource
import shutil
import subprocess
import threading
import time

from test_resume import COMMAND, environment

# Compiles in half the time.
_HASTY = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
}
_PR_CAPBSET_DROP = 24  # linux/prctl.h
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2  # linux/capability.h


class Run:
  """A training process; what it says on stdout and stderr is read line by line, from a thread."""

  def __init__(
      self, path: pathlib.Path, *more: str, prefix: tuple = (), obey_modes: bool = False,
      variables: dict[str, str] | None = None,
  ):
    """Starts it.

    Args:
      path: the run's directory.
      more: further arguments, which win over those of `test_resume.COMMAND`.
      prefix: what the command is given to, such as `own_disk`.
      obey_modes: whether a directory's mode counts also for the superuser.
      variables: further ones of its environment.
    """
    self.path, self.said = path, []
    self.process = subprocess.Popen(
        (*prefix, *COMMAND, f"--workdir={path}", *more),
        env=environment() | _HASTY | (variables or {}),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=_obey_modes if obey_modes else None,
    )
    self._reader = threading.Thread(target=lambda: self.said.extend(self.process.stdout))
    self._reader.start()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.process.kill()
    self.process.wait()
    self._reader.join()

  @property
  def text(self) -> str:
    """What it has said, on one line."""
    return " ".join("".join(self.said).split())

  def until(self, happened, *, seconds: float = 300.0) -> None:
    """Waits until `happened()` is true, while the run goes on."""
    deadline = time.monotonic() + seconds
    while not happened():
      assert self.process.poll() is None, self.text
      assert time.monotonic() < deadline, self.text
      time.sleep(0.005)

  def says(self, *words: str, times: int = 1):
    """For `until`: whether a line with all of the words was said so many times."""
    return lambda: sum(all(word in line for word in words) for line in self.said[:]) >= times

  def ends(self, *, seconds: float = 300.0) -> int:
    """Waits for the end; returns the exit code."""
    code = self.process.wait(seconds)
    self._reader.join()
    return code

  def steps(self) -> list[int]:
    """Committed steps, as the process itself sees them."""
    manifests = self.seen.glob("checkpoints/*/manifest.json")
    return sorted(int(path.parent.name) for path in manifests if path.parent.name.isdigit())

  @property
  def seen(self) -> pathlib.Path:
    """The run's directory, also where it lies on a disk that only the process has."""
    own = pathlib.Path(f"/proc/{self.process.pid}/root{self.path}")
    return own if self.process.poll() is None else self.path


def fill(run: Run, *, left: int = 50_000) -> None:
  """No file may become larger than `left` bytes: what a full disk is, for one process."""
  resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (left, resource.RLIM_INFINITY))


def make_room(run: Run) -> None:
  """Undoes `fill`."""
  unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
  resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, unlimited)


def own_disk(directory: pathlib.Path, *, size: str) -> tuple[str, ...]:
  """Prefix of a command that gets an empty disk of so many bytes ("2m"), which ends with it."""
  directory.mkdir(exist_ok=True)
  script = 'mount -t tmpfs -o size="$1" none "$2" && shift 2 && exec "$@"'
  return ("unshare", "-rm", "sh", "-c", script, "sh", size, str(directory))


def bind_read_only(run: Run, directory: pathlib.Path) -> None:
  """Makes a directory of an `own_disk` read-only for the run, until `unbind`."""
  _inside(run, "mount", "--bind", str(directory), str(directory))
  _inside(run, "mount", "-o", "remount,bind,ro", str(directory))


def unbind(run: Run, directory: pathlib.Path) -> None:
  """Undoes `bind_read_only`."""
  _inside(run, "umount", "--lazy", str(directory))


def _inside(run: Run, *command: str) -> None:
  """Runs a command among the mounts that the run sees."""
  own = ("nsenter", "--target", str(run.process.pid), "--user", "--mount")
  subprocess.run((*own, *command), check=True)


class FaultyDisk:
  """A directory whose disk can be made slow, or tear a rename: see `faulty_disk.c`.

  Attributes:
    variables: of the environment of the process that is to find it so.
  """

  def __init__(self, directory: pathlib.Path, *, library: pathlib.Path):
    """Compiles `library`; nothing is wrong with the disk yet."""
    source = pathlib.Path(__file__).parent / "faulty_disk.c"
    subprocess.run(("cc", "-shared", "-fPIC", "-o", library, source, "-ldl"), check=True)
    self._orders = {name: directory.with_name(f"{directory.name}.{name}")
                    for name in ("slow", "torn")}
    self.variables = {"FAULTY_DISK": str(directory), "LD_PRELOAD": str(library)}

  def slow(self, milliseconds: int) -> None:
    """Every write takes so much longer, until `mend`."""
    self._order("slow", str(milliseconds))

  def tear(self, *, kill: bool = False) -> None:
    """The next step's rename moves half of its directory and fails, or kills the process."""
    self._order("torn", "kill" if kill else "")

  def mend(self) -> None:
    """What was ordered holds no more."""
    for file in self._orders.values():
      file.unlink(missing_ok=True)

  def has_torn(self) -> bool:
    """Whether the rename was."""
    return not self._orders["torn"].exists()

  def _order(self, name: str, text: str) -> None:
    new = self._orders[name].with_suffix(".new")
    new.write_text(text)
    new.rename(self._orders[name])


def has_own_disks() -> bool:
  """Whether this system lets one mount a disk of one's own."""
  if not shutil.which("unshare") or not shutil.which("nsenter"):
    return False
  probe = ("unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt")
  return subprocess.run(probe, capture_output=True).returncode == 0


def _obey_modes() -> None:
  """In the child, before it is the command: gives up that the superuser may write anywhere."""
  if os.geteuid() == 0:
    library = ctypes.CDLL(None)
    for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
      library.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
