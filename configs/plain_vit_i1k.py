"""ViT-S/16 on ImageNet-1k by "Better plain ViT baselines" (arXiv 2205.01580), the cheapest check.

    vit-jax train --config=plain_vit_i1k:90 --config.input.path=TFDS_DIR --workdir=RUN
    vit-jax train --config=plain_vit_i1k:150 --config.input.path=TFDS_DIR --workdir=RUN
    vit-jax train --config=plain_vit_i1k:300 --config.input.path=TFDS_DIR --workdir=RUN
    vit-jax evaluate --model=RUN --config.evaluate.split=validation
    vit-jax evaluate --model=RUN --config.evaluate.split=validation \\
        --config.evaluate.real_labels=FILE
    vit-jax evaluate --model=RUN --config.input.dataset=imagenet_v2 --config.input.path=V2_DIR \\
        --config.evaluate.classes=by_order
    vit-jax train --config=plain_vit_i1k:runlocal --workdir=RUN     (digits, a minute, no TFDS_DIR)

The argument is the number of epochs [90].  TFDS_DIR holds imagenet2012, prepared as ArrayRecord;
V2_DIR the directories 0 to 999 of an archive of ImageNet-v2, which are the classes by their order.
FILE is ImageNet-ReaL's real.json, whose labels are those of the split validation alone.

Expected on validation (the paper), after 90, 150, 300 epochs: top-1 76.5, 78.5, 80.0; with ReaL's
labels 83.1, 84.5, 85.4; on ImageNet-v2 64.2, 66.4, 68.3.
Time: 6 h 30 for 90 epochs on a TPU v3-8 (the paper).

As big_vision writes it (`configs/vit_s16_i1k.py`): mean over patches, fixed positions, a hidden
layer with tanh before the head, Adam's first moment in bfloat16, 1 % of train held out.  Kernels
alone decay, .1 times the learning rate of 1e-3 (big_vision: 1e-4, independent of it, the same).
Different: evaluation resizes bilinearly, with antialiasing (big_vision: by area); Mixup is of
images 2i and 2i + 1 (there of each and the one before it).
Assumed: nothing.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common


def get_config(arg=None):
  chosen = common.choose(arg, epochs=("90", "150", "300"))
  config = ConfigDict()
  config.model = dict(
      variant="S/16", image_size=224, pooling="gap", position_embedding="sincos2d", pre_logits=True
  )
  config.input = dict(
      dataset="tfds:imagenet2012", split="train[:99%]", batch_size=1024, crop="random_resized",
      crop_min_area=0.05, antialias=False, flip=True, rand_augment="2,10", resize="center",
      short_side=256, exif_orientation=False, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
  )
  config.batch_ops = dict(mixup_alpha=0.2)
  config.objective = dict(loss="softmax")
  config.optimizer = dict(
      name="adamw", b1=0.9, b2=0.999, moment_dtype="bfloat16", learning_rate=1e-3,
      weight_decay=0.1, weight_decay_mask="kernel$", clip_global_norm=1.0,
  )
  config.schedule = dict(name="cosine", warmup="10000 steps")
  config.total = f"{chosen.epochs or 90} epochs"
  config.evaluate = dict(every="5 epochs", split="train[99%:]")
  if chosen.runlocal:
    common.run_local(config)
  return config
