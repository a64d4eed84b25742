"""Processes that do not outlive the one that started them."""

import multiprocessing
import multiprocessing.connection
import os
import threading


def die_with_parent() -> None:
  """Ends this process, a child of `multiprocessing`, when its parent has ended, even by SIGKILL.

  A thread waits for it.  Linux could send a signal instead (PR_SET_PDEATHSIG), but would do so
  already when the thread ends that started the child, which is one of a pool's.
  """
  parent = multiprocessing.parent_process()

  def watch():
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
