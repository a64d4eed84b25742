"""An active virtual environment for the scripts: this one, with a pip that only writes down what it
was asked for."""

import os
import pathlib
import shlex
import shutil
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parent.parent.parent


class Environment:
  """Variables for a script (`variables`), and the arguments of each call of pip (`pip_calls`)."""

  def __init__(self, directory: pathlib.Path):
    self._calls = directory / "pip_calls"
    python = directory / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/usr/bin/env bash\n"
        'if [[ "$1 $2" == "-m pip" ]]; then\n'
        f'  echo "$*" >>{shlex.quote(str(self._calls))}\n'
        '  exit "${PIP_EXIT_CODE:-0}"\n'
        "fi\n"
        f'exec {shlex.quote(sys.executable)} "$@"\n'
    )
    python.chmod(0o755)
    path = [str(python.parent), str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
    # The scripts see the machine's own devices, not the eight of the tests.
    own = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    self.variables = own | {"VIRTUAL_ENV": str(directory), "PATH": os.pathsep.join(path)}

  @property
  def pip_calls(self) -> list[str]:
    return self._calls.read_text().splitlines() if self._calls.exists() else []


@pytest.fixture
def environment(tmp_path) -> Environment:
  return Environment(tmp_path / "environment")


@pytest.fixture
def checkout(tmp_path) -> pathlib.Path:
  """Another checkout, with a space in its path: what the scripts need, and no tests."""
  directory = tmp_path / "check out"
  shutil.copytree(REPOSITORY / "launch", directory / "launch")
  shutil.copytree(REPOSITORY / ".ci", directory / ".ci")
  for name in ("pyproject.toml", "constraints.txt"):
    shutil.copy(REPOSITORY / name, directory / name)
  (directory / "tests").mkdir()
  return directory
