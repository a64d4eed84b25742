"""What TensorStore still tells after a save has failed.

Orbax waits for the arrays of a save in an event loop, and closes it when the first one fails.  The
others then find no loop, and each of them prints a traceback, by way of `sys.unraisablehook`,
between whoever reads the log and the one line that says what is wrong.
"""

import functools
import sys


@functools.cache  # once in a process
def silence() -> None:
  """Leaves out these tracebacks, and no others, from here on."""
  before = sys.unraisablehook

  def hook(unraisable):
    late = unraisable.exc_type is RuntimeError and unraisable.object is None
    if not (late and str(unraisable.exc_value) == "Event loop is closed"):
      before(unraisable)

  sys.unraisablehook = hook
