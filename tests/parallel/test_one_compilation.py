"""A run compiles its step once, whatever comes between two steps."""

from compilations import compilations
import pytest

from vit_jax import config as config_lib
from vit_jax.train import train

TINY = {
    "input.batch_size": "16", "model.width": "32", "model.depth": "1", "model.num_heads": "4",
    "model.mlp_dim": "32", "checkpoint.every": "2 steps", "evaluate.every": "3 steps",
    "evaluate.batch_size": "512", "log_every": "1 steps", "optimizer.ema_decay": "0.9",
    "mesh.fsdp": "4",
}


@pytest.mark.slow
def test_once_from_the_beginning_and_once_from_a_checkpoint(tmp_path):
  """Evaluations and saves come between the steps; a restored state lies as a new one does."""
  for total in ("5 steps", "9 steps"):
    with compilations() as compiled:
      train(config_lib.load("quickstart", TINY | {"total": total}), workdir=tmp_path, amend=True)
    assert compiled.count("jit(step)") == 1
