"""A batch as it arrives on the device to what an objective takes."""

import jax

from vit_jax.batch_ops.mixup import mixup
from vit_jax.batch_ops.normalize import normalize


def prepare_batch(batch, *, mean, std, num_classes: int, mixup_alpha: float = 0.0, key=None):
  """Normalises, encodes labels, and mixes.

  Args:
    batch: image uint8 `[B, S, S, 3]`, label int `[B]`, mask float `[B]`.
    mean, std: three floats each, of pixels in 0..1.
    mixup_alpha: 0 for no Mixup, which then needs no key.
    key: PRNG key of Mixup's coefficient.

  Returns:
    image float32 `[B, S, S, 3]`, target float32 `[B, num_classes]`, mask as given.
  """
  image = normalize(batch["image"], mean, std)
  target = jax.nn.one_hot(batch["label"], num_classes)
  if mixup_alpha:
    image, target = mixup(image, target, batch["mask"], alpha=mixup_alpha, key=key)
  return {"image": image, "target": target, "mask": batch["mask"]}
