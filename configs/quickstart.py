"""A tiny ViT on scikit-learn's 1 797 handwritten digits: the whole journey in a few minutes.

    vit-jax train --config=quickstart --workdir=runs/digits
    vit-jax train --config=quickstart:finetune --config.init.checkpoint=runs/digits \\
        --workdir=runs/digits_24px
    vit-jax train --config=quickstart:runlocal --workdir=RUN     (a twentieth of it, to see it run)
    vit-jax train --config=quickstart:finetune,runlocal --config.init.checkpoint=REF --workdir=RUN

Pre-training sees 16-pixel images (16 tokens), fine-tuning 24-pixel images (36 tokens).
Expected: >= 97 % of the held-out fifth.
Time: about a minute and a half on two CPU cores.
All of it is ours.  In float32, so that PyTorch's numbers can be compared to the last digits.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common


def get_config(arg=None):
  chosen = common.choose(arg, part=("finetune",))
  config = ConfigDict()
  config.model = dict(
      variant="Ti/4", width=64, depth=4, mlp_dim=256, num_heads=4, image_size=16,
      dtype="float32",
  )
  config.input = dict(
      dataset="digits", held_out=0.2, batch_size=64, crop="pad", crop_padding=1, flip=False
  )
  config.batch_ops = dict(mixup_alpha=0.2)
  config.optimizer = dict(name="adamw", learning_rate=2e-3, weight_decay=0.05)
  config.schedule = dict(name="cosine", warmup="5 percent")
  config.total = "60 epochs"
  config.evaluate = dict(every="20 epochs")
  config.log_every = "100 steps"
  if chosen.part == "finetune":
    config.init = dict(required=True)
    config.model.image_size = 24
    config.optimizer = dict(name="sgd", learning_rate=0.03, momentum=0.9)
    config.total = "10 epochs"
    config.evaluate = dict(every="5 epochs")
  if chosen.runlocal:
    config.total = "3 epochs"
    config.evaluate = dict(every="3 epochs")
    config.log_every = "10 steps"
  return config
