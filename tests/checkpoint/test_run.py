import json

import pytest

from vit_jax.checkpoint.run import RunDirectory, canonical_json
from vit_jax.errors import CheckpointError, ConfigError


def test_canonical_json_is_one_text_for_equal_values():
  assert canonical_json({"b": (1, 2.0), "a": None}) == '{"a":null,"b":[1,2.0]}'
  with pytest.raises(ValueError):
    canonical_json({"a": float("nan")})


def test_what_a_run_writes_it_reads(tmp_path):
  run = RunDirectory(tmp_path / "a" / "run")
  assert not run.exists()
  run.check_writable()
  assert list(run.path.iterdir()) == [] and not run.exists()
  run.write_config({"seed": 1})
  run.write_config({"seed": 2})
  run.write_info({"total_steps": 2**40})
  run.append_history({"step": 1})
  run.append_history({"step": 2})
  assert run.exists()
  assert run.read_config() == {"seed": 2} and run.read_info() == {"total_steps": 2**40}
  history = run.history_path.read_text().splitlines()
  assert [json.loads(line)["step"] for line in history] == [1, 2]
  names = {path.name for path in run.path.iterdir()}
  assert names == {"config.json", "run.json", "config_history.jsonl"}


def test_a_file_in_the_way_is_one_paragraph(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ConfigError) as caught:
    RunDirectory(tmp_path / "file" / "run").check_writable()
  assert str(caught.value) == (
      f"The run's directory {tmp_path / 'file' / 'run'} cannot be written: Not a directory "
      "(ENOTDIR). Choose another --workdir, or make it writable for this user"
  )


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_damaged_file_is_named(tmp_path, content):
  run = RunDirectory(tmp_path)
  if content is not None:
    run.info_path.write_text(content)
  with pytest.raises(CheckpointError, match=str(run.info_path)):
    run.read_info()
