"""On a CPU a run asks for huge pages, unless somebody has decided otherwise."""

import os
import pathlib
import subprocess
import sys

import pytest

from vit_jax.huge_pages import tunables_with_huge_pages

MADVISE, ASKED = "always [madvise] never", "glibc.malloc.hugetlb=1"
SYSTEM = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.parametrize("environment, system, accelerator, tunables", [
    ({}, MADVISE, False, ASKED),
    ({}, MADVISE, True, None),
    ({"JAX_PLATFORMS": "cpu"}, MADVISE, True, ASKED),
    ({"JAX_PLATFORMS": "cuda"}, MADVISE, False, None),
    ({}, "[always] madvise never", False, None),
    ({}, "always madvise [never]", False, None),
    ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, MADVISE, False,
     f"glibc.malloc.arena_max=2:{ASKED}"),
    ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, MADVISE, False, None),
])
def test_when_huge_pages_are_asked_for(environment, system, accelerator, tunables):
  found = tunables_with_huge_pages(environment, system=system, accelerator=accelerator)
  assert found == tunables


@pytest.mark.skipif(
    not SYSTEM.exists() or MADVISE not in SYSTEM.read_text(),
    reason="this system gives huge pages to all or to nobody",
)
@pytest.mark.parametrize("tunables, wanted", [("", ASKED), ("glibc.malloc.hugetlb=0",) * 2])
def test_the_same_command_goes_on_with_them(tunables, wanted, tmp_path):
  """A recipe, which is executed first, sees its process."""
  recipe = tmp_path / "recipe.py"
  recipe.write_text(
      "import os\n"
      "def get_config(arg):\n"
      "  print(arg, os.getpid(), os.environ['GLIBC_TUNABLES'])\n"
  )
  process = subprocess.Popen(
      [sys.executable, "-m", "vit_jax", "train", f"--config={recipe}:some argument", "--workdir=R"],
      env=os.environ | {"GLIBC_TUNABLES": tunables, "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )
  said, complained = process.communicate()
  assert said == f"some argument {process.pid} {wanted}\n"
  assert process.returncode == 2 and "returned NoneType" in " ".join(complained.split())
