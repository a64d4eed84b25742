import os

import pytest

from vit_jax.checkpoint.paths import Home


@pytest.fixture
def run(tmp_path):
  (tmp_path / "run").mkdir()
  return tmp_path / "run"


def test_a_directory_that_goes_and_comes_back(run):
  home = Home(run)
  home.check()
  run.rename(run.with_name("away"))
  with pytest.raises(FileNotFoundError, match="No such file"):
    home.check()
  run.mkdir()
  with pytest.raises(FileNotFoundError, match="another directory has taken its place"):
    home.check()
  run.rmdir()
  run.with_name("away").rename(run)
  home.check()


def test_what_is_mounted_anew_is_known_by_the_run_in_it(run):
  home = Home(run)
  run.rename(run.with_name("away"))
  run.mkdir()
  (run / "run.json").write_text("{}")
  home.check()
  run.with_name("again").mkdir()
  run.rename(run.with_name("third"))
  run.with_name("again").rename(run)
  with pytest.raises(FileNotFoundError, match="another directory"):
    home.check()


def test_the_first_that_is_seen_is_the_runs(run):
  run.rmdir()
  home = Home(run)
  home.check()
  run.mkdir()
  home.check()
  run.rmdir()
  with pytest.raises(FileNotFoundError):
    home.check()


def test_a_disk_that_does_not_answer_is_not_one_that_is_gone(run):
  home = Home(run)
  run.rmdir()
  os.symlink(run, run)
  for each in (home, Home(run)):
    with pytest.raises(OSError, match="symbolic links"):
      each.check()
