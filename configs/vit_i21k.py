"""ViT pre-trained on ImageNet-21k as in the ViT paper (arXiv 2010.11929, Table 3).

    vit-jax train --config=vit_i21k:B/16 --config.input.path=SHARDS --workdir=RUN
    vit-jax train --config=vit_i21k:B/32 --config.input.path=SHARDS --workdir=RUN
    vit-jax train --config=vit_i21k:L/16 --config.input.path=SHARDS --workdir=RUN
    vit-jax train --config=vit_i21k:L/32 --config.input.path=SHARDS --workdir=RUN
    vit-jax train --config=vit_i21k:H/14 --config.input.path=SHARDS --workdir=RUN
    vit-jax train --config=vit_i21k:B/16,runlocal --workdir=RUN     (digits, a minute, no SHARDS)

SHARDS is what `vit-jax prepare` wrote; docs/imagenet21k.md.  Without an argument: B/16.

Expected, precision@1 on held-out images of ImageNet-21k (the paper's authors, 21 843 classes):
B/16 47.88, B/32 44.04, L/16 49.90, L/32 45.42, H/14 49.06.  After `finetune:imagenet` at 384 px
(Table 5): B/16 83.97, B/32 81.28, L/16 85.15, L/32 80.99, H/14 85.13 (with
--config.model.image_size=378, which patches of 14 divide).
Time: 90 epochs of 12.4 million images are 272 k steps, of the 99 % here 270 k; the paper gives 230
TPUv3-core-days for L/16 (Table 2), nobody published the others.

The paper's "Adam" is the released code's, whose weight decay is multiplied with the learning rate
and not added to the gradient: AdamW today.  Sigmoid loss, the head's bias of -10 and the end at
1e-5 are the authors' additions to the paper.
Different: at another resolution positions are interpolated bicubically, as Hugging Face does (the
released code: linearly; config.model.position_interpolation=bilinear).
Assumed, nobody published it: every parameter decays (the released Adam knows no mask); no clipping
(the paper clips on ImageNet-1k only); H/14 trains as L does; L trains for 90 of the paper's "30/90"
epochs; the crop's smallest area .05 is the fine-tuning code's; images are evaluated squashed to
224 px, as that code does; 1 % is held out.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common


def get_config(arg=None):
  chosen = common.choose(arg, variant=("B/16", "B/32", "L/16", "L/32", "H/14"))
  config = ConfigDict()
  config.model = dict(
      variant=chosen.variant or "B/16", image_size=224, pooling="cls", pre_logits=True, dropout=0.1
  )
  config.input = dict(
      dataset="array_record", held_out=0.01, batch_size=4096, crop="random_resized",
      crop_min_area=0.05, antialias=False, flip=True, resize="squash", exif_orientation=False,
      mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
  )
  config.objective = dict(loss="sigmoid", head_bias=-10.0)
  config.optimizer = dict(
      name="adamw", b1=0.9, b2=0.999, learning_rate=1e-3, weight_decay=0.03,
      weight_decay_mask=".*", clip_global_norm=None,
  )
  config.schedule = dict(name="linear", warmup="10000 steps", end_learning_rate=1e-5)
  config.total = "90 epochs"
  if chosen.runlocal:
    common.run_local(config)
  return config
