"""A byte of a checkpoint is another, or a file is cut, emptied, gone, new or renamed: it is named."""

import shutil

from etils import epath
import flips
import jax.numpy as jnp
import pytest

from vit_jax.checkpoint import manifest
from vit_jax.checkpoint.manager import Checkpoints


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
  """A checkpoint of a few arrays."""
  directory = tmp_path_factory.mktemp("pristine")
  arrays = {f"layer{i}": jnp.arange(900.0 + i).reshape(1, -1) ** 0.5 for i in range(4)}
  with Checkpoints(directory) as checkpoints:
    checkpoints.save(7, params=arrays, training={"mu": arrays, "step": jnp.int32(7)}, meta={
        "config": {"seed": 1}, "examples_seen": 7, "metrics": {"a": 0.5}, "versions": {},
    })
  return directory / "7"


@pytest.fixture
def step(pristine, tmp_path):
  return shutil.copytree(pristine, tmp_path / "7")


def problems(step) -> list[str]:
  return manifest.problems(epath.Path(step))


def test_a_flipped_byte_is_found_and_its_file_named(step):
  chosen = flips.positions(step, 600, seed=0)
  assert len(chosen) == 600 and {path for path, _, _ in chosen} == set(flips.files_of(step))
  for path, position, mask in chosen:
    with flips.flipped(path, position, mask):
      (line,) = problems(step)
      assert path.relative_to(step).as_posix() in line, (path, position, mask)
  assert problems(step) == []


def cut(path):
  path.write_bytes(path.read_bytes()[:-1])
  return [path]


def lengthen(path):
  path.write_bytes(path.read_bytes() + b"\0")
  return [path]


def empty(path):
  path.write_bytes(b"")
  return [path]


def remove(path):
  path.unlink()
  return [path]


def add(path):
  extra = path.with_name("extra")
  extra.write_bytes(path.read_bytes())
  return [extra]


def rename(path):
  other = path.with_name(path.name + "2")
  path.rename(other)
  return [path, other]


def bury(path):
  """A directory takes the file's name."""
  content = path.read_bytes()
  path.unlink()
  path.mkdir()
  (path / "inside").write_bytes(content)
  return [path, path / "inside"]


def exchange(path):
  """Two files of the step have each other's content."""
  near = flips.files_of(path.parent) + flips.files_of(path.parent.parent)
  other = next(
      p for p in near if p.name != "manifest.json" and p.read_bytes() != path.read_bytes()
  )
  first, second = path.read_bytes(), other.read_bytes()
  path.write_bytes(second)
  other.write_bytes(first)
  return [path, other]


@pytest.mark.parametrize("damage", [cut, lengthen, empty, remove, add, rename, bury, exchange])
@pytest.mark.parametrize("where", ["", "params", "params/d", "training"])
def test_a_file_that_is_another_is_named(step, damage, where):
  """Here the first of the files that lie directly in a directory."""
  path = next(p for p in flips.files_of(step / where) if p.parent == step / where)
  touched = {p.relative_to(step).as_posix() for p in damage(path)}
  found = problems(step)
  assert len(found) == len(touched)
  assert all(any(name in line for line in found) for name in touched)


def test_a_manifest_that_is_gone_or_empty(step):
  path = step / "manifest.json"
  for damage in (cut, empty, remove):
    before = path.read_bytes()
    damage(path)
    (line,) = problems(step)
    assert "manifest.json" in line
    path.write_bytes(before)
  assert problems(step) == []
