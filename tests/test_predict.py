"""What `predict` prints and draws."""

import numpy as np
from PIL import Image
import pytest
from small_models import MODEL, PREPROCESSING, write

from vit_jax.cli import main
from vit_jax.interop import orbax_directory


@pytest.fixture
def predict(tmp_path, capsys, monkeypatch):
  """Runs the verb on a random model, beside two photos and a broken one."""
  monkeypatch.chdir(tmp_path)
  rng = np.random.default_rng(0)
  for name in ("a.png", "b.png"):
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(name)
  (tmp_path / "broken.png").write_bytes(b"no picture")

  def run(*arguments, **changes):
    model = MODEL | changes
    if not (tmp_path / "model").exists():
      write(
          orbax_directory, tmp_path / "model", model,
          preprocessing=PREPROCESSING | {"resize": "squash", "short_side": None},
          labels=list("vwxyz")[: model["num_classes"]] or None,
      )
    with pytest.raises(SystemExit) as left:
      main(["predict", "--model=model", *arguments])
    captured = capsys.readouterr()
    return left.value.code, captured.out, " ".join(captured.err.split())

  return run


def test_classes_and_a_picture_of_what_was_looked_at(predict):
  code, out, err = predict("--top=2", "--attention=looks.png", "a.png", "broken.png", "b.png")
  assert code == 3 and "broken.png" in err
  lines = out.splitlines()
  assert [line for line in lines if not line.startswith("  ")][:2] == ["a.png", "b.png"]
  assert len([line for line in lines if line.startswith("  ") and line[-1] in "vwxyz"]) == 4
  assert "looks.png: 2 images" in out
  picture = np.asarray(Image.open("looks.png")).astype(int)
  assert picture.shape == (64, 64, 3)
  seen = np.asarray(Image.open("b.png").resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
  assert np.abs(picture[32:, :32] - seen).max() <= 1
  assert (picture[32:, 32:] <= picture[32:, :32] + 1).all() and picture[32:, 32:].any()


def test_a_model_without_a_head_still_looks(predict):
  code, out, _ = predict("--attention=looks.jpg", "a.png", num_classes=0)
  assert code == 0 and "looks.jpg: 1 images" in out
  code, _, err = predict("a.png", num_classes=0)
  assert code == 2 and "has no classifier" in err


@pytest.mark.parametrize(
    "name, said", [("looks.txt", "name a picture"), ("no/looks.png", "there is no directory")]
)
def test_where_no_picture_can_be_is_said_before_any_work(predict, name, said):
  code, out, err = predict(f"--attention={name}", "absent.png")
  assert code == 2 and said in err and not out
