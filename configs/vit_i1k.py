"""ViT from scratch on ImageNet-1k as in the ViT paper (arXiv 2010.11929, Table 3).

    vit-jax train --config=vit_i1k:B/16 --config.input.path=TFDS_DIR --workdir=RUN
    vit-jax train --config=vit_i1k:B/32 --config.input.path=TFDS_DIR --workdir=RUN
    vit-jax train --config=vit_i1k:L/16 --config.input.path=TFDS_DIR --workdir=RUN
    vit-jax train --config=vit_i1k:L/32 --config.input.path=TFDS_DIR --workdir=RUN
    vit-jax evaluate --model=RUN --config.evaluate.split=validation
    vit-jax train --config=vit_i1k:B/16,runlocal --workdir=RUN     (digits, a minute, no TFDS_DIR)

TFDS_DIR holds imagenet2012, prepared as ArrayRecord.  Without an argument: B/16.

Expected top-1 on validation after 300 epochs at 224 px, before fine-tuning (the paper's authors):
B/16 74.79, B/32 69.19, L/16 72.59, L/32 66.90.
Time: 300 epochs of train[:99%] are 92.9 k steps; how long they took was not published.

The paper's "Adam" is the released code's, whose weight decay is multiplied with the learning rate
and not added to the gradient: AdamW today.
Assumed, nobody published it: every parameter decays (the released Adam knows no mask); softmax and
a head that starts at zero; the last 1 % of train is held out, as for fine-tuning; the crop's
smallest area .05 and the squashed evaluation are the fine-tuning code's; the cosine ends at 0.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common


def get_config(arg=None):
  chosen = common.choose(arg, variant=("B/16", "B/32", "L/16", "L/32"))
  config = ConfigDict()
  config.model = dict(
      variant=chosen.variant or "B/16", image_size=224, pooling="cls", pre_logits=True, dropout=0.1
  )
  config.input = dict(
      dataset="tfds:imagenet2012", split="train[:99%]", batch_size=4096, crop="random_resized",
      crop_min_area=0.05, antialias=False, flip=True, resize="squash", exif_orientation=False,
      mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
  )
  config.objective = dict(loss="softmax")
  config.optimizer = dict(
      name="adamw", b1=0.9, b2=0.999, learning_rate=3e-3, weight_decay=0.3,
      weight_decay_mask=".*", clip_global_norm=1.0,
  )
  config.schedule = dict(name="cosine", warmup="10000 steps")
  config.total = "300 epochs"
  config.evaluate = dict(every="5 epochs", split="train[99%:]")
  if chosen.runlocal:
    common.run_local(config)
  return config
