"""Huge pages for what XLA allocates on a CPU."""

import contextlib
import glob
import os
import pathlib
import sys

_SYSTEM = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")
_TUNABLE = "glibc.malloc.hugetlb"
_ASKED = "VIT_JAX_ASKED_FOR_HUGE_PAGES"  # once is enough, also where the loader drops tunables


def restart_with_huge_pages() -> None:
  """Starts this process's command again, as the same process, where that makes a step faster.

  XLA takes the memory of activations from malloc at each step and gives it back.  In pages of 4 KiB
  much of a step on a CPU is then page faults.  glibc asks for pages of 2 MiB where
  GLIBC_TUNABLES says glibc.malloc.hugetlb=1 (2.35 and later), which it reads when a process starts.

  To be called before anything is begun.  GLIBC_TUNABLES=glibc.malloc.hugetlb=0 declines.
  """
  changed = environment_with_huge_pages()
  if not changed or not sys.executable or _ASKED in os.environ:
    return
  with contextlib.suppress(OSError):  # it is only slower without
    os.execve(
        sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | changed | {_ASKED: "1"}
    )


def environment_with_huge_pages() -> dict[str, str]:
  """What a process that computes on this machine needs besides: GLIBC_TUNABLES, or nothing."""
  try:
    system = _SYSTEM.read_text()
  except OSError:  # no Linux
    return {}
  accelerator = any(map(glob.glob, _ACCELERATORS))
  tunables = tunables_with_huge_pages(os.environ, system=system, accelerator=accelerator)
  return {} if tunables is None else {"GLIBC_TUNABLES": tunables}


def tunables_with_huge_pages(environment, *, system: str, accelerator: bool) -> str | None:
  """The value of GLIBC_TUNABLES that asks for huge pages, or None where nothing is to be changed.

  Args:
    environment: variables by name.
    system: of Linux's transparent_hugepage/enabled, as "always [madvise] never".
    accelerator: whether this machine has one; jax then does not compute on the CPU unless told to.
  """
  tunables = environment.get("GLIBC_TUNABLES", "")
  platforms = environment.get("JAX_PLATFORMS", "")
  on_cpu = platforms == "cpu" or not (platforms or accelerator)
  # With [always] all have them without asking, with [never] nobody.
  if "[madvise]" not in system or _TUNABLE in tunables or not on_cpu:
    return None
  return f"{tunables}:{_TUNABLE}=1".lstrip(":")
