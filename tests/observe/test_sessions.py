"""The record of when a run held its chips."""

import json

import pytest

from vit_jax.observe import sessions
from vit_jax.observe.sessions import Session, read_sessions, summary


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands still until it is set."""
  now = {"time": 1000.0}
  monkeypatch.setattr(sessions.time, "time", lambda: now["time"])
  return now


def test_sessions_follow_each_other(tmp_path, clock):
  session = Session(tmp_path, step=0, chips=4, processes=2)
  clock["time"] += 5
  session.seen(10)  # too soon after the last
  assert read_sessions(tmp_path)[0]["step"] == 0
  clock["time"] += 5
  session.seen(20)
  clock["time"] += 1
  session.seen(22, last=True)
  clock["time"] += 1000
  Session(tmp_path, step=15, chips=8, processes=1)
  assert read_sessions(tmp_path) == [
      {"started": 1000.0, "seen": 1011.0, "first_step": 0, "step": 22, "chips": 4, "processes": 2,
       "seconds_per_step": 0.5},
      {"started": 2011.0, "seen": 2011.0, "first_step": 15, "step": 15, "chips": 8, "processes": 1},
  ]
  assert [path.name for path in tmp_path.iterdir()] == ["sessions.json"]
  found = summary(read_sessions(tmp_path), seconds_per_step=0.25, step=15)
  assert found == {
      "restarts": 1, "held_seconds": 11.0, "chip_hours": 44 / 3600, "steps_lost": 7,
      "goodput": pytest.approx(15 * 0.5 / 11),  # not the newest pace: the session noted its own
  }


def test_a_session_notes_its_pace_without_start_up_and_the_last_saves(tmp_path, clock):
  session = Session(tmp_path, step=100, chips=4, processes=1)
  clock["time"] += 300
  session.seen(110)
  assert "seconds_per_step" not in read_sessions(tmp_path)[0]
  for step in (120, 130):
    clock["time"] += 20
    session.seen(step)
  clock["time"] += 500
  session.seen(140, last=True)
  assert read_sessions(tmp_path)[0]["seconds_per_step"] == 2.0


def entry(started, seen, first_step, step, chips=8, **more):
  return {"started": started, "seen": seen, "first_step": first_step, "step": step, "chips": chips,
          "processes": 1} | more


@pytest.mark.parametrize("noted", [True, False])
def test_steps_count_at_the_pace_of_their_own_session(noted):
  """36,000 steps of 1 s on 256 chips, the last 6,000 lost; then 1,000 of 4 s on 64."""
  pace = [{"seconds_per_step": 1.0}, {"seconds_per_step": 4.0}] if noted else [{}, {}]
  found = summary([
      entry(0, 40000, 0, 36000, 256, **pace[0]), entry(50000, 55000, 30000, 31000, 64, **pace[1]),
  ], seconds_per_step=4.0, step=31000)
  first = 30000 * 1.0 if noted else 30000 / 36000 * 40000  # its start-up is not known then
  assert found["goodput"] == pytest.approx((first + 1000 * 4.0) / 45000)
  assert found["steps_lost"] == 6000


def test_steps_that_a_later_session_lost_count_once():
  """The second went back to 10, the third to 4: of the first 4 steps count, of the second none."""
  found = summary([
      entry(0, 20, 0, 20), entry(30, 40, 10, 20), entry(50, 60, 4, 8),
  ], seconds_per_step=1.0, step=9)
  assert found["goodput"] == pytest.approx((4 + 5) / 40) and found["steps_lost"] == 26


@pytest.mark.parametrize(
    "damaged",
    [{}, None, "x", entry(0, 9, 0, 9, None), entry(0, "9", 0, 9), entry(0, float("nan"), 0, 9)],
    ids=["empty", "null", "text", "no chips", "text for a number", "nan"],
)
def test_a_damaged_entry_is_left_out(damaged, tmp_path):
  good = entry(0, 100, 0, 50, seconds_per_step="x")
  (tmp_path / "sessions.json").write_text(json.dumps([good, damaged]))
  assert read_sessions(tmp_path) == [good]
  found = summary([damaged, good], seconds_per_step=1.0, step=50)
  assert found["restarts"] == 0 and found["held_seconds"] == 100 and found["goodput"] == 0.5


def test_nothing_is_made_up(tmp_path):
  assert read_sessions(tmp_path) == []
  found = summary([], seconds_per_step=None, step=0)
  assert found == {
      "restarts": 0, "held_seconds": 0, "chip_hours": 0.0, "steps_lost": 0, "goodput": None,
  }
  (tmp_path / "sessions.json").write_text(json.dumps({"started": 1}))
  assert read_sessions(tmp_path) == []
