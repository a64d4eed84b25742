"""Counts what XLA compiles."""

import contextlib
import logging

import jax


@contextlib.contextmanager
def compilations():
  """Yields a list that gets the name of each program that is compiled."""
  names, start = [], "Finished XLA compilation of "

  class Handler(logging.Handler):
    def emit(self, record):
      if (said := record.getMessage()).startswith(start):
        names.append(said.removeprefix(start).split()[0])

  logger, handler = logging.getLogger("jax"), Handler()
  logger.addHandler(handler)
  try:
    with jax.log_compiles():
      yield names
  finally:
    logger.removeHandler(handler)
