"""What goes wrong, and the exit code that says so.

Every error a user can cause or meet is one of these; `cli.py` prints its text as one
paragraph and leaves with its code.  The text names what is wrong, where, and how to fix it.
"""


class VitJaxError(Exception):
  """Base of the errors that a user can act on; `exit_code` is the process's exit status."""

  exit_code = 2


class ConfigError(VitJaxError):
  """A wrong command line, config key, value or combination of them."""

  exit_code = 2


class DataError(VitJaxError):
  """The data set is missing, empty or too damaged."""

  exit_code = 3


class NonFiniteError(VitJaxError):
  """The loss or the parameters became infinite or NaN."""

  exit_code = 4


class CheckpointError(VitJaxError):
  """A checkpoint cannot be read, written, verified or converted."""

  exit_code = 5


class WriteFailed(CheckpointError):
  """Something of a run could not be written, though the same might succeed later."""


class Preempted(VitJaxError):
  """The run was asked to stop and saved its state: the same command continues it."""

  exit_code = 75


class PeerLost(VitJaxError):
  """Another process is absent or has gone: start me again."""

  exit_code = 75
