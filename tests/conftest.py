"""Eight host devices on the CPU for every test, set before anything imports jax; and a budget of
seconds for each room's tests, in `budgets.json`."""

import collections
import json
import os
import pathlib

os.environ["JAX_PLATFORMS"] = os.environ.get("VIT_JAX_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

_NOT_GATE = {"slow", "multiprocess", "topology", "device", "legacy"}
_seconds = collections.Counter()


def pytest_runtest_logreport(report):
  """Adds up the seconds of the gate's tests by room; with xdist this runs in the controller."""
  if not _NOT_GATE & report.keywords.keys():
    parts = pathlib.PurePosixPath(report.nodeid.partition("::")[0]).parts
    _seconds[parts[1].removesuffix(".py")] += report.duration


def _over_budget(times: float = 1.0) -> list[str]:
  budgets = json.loads((pathlib.Path(__file__).parent / "budgets.json").read_text())
  return [
      f"{room}: {spent:.0f} s of {budgets.get(room, 0)} s"
      for room, spent in _seconds.items()
      if spent > times * budgets.get(room, 0)
  ]


def pytest_sessionfinish(session):
  # The clock is the machine's, too, which may have a slow hour: what is over is said, twice as much
  # fails.
  controls = not hasattr(session.config, "workerinput")
  if controls and session.exitstatus == 0 and _over_budget(times=2.0):
    session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
  terminalreporter.section("seconds by room (budgets.json)")
  spent = ", ".join(f"{room} {seconds:.0f}" for room, seconds in _seconds.most_common())
  terminalreporter.line(spent)
  for line in _over_budget():
    terminalreporter.line(f"OVER BUDGET {line}", red=True)
