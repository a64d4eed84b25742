"""What cannot be said on stderr changes nothing else."""

import io
import os
import subprocess
import sys

import pytest

from vit_jax.observe.output import forgiving_stderr


def test_a_full_disk_takes_messages_without_a_word(monkeypatch):
  # Without a buffer, which would be written when it is closed.
  with io.TextIOWrapper(open("/dev/full", "wb", buffering=0), write_through=True) as full:
    monkeypatch.setattr(sys, "stderr", full)
    with pytest.raises(OSError):
      print("no room", file=sys.stderr, flush=True)
    with forgiving_stderr():
      print("no room", file=sys.stderr, flush=True)
      assert not sys.stderr.isatty() and sys.stderr.fileno() == full.fileno()
    assert sys.stderr is full


def test_what_there_is_room_for_is_said(capsys):
  with forgiving_stderr():
    print("room", file=sys.stderr, flush=True)
  assert capsys.readouterr().err == "room\n"


@pytest.mark.parametrize("nobody_reads", [False, True], ids=["full", "pipe"])
def test_the_exit_code_stays(nobody_reads):
  if nobody_reads:
    reader, stderr = os.pipe()
    os.close(reader)
  else:
    stderr = os.open("/dev/full", os.O_WRONLY)
  command = (sys.executable, "-m", "vit_jax", "train", "--config=no_such_recipe", "--workdir=none")
  assert subprocess.run(command, stderr=stderr).returncode == 2
  os.close(stderr)
