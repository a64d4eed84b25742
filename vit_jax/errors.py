"""What goes wrong, and the exit code that says so; or, where it ends nothing, the warning.

Every error a user can cause or meet is one of these; `cli.py` prints its text as one
paragraph and leaves with its code.  The text names what is wrong, where, and how to fix it.
"""

import os
import re
import sys

# What lets its reader in: a URL's user and password, its query (signatures), well-known tokens.
_USER = re.compile(r"(\w[\w+.-]*://)[^\s/@'\"<>]+@")
_QUERY = re.compile(r"(https?://[^\s?'\"<>]*\?)[^\s'\"<>]+")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bya29\.[\w.-]+|(?<=Bearer )[\w.~+/-]{8,}=*")
_SECRET_VARIABLE = re.compile(r"(TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY|PRIVATE_KEY)$")
_LONG = 16  # characters; shorter values may be words


def redacted(text: str) -> str:
  """The text without secrets: of URLs, known tokens, and variables whose names say that they are.

  Libraries put addresses into their errors, and what is printed ends in somebody's log.
  """
  for name, value in os.environ.items():
    if len(value) >= _LONG and value in text and _SECRET_VARIABLE.search(name):
      text = text.replace(value, f"${name}")
  text = _QUERY.sub(r"\1...", _USER.sub(r"\1...@", text))
  return _TOKEN.sub("...", text)


def warn(text: str) -> None:
  """Tells whoever watches, on stderr, what went wrong and ends nothing."""
  print(f"warning: {redacted(text)}", file=sys.stderr, flush=True)


class VitJaxError(Exception):
  """Base of the errors that a user can act on; `exit_code` is the process's exit status."""

  exit_code = 2

  def __str__(self):
    return redacted(super().__str__())


class ConfigError(VitJaxError):
  """A wrong command line, config key, value or combination of them."""

  exit_code = 2


class DataError(VitJaxError):
  """The data set is missing, empty or too damaged."""

  exit_code = 3


class WorkerLost(DataError):
  """A process that reads images was killed: start me again."""

  exit_code = 75


class NonFiniteError(VitJaxError):
  """The loss or the parameters became infinite or NaN."""

  exit_code = 4


class CheckpointError(VitJaxError):
  """A checkpoint cannot be read, written, verified or converted."""

  exit_code = 5


class WriteFailed(CheckpointError):
  """Something of a run could not be written, though the same might succeed later."""


class SaveLost(WriteFailed):
  """One of several processes could not save: start all again, from the last good checkpoint."""

  exit_code = 75


class Preempted(VitJaxError):
  """The run was asked to stop and saved its state: the same command continues it."""

  exit_code = 75


class PeerLost(VitJaxError):
  """Another process is absent or has gone: start me again."""

  exit_code = 75
