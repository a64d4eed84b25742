"""The ViT that "Dive into Deep Learning" (d2l.ai, Transformers for Vision) trains on Fashion-MNIST.

    vit-jax train --config=fashion_mnist --config.input.path=DIR --workdir=RUN
    vit-jax train --config=fashion_mnist:runlocal --workdir=RUN     (digits, a minute, no DIR)

DIR holds the four original files, train-images-idx3-ubyte.gz and so on.

Expected: the chapter draws a curve and prints no accuracy.  Not measured yet.
Time: not published; 10 epochs are 4 688 steps of a model with 6.7 million parameters.

As in the chapter: 96 px, patches of 16, width 512, 2 blocks, 8 heads, an MLP of 2 048, dropout .1,
SGD at a constant .1, batch 128, 10 epochs, images in [0, 1] and neither cropped nor mirrored.
Its PyTorch defaults: exact GELU, epsilon 1e-5, no momentum.
Different: our images have three channels, the gray repeated; attention's output has a bias and
dropout, too; positions start at a standard deviation of .02 (there 1), the head at zero, other
kernels as Google's ViT (there as PyTorch's layers).
"""

from ml_collections import ConfigDict

from vit_jax.configs import common


def get_config(arg=None):
  chosen = common.choose(arg)
  config = ConfigDict()
  config.model = dict(
      variant="S/16", width=512, depth=2, mlp_dim=2048, num_heads=8, image_size=96, pooling="cls",
      qkv_bias=False, gelu="erf", layer_norm_epsilon=1e-5, dropout=0.1, attention_dropout=0.1,
  )
  config.input = dict(
      dataset="fashion_mnist", batch_size=128, crop="none", flip=False,
      mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
  )
  config.objective = dict(loss="softmax")
  config.optimizer = dict(
      name="sgd", momentum=0.0, learning_rate=0.1, weight_decay=0.0, clip_global_norm=None
  )
  config.schedule = dict(name="constant")
  config.total = "10 epochs"
  config.evaluate = dict(split="test")
  if chosen.runlocal:
    common.run_local(config)
  return config
