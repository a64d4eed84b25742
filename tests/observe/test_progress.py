import io

import pytest

from vit_jax.observe.eta import Eta, clock
from vit_jax.observe.progress import Progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


VALUES = {
    "train/loss": 2.30259, "train/learning_rate": 0.00123, "train/images_per_second": 812.4,
    "train/mfu": 0.314,
}


def test_plain_lines():
  stream = io.StringIO()
  with Progress(total_steps=400, start_step=0, stream=stream) as progress:
    progress.update(10, {"train/loss": 2.5})
    progress.update(20, VALUES)
    progress.message("eval [accuracy]")
  lines = stream.getvalue().splitlines()
  assert lines == [
      "step 10/400  2.5%  loss 2.5000",
      "step 20/400  5.0%  loss 2.3026  lr 0.00123  812 images/s  MFU 31.4%  ETA 0:00",
      "eval [accuracy]",
  ]


def test_a_terminal_gets_a_bar_and_messages_above_it():
  stream = Terminal()
  progress = Progress(total_steps=400, start_step=100, stream=stream)
  progress.update(200, {"train/loss": 2.5})
  progress.message("eval [accuracy]")
  progress.update(210, VALUES)
  progress.close()
  text = stream.getvalue()
  assert "eval [accuracy]\n" in text and "step 210/400" in text and "━" in text
  assert text.endswith("\x1b[?25h") or "\x1b[?25h" in text  # the cursor is back


def test_an_error_gives_the_terminal_back():
  stream = Terminal()
  with pytest.raises(ZeroDivisionError):
    with Progress(total_steps=4, start_step=0, stream=stream) as progress:
      progress.update(2, VALUES)
      assert not stream.getvalue().count("\x1b[?25h")
      raise ZeroDivisionError
  assert "\x1b[?25h" in stream.getvalue()


def test_eta_leaves_out_what_came_before_the_first_step_seen_and_pauses():
  eta = Eta(1000)
  eta.seen(10, 60.0)  # a minute of compilation
  assert eta.seconds() is None
  eta.seen(20, 61.0)
  assert eta.seconds() == pytest.approx(98)
  for step, when in ((30, 62.0), (40, 90.0), (50, 91.0)):  # one evaluation of 27 s
    eta.seen(step, when)
  assert eta.seconds() == pytest.approx(95)
  eta.seen(50, 99.0)
  assert eta.seconds() == pytest.approx(95)


@pytest.mark.parametrize(
    "seconds, text",
    [(None, "?"), (0, "0:00"), (67, "1:07"), (3723, "1:02:03"), (273_600, "3 d 4 h")],
)
def test_clock(seconds, text):
  assert clock(seconds) == text
