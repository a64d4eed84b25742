"""A folder of one's own images: fine-tune a published checkpoint on it, or train from scratch.

    vit-jax train --config=folder --config.init.checkpoint=REF --config.input.path=DIR --workdir=RUN
    vit-jax train --config=folder:scratch --config.input.path=DIR --workdir=RUN
    vit-jax predict --model=RUN photo.jpg
    vit-jax train --config=folder:scratch,runlocal --workdir=LOCAL     (digits, a minute, no DIR)
    vit-jax train --config=folder:runlocal --config.init.checkpoint=LOCAL --workdir=RUN

DIR is CLASS/*, or {train,validation,test}/CLASS/*, or images with metadata.csv or metadata.jsonl.
Image size, normalisation and model are those of init.checkpoint, which only `scratch` does without,
unless given.  The best checkpoint on the held-out split is kept.

Expected: what the images allow; nobody can say before.
Time: `vit-jax plan --topology=...` estimates it, for GPUs and TPUs; the run prints what is left.

The rates are assumed, nobody published them for a folder they had not seen: fine-tuning with AdamW
at 1e-4 is the usual start for ViTs of all sizes; from scratch they are the plain ViT baseline's
(arXiv 2205.01580), with batch and learning rate scaled down.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common


def get_config(arg=None):
  chosen = common.choose(arg, start=("scratch",))
  config = ConfigDict()
  config.input = dict(dataset="folder", batch_size=64, crop="random_resized", crop_min_area=0.3)
  config.optimizer = dict(name="adamw", learning_rate=1e-4, weight_decay=0.05)
  config.schedule = dict(name="cosine", warmup="5 percent")
  config.total = "20 epochs"
  config.evaluate = dict(every="1 epochs")
  config.checkpoint = dict(best_metric="accuracy")
  config.init = dict(required=chosen.start != "scratch")
  if chosen.start == "scratch":
    config.input.batch_size = 128
    config.input.crop_min_area = 0.08
    config.optimizer = dict(name="adamw", learning_rate=5e-4, weight_decay=0.1)
    config.batch_ops = dict(mixup_alpha=0.2)
    config.total = "100 epochs"
  if chosen.runlocal and chosen.start == "scratch":
    config.model = ConfigDict()
    common.run_local(config)
  elif chosen.runlocal:
    common.small_data(config)
  return config
