"""Mixup or CutMix between neighbours of the global batch, chosen by chance as timm does."""

import jax
import jax.numpy as jnp

from vit_jax.batch_ops import cutmix
from vit_jax.batch_ops.mixup import coefficients, swap_neighbours


def mix_neighbours(
    images, targets, mask, *, mixup_alpha: float, cutmix_alpha: float, switch_probability: float,
    per_pair: bool, key,
):
  """Mixes examples 2i and 2i + 1.

  Neighbours lie on one device whatever the mesh, so mixing needs no communication and does not
  depend on the mesh.  A pair with a masked member is left as it is.

  Args:
    images: float `[B, H, W, 3]`, normalised, B even.
    targets: float `[B, classes]`.
    mask: float `[B]`, 0 for examples that do not count.
    mixup_alpha, cutmix_alpha: of their Beta distributions; 0 where that one is not used.
    switch_probability: of CutMix, where both are.
    per_pair: whether each pair has its own choice, coefficient and box; else, as published, the
      batch has one.
    key: PRNG key, the same on every device.

  Returns:
    images and targets of the same shapes.
  """
  count = images.shape[0] // 2 if per_pair else 1
  choice_key, mixup_key, cutmix_key = jax.random.split(key, 3)
  if not cutmix_alpha:
    # A run with Mixup alone has drawn its coefficient from the step's key since before CutMix.
    mixup_key = key
  own = share = None
  if mixup_alpha:
    share = coefficients(mixup_key, mixup_alpha, count)
    own = share[:, None, None]
  if cutmix_alpha:
    kept, kept_share = cutmix.own_pixels(
        cutmix_key, images.shape[1:3], alpha=cutmix_alpha, count=count
    )
    kept = kept.astype(jnp.float32)
    if mixup_alpha:
      cuts = jax.random.uniform(choice_key, (count,)) < switch_probability
      own = jnp.where(cuts[:, None, None], kept, own)
      share = jnp.where(cuts, kept_share, share)
    else:
      own, share = kept, kept_share
  if own is None:
    return images, targets
  whole = jnp.min(mask.reshape(-1, 2), axis=1) > 0
  own = jnp.repeat(jnp.where(whole[:, None, None], own, 1.0), 2, axis=0)[..., None]
  share = jnp.repeat(jnp.where(whole, share, 1.0), 2)[:, None]
  return (
      images * own + swap_neighbours(images) * (1.0 - own),
      targets * share + swap_neighbours(targets) * (1.0 - share),
  )
