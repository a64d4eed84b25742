"""The kinds of faults, each really done to a run.

Each is given a `soak_run.Run` that trains and has two checkpoints, and a `random.Random`; it leaves
the run ended, or going on.  What it returns the run must then say, in one line.
"""

import json
import os
import pathlib
import resource
import shutil
import signal
import time


def in_step(run, dice):
  """SIGKILL in a step"""
  time.sleep(dice.uniform(0, 0.2))
  run.kill()


def in_save(run, dice):
  """SIGKILL while a checkpoint is written"""
  run.until(run.saving)
  time.sleep(dice.uniform(0, 0.3))
  run.kill()


def in_evaluation(run, dice):
  """SIGKILL in an evaluation, or just before"""
  due = (run.step() // run.evaluate_every + 1) * run.evaluate_every
  run.until(lambda: run.step() >= due - 1)
  time.sleep(dice.uniform(0, 0.2))
  run.kill()


def in_start(run, dice):
  """SIGKILL, and again while it starts"""
  run.kill()
  run.start()
  time.sleep(dice.uniform(0, run.starting))
  run.kill()


def twice(run, dice):
  """SIGKILL, and again in the first steps after"""
  run.kill()
  run.start()
  run.until(lambda: run.step() >= 0)
  time.sleep(dice.uniform(0, 0.2))
  run.kill()


def term(run, dice):
  """SIGTERM"""
  time.sleep(dice.uniform(0, 0.2))
  run.send(signal.SIGTERM)
  run.ends(75)
  newest, last = max(run.committed()), run.last_line()["step"]
  run.check(newest == last, f"stopped at step {last}, with {newest} saved")


def impatient(run, dice):
  """SIGTERM, and SIGKILL within a second"""
  run.send(signal.SIGTERM)
  time.sleep(dice.uniform(0, 1))
  run.send(signal.SIGKILL)
  run.ends(75, 137)


def frozen(run, _):
  """SIGSTOP for longer than the watchdog waits, then SIGCONT"""
  run.send(signal.SIGSTOP)
  time.sleep(1.25 * run.watchdog)
  run.send(signal.SIGCONT)


def hung(run, _):
  """SIGKILL, then a disk that does not answer, until the watchdog has ended the run"""
  run.kill()
  # Who opens a pipe to read waits for a writer.  After a save retention reads older manifests.
  file = run.checkpoint(run.committed()[-2]) / "manifest.json"
  aside = file.rename(run.directory.parent / "manifest.json")
  os.mkfifo(file)
  run.start()
  run.ends(75)
  aside.replace(file)
  run.check(run.says("hangs in the save, at step")(), "did not say where it hung")
  run.check((run.directory / "logs" / "hang.0.txt").exists(), "left no stacks in logs/hang.0.txt")


def full(run, dice):
  """a full disk, with room again after the first failed save"""
  # No file may grow beyond that: what a full disk is, for one process.
  resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
  run.until(run.says("Training goes on; the save is tried again"))
  time.sleep(dice.uniform(0, 3))
  unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
  resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, unlimited)
  return ("Saving succeeded again",)


def torn(run, dice):
  """SIGKILL, the last line of the metrics torn"""
  run.kill()
  text = json.dumps(run.last_line())
  with run.metrics.open("a") as file:
    file.write(text[: dice.randrange(1, len(text))])


def left_over(run, dice):
  """SIGKILL, half a checkpoint left"""
  run.kill()
  newest = max(run.committed())
  name = dice.choice([f"{newest + 1}", f"{newest + 1}.orbax-checkpoint-tmp"])
  half = run.directory / "checkpoints" / name
  shutil.rmtree(half, ignore_errors=True)
  shutil.copytree(run.checkpoint(newest) / "params", half / "params")
  return (f"resume: Removed {half},",)


def flipped(run, dice):
  """SIGKILL, a byte of the newest checkpoint changed"""
  file = _file_of_newest(run, dice)
  content = bytearray(file.read_bytes())
  content[dice.randrange(len(content))] ^= dice.randrange(1, 256)
  file.write_bytes(content)
  return _named(run, file)


def truncated(run, dice):
  """SIGKILL, a file of the newest checkpoint cut short"""
  file = _file_of_newest(run, dice)
  os.truncate(file, dice.randrange(file.stat().st_size))
  return _named(run, file)


def missing(run, dice):
  """SIGKILL, a file of the newest checkpoint deleted"""
  file = _file_of_newest(run, dice)
  file.unlink()
  return _named(run, file)


def extra(run, dice):
  """SIGKILL, a file added to the newest checkpoint"""
  file = _file_of_newest(run, dice)
  return _named(run, shutil.copy(file, file.with_name("extra")))


KINDS = {kind.__name__: kind for kind in (
    in_step, in_save, in_evaluation, in_start, twice, term, impatient, frozen, hung, full, torn,
    left_over, flipped, truncated, missing, extra,
)}
# After these a checkpoint is set aside.
DAMAGES = ("flipped", "truncated", "missing", "extra")


def _file_of_newest(run, dice) -> pathlib.Path:
  """Kills the run and draws a file that is not empty; half of the time any byte is as likely."""
  run.kill()
  run.damaged = max(run.committed())
  directory = run.checkpoint(run.damaged)
  files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.stat().st_size]
  if not directory.with_name(f"{directory.name}.committed").exists():  # killed just before
    files.remove(directory / "manifest.json")
  sizes = [path.stat().st_size for path in files]
  return dice.choices(files, dice.choice([sizes, None]))[0]


def _named(run, file: pathlib.Path) -> tuple[str, ...]:
  directory = run.checkpoint(run.damaged)
  return (f"resume: Step {run.damaged} is damaged", str(file.relative_to(directory)),
          f"moved to {directory}.corrupt")
