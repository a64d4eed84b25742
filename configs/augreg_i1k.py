"""ViT from scratch on ImageNet-1k as in "How to train your ViT?" (AugReg, arXiv 2106.10270).

    vit-jax train --config=augreg_i1k:S/16 --config.input.path=TFDS_DIR --workdir=RUN
    vit-jax train --config=augreg_i1k:B/16,strong1-drop-wd.03 --config.input.path=TFDS_DIR \\
        --workdir=RUN
    vit-jax evaluate --model=RUN --config.evaluate.split=validation
    vit-jax train --config=augreg_i1k:S/16,runlocal --workdir=RUN     (digits, a minute)

The argument is VARIANT[,SETTING].  TFDS_DIR holds imagenet2012, prepared as ArrayRecord.
SETTING is one of 28, AUGMENTATION[-drop][-wd.03]:
  AUGMENTATION: (layers, magnitude) of RandAugment and alpha of Mixup: none; light1 (2, 0), 0;
    light2 (2, 10), .2; medium1 (2, 15), .2; medium2 (2, 15), .5; strong1 (2, 20), .5;
    strong2 (2, 20), .8
  -drop: dropout .1, and stochastic depth rising from 0 to .1
  -wd.03: weight decay .03 instead of .1
Without it big_vision's choice: Ti/16 light1, S/32 light2, S/16, B/32, B/16 and L/16 medium2.
VARIANT is one of these six [B/16].

Expected: the paper shows the accuracies of the 28 settings as a map of colours; no number of it is
repeated here.
Time: 300 epochs of train[:99%] are 92.9 k steps; how long they took was not published.

As big_vision writes it (`configs/vit_i1k.py`): class token, a hidden layer with tanh before the
head, softmax, Adam's first moment in bfloat16, 1 % of train held out.  Kernels alone decay, .1
times the learning rate of 1e-3 (big_vision: 1e-4, independent of it, the same thing).
Different: learned positions start at a standard deviation of .02, as in the paper's own code
(big_vision: 1 / sqrt(width)); evaluation resizes bilinearly, with antialiasing (there by area);
Mixup is of images 2i and 2i + 1 (there of each and the one before it).
Assumed: nothing.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common

SETTING_OF = {
    "Ti/16": "light1", "S/32": "light2", "S/16": "medium2", "B/32": "medium2", "B/16": "medium2",
    "L/16": "medium2",
}


def get_config(arg=None):
  chosen = common.choose(arg, variant=SETTING_OF, setting=common.AUGREG_SETTINGS)
  variant = chosen.variant or "B/16"
  config = ConfigDict()
  config.model = dict(variant=variant, image_size=224, pooling="cls", pre_logits=True)
  config.input = dict(
      dataset="tfds:imagenet2012", split="train[:99%]", batch_size=4096, crop="random_resized",
      crop_min_area=0.05, antialias=False, flip=True, resize="center", short_side=256,
      exif_orientation=False, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
  )
  config.batch_ops = dict(mixup_alpha=0.0)
  config.objective = dict(loss="softmax")
  config.optimizer = dict(
      name="adamw", b1=0.9, b2=0.999, moment_dtype="bfloat16", learning_rate=1e-3,
      weight_decay_mask="kernel$", clip_global_norm=1.0,
  )
  config.schedule = dict(name="cosine", warmup="10000 steps")
  config.total = "300 epochs"
  config.evaluate = dict(every="5 epochs", split="train[99%:]")
  common.set_augreg(config, chosen.setting or SETTING_OF[variant])
  if chosen.runlocal:
    common.run_local(config)
  return config
