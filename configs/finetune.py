"""Any checkpoint fine-tuned as in the ViT paper (arXiv 2010.11929, Table 4 and B.1.1).

    vit-jax train --config=finetune:imagenet --config.init.checkpoint=REF \\
        --config.input.path=TFDS_DIR --workdir=RUN
    vit-jax train --config=finetune:cifar10 --config.init.checkpoint=REF \\
        --config.input.path=CIFAR_DIR --workdir=RUN
    vit-jax train --config=finetune:cifar100 ...
    vit-jax train --config=finetune:pets ...
    vit-jax train --config=finetune:flowers ...
    vit-jax train --config=finetune:imagenet,224 ...
    vit-jax train --config=finetune:imagenet,512 ...
    vit-jax train --config=finetune:imagenet,518 ...
    vit-jax sweep --config=finetune:cifar10 --config.init.checkpoint=REF \\
        --config.input.path=CIFAR_DIR --workdir=RUNS
    vit-jax evaluate --model=RUN --config.evaluate.split=test     (ImageNet: validation)
    vit-jax evaluate --model=RUN --config.input.dataset=imagenet_v2 --config.input.path=V2_DIR \\
        --config.evaluate.classes=by_order     (of finetune:imagenet)
    vit-jax train --config=finetune:cifar10,runlocal --config.init.checkpoint=LOCAL --workdir=RUN

The argument is DATASET[,RESOLUTION]: 224, 384 [the default], 512 or 518 px, 518 for patches of 14.
REF is a run or anybody's checkpoint, and needs to be given; its head is replaced by a linear layer
that starts at zero, its positions are resampled, fixed ones stretched (as big_vision does, counted
anew: --config.model.position_image_size=384).  TFDS_DIR holds imagenet2012, oxford_iiit_pet or
oxford_flowers102, prepared as ArrayRecord; CIFAR_DIR the original archive; V2_DIR the directories 0
to 999 of an archive of ImageNet-v2, which are the classes by their order.  LOCAL is the run of
another recipe's runlocal: its 16 px become 24, on digits, in a minute.

  data       steps  warm-up  rates swept         here  held out of train
  imagenet   20 000   500    .003 .01 .03 .06    .03    1 %
  cifar10    10 000   500    .001 .003 .01 .03   .003   2 %
  cifar100   10 000   500    .001 .003 .01 .03   .01    2 %
  pets          500   100    .001 .003 .01 .03   .003  10 %
  flowers       500   100    .001 .003 .01 .03   .003  10 %
The sweep trains with each rate and chooses by the held-out part.  Then on everything, if you like:
--config.input.split=train --config.evaluate.split=test (ImageNet: validation).  A checkpoint
pre-trained on ImageNet-21k has seen ImageNet's train: AugReg chooses by ImageNet-v2 instead, among
.01 and .03 only.

Expected from ViT's ImageNet-21k checkpoints at 384 px (Table 5): ImageNet B/16 83.97, B/32 81.28,
L/16 85.15, L/32 80.99, H/14 85.13 (its patches of 14 do not divide 384: add
--config.model.image_size=378); CIFAR-10 B/16 98.95, L/16 99.16; CIFAR-100 91.67, 93.44.  500
steps (50 of warm-up) on CIFAR-10 give B/16 98.59 already.  From AugReg's B/32 (big_vision):
ImageNet 83.27, CIFAR-10 98.55, CIFAR-100 91.35, Pets 93.78, Flowers 99.43; for CIFAR it crops by
--config.input.crop=random --config.input.crop_short_side=448 instead, and it evaluates everywhere
by --config.input.resize=center --config.input.short_side=448 instead.
Time: not published.

The rates here are those of AugReg's B/32.  At 512 (L/16) and 518 px (H/14) the paper reports
ImageNet alone, with an average of the parameters by .9999; so does this.  Warm-up, the crop's
smallest area .05 and images squashed for evaluation are the released code's.
Different: positions of a run are resampled bicubically, as Hugging Face does (the released code:
linearly; --config.model.position_interpolation=bilinear, which its .npz files keep by themselves).
Assumed, nobody published it: no dropout (AugReg's fine-tuning says so, ViT's does not).
"""

from ml_collections import ConfigDict

from vit_jax.configs import common

DATA = {
    # name: (dataset, steps, warm-up, learning rate, percent of train that is trained on)
    "imagenet": ("tfds:imagenet2012", 20_000, 500, 0.03, 99),
    "cifar10": ("cifar10", 10_000, 500, 0.003, 98),
    "cifar100": ("cifar100", 10_000, 500, 0.01, 98),
    "pets": ("tfds:oxford_iiit_pet", 500, 100, 0.003, 90),
    "flowers": ("tfds:oxford_flowers102", 500, 100, 0.003, 90),
}
RESOLUTIONS = ("224", "384", "512", "518")


def sweep(arg=None):
  data = common.choose(arg, data=DATA, resolution=RESOLUTIONS).data or "imagenet"
  rates = (0.003, 0.01, 0.03, 0.06) if data == "imagenet" else (0.001, 0.003, 0.01, 0.03)
  return [{"optimizer.learning_rate": rate} for rate in rates]


def get_config(arg=None):
  chosen = common.choose(arg, data=DATA, resolution=RESOLUTIONS)
  data, resolution = chosen.data or "imagenet", int(chosen.resolution or 384)
  dataset, steps, warmup, learning_rate, percent = DATA[data]
  config = ConfigDict()
  config.init = dict(required=True)
  config.model = dict(image_size=resolution)
  config.input = dict(
      dataset=dataset, split=f"train[:{percent}%]", batch_size=512, crop="random_resized",
      crop_min_area=0.05, antialias=False, flip=True, resize="squash", exif_orientation=False,
  )
  config.objective = dict(loss="softmax")
  config.optimizer = dict(
      name="sgd", momentum=0.9, learning_rate=learning_rate, weight_decay=0.0,
      clip_global_norm=1.0,
  )
  if data == "imagenet" and resolution > 384:
    config.optimizer.ema_decay = 0.9999
  config.schedule = dict(name="cosine", warmup=f"{warmup} steps")
  config.total = f"{steps} steps"
  config.evaluate = dict(every="5 percent", split=f"train[{percent}%:]")
  if chosen.runlocal:
    common.small_data(config)
    config.model.image_size = 24
  return config
