"""ViT pre-trained on ImageNet-21k as in "How to train your ViT?" (AugReg, arXiv 2106.10270).

    vit-jax train --config=augreg_i21k:B/16 --config.input.path=SHARDS --workdir=RUN
    vit-jax train --config=augreg_i21k:L/16,strong1-drop-wd.03 --config.input.path=SHARDS \\
        --workdir=RUN
    vit-jax train --config=augreg_i21k:B/16 --config.input.path=SHARDS --workdir=RUN \\
        --config.total="30 epochs"
    vit-jax train --config=augreg_i21k:B/16,runlocal --workdir=RUN     (digits, a minute)

The argument is VARIANT[,SETTING].  SHARDS is what `vit-jax prepare` wrote; docs/imagenet21k.md.
SETTING is one of 28, AUGMENTATION[-drop][-wd.03]:
  AUGMENTATION: (layers, magnitude) of RandAugment and alpha of Mixup: none; light1 (2, 0), 0;
    light2 (2, 10), .2; medium1 (2, 15), .2; medium2 (2, 15), .5; strong1 (2, 20), .5;
    strong2 (2, 20), .8
  -drop: dropout .1, and stochastic depth rising from 0 to .1
  -wd.03: weight decay .03 instead of .1
Without it big_vision's choice: Ti/16 and S/32 none, S/16 light1, B/32 and B/16 light2, L/16
medium2.  VARIANT is one of these six [B/16].

Expected after 300 epochs and `finetune:imagenet` (the paper): at 224 px L/16 83.98, B/16 83.96,
S/16 80.46, B/32 79.13, Ti/16 73.75; at 384 px L/16 85.59, B/16 85.49, S/16 83.73, B/32 83.59.
After 30 epochs: B/16 80.42 and 83.46, L/16 82.05 and 84.48.
Time: 300 epochs of 12.4 million images are 908 k steps, of the 99 % here 899 k; how long they took
was not published.

As big_vision writes it: sigmoid loss, the mean over patches without a hidden layer before the
head, Adam's first moment in bfloat16.  Kernels alone decay, .1 times the learning rate of 1e-3
(big_vision: 1e-4, independent of it, the same thing).
Different: learned positions start at a standard deviation of .02, as in the paper's own code
(big_vision: 1 / sqrt(width)); evaluation resizes bilinearly, with antialiasing (there by area);
Mixup is of images 2i and 2i + 1 (there of each and the one before it).
Assumed, nobody published it: 1 % is held out of each class (big_vision: 51 200 images in all).
"""

from ml_collections import ConfigDict

from vit_jax.configs import common

SETTING_OF = {
    "Ti/16": "none", "S/32": "none", "S/16": "light1", "B/32": "light2", "B/16": "light2",
    "L/16": "medium2",
}


def get_config(arg=None):
  chosen = common.choose(arg, variant=SETTING_OF, setting=common.AUGREG_SETTINGS)
  variant = chosen.variant or "B/16"
  config = ConfigDict()
  config.model = dict(variant=variant, image_size=224, pooling="gap")
  config.input = dict(
      dataset="array_record", held_out=0.01, batch_size=4096, crop="random_resized",
      crop_min_area=0.05, antialias=False, flip=True, resize="center", short_side=256,
      exif_orientation=False, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
  )
  config.batch_ops = dict(mixup_alpha=0.0)
  config.objective = dict(loss="sigmoid", head_bias=-10.0)
  config.optimizer = dict(
      name="adamw", b1=0.9, b2=0.999, moment_dtype="bfloat16", learning_rate=1e-3,
      weight_decay_mask="kernel$", clip_global_norm=1.0,
  )
  config.schedule = dict(name="cosine", warmup="10000 steps")
  config.total = "300 epochs"
  common.set_augreg(config, chosen.setting or SETTING_OF[variant])
  if chosen.runlocal:
    common.run_local(config)
  return config
