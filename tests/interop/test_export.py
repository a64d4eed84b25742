"""What stands in the place of an export: the earlier one, or the new one complete."""

import json
import os
import resource

import pytest

from vit_jax.errors import CheckpointError
from vit_jax.interop import export_directory
from vit_jax.interop.export_directory import MARK, new_export


def fill(directory, **files):
  """An export of text files, and its list of them."""
  for name, text in files.items():
    path = directory / name.replace("__", "/")
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
  names = [name.replace("__", "/") for name in files]
  (directory / MARK).write_text(json.dumps({"files": dict.fromkeys(names, "")}))


def contents(directory):
  return {
      path.relative_to(directory).as_posix(): path.read_text()
      for path in directory.rglob("*") if path.is_file() and path.name != MARK
  }


@pytest.fixture
def earlier(tmp_path):
  with new_export(tmp_path / "export") as partial:
    fill(partial, weights="old", config="old", array__0="old")
  return tmp_path / "export"


def assert_alone(directory):
  assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def test_a_new_export_appears_with_its_parents(tmp_path):
  with new_export(tmp_path / "a" / "export") as partial:
    fill(partial, weights="new")
    assert not (tmp_path / "a" / "export").exists()
  assert contents(tmp_path / "a" / "export") == {"weights": "new"}
  assert_alone(tmp_path / "a" / "export")


def test_an_earlier_export_is_replaced_with_its_card(earlier):
  (earlier / "README.md").write_text("card")
  with new_export(earlier) as partial:
    fill(partial, weights="new")
  assert contents(earlier) == {"weights": "new"}
  assert_alone(earlier)


def test_an_error_while_writing_leaves_what_was_there(earlier):
  with pytest.raises(ValueError), new_export(earlier) as partial:
    fill(partial, weights="new")
    raise ValueError
  assert contents(earlier) == {"weights": "old", "config": "old", "array/0": "old"}
  assert_alone(earlier)


def test_a_failed_rename_puts_the_earlier_export_back(earlier, monkeypatch):
  rename = os.rename

  def failing(source, target):
    if str(source).endswith(".writing"):
      raise OSError("no")
    rename(source, target)

  monkeypatch.setattr(export_directory.os, "rename", failing)
  with pytest.raises(CheckpointError, match="cannot be written: no"), new_export(earlier) as new:
    fill(new, weights="new")
  assert contents(earlier)["weights"] == "old"
  assert_alone(earlier)


def test_a_writer_killed_between_its_renames_has_lost_nothing(earlier):
  partial = earlier.parent / ".export.writing"
  partial.mkdir()
  fill(partial, weights="new")
  earlier.rename(earlier.parent / ".export.replaced")
  with pytest.raises(ValueError), new_export(earlier):
    raise ValueError  # even where the next one fails
  assert contents(earlier)["weights"] == "old"
  assert_alone(earlier)


def test_what_a_killed_writer_left_beside_a_new_export_goes(earlier):
  left = earlier.parent / ".export.replaced"
  left.mkdir()
  fill(left, weights="older")
  with new_export(earlier) as partial:
    fill(partial, weights="new")
  assert contents(earlier) == {"weights": "new"}
  assert_alone(earlier)


@pytest.mark.parametrize("files", [["notes.txt"], ["config", "weights"]])
def test_a_directory_of_somebody_elses_is_refused(tmp_path, files):
  (tmp_path / "export").mkdir()
  for name in files:
    (tmp_path / "export" / name).write_text("mine")
  with pytest.raises(CheckpointError, match=files[0]), new_export(tmp_path / "export"):
    pass
  assert contents(tmp_path / "export") == {name: "mine" for name in files}


def test_an_export_with_a_file_added_is_refused(earlier):
  (earlier / "array" / "notes.txt").write_text("mine")
  with pytest.raises(CheckpointError, match="not exported by vit_jax: array/notes.txt"):
    with new_export(earlier):
      pass
  assert contents(earlier)["array/notes.txt"] == "mine"


def test_an_empty_directory_is_filled(tmp_path):
  (tmp_path / "export").mkdir()
  with new_export(tmp_path / "export") as partial:
    fill(partial, weights="new")
  assert contents(tmp_path / "export") == {"weights": "new"}


def test_a_file_in_the_way_is_refused(tmp_path):
  (tmp_path / "export").write_text("mine")
  with pytest.raises(CheckpointError, match="is a file"), new_export(tmp_path / "export"):
    pass


def test_a_full_disk_leaves_the_earlier_export(earlier):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
  try:
    with pytest.raises(CheckpointError, match="cannot be written"), new_export(earlier) as new:
      fill(new, weights="x" * 30_000)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert contents(earlier)["weights"] == "old"
  assert_alone(earlier)
