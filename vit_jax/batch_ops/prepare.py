"""A batch as it arrives on the device to what an objective takes."""

from vit_jax.batch_ops.mixing import mix_neighbours
from vit_jax.batch_ops.normalize import normalize
from vit_jax.batch_ops.targets import multi_hot, one_hot


def prepare_batch(
    batch, *, mean, std, num_classes: int, label_smoothing: float = 0.0,
    mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0, switch_probability: float = 0.5,
    mix_per_pair: bool = False, key=None,
):
  """Normalises, encodes labels, and mixes.

  Args:
    batch: image uint8 `[B, S, S, 3]`, label int `[B]` or labels int `[B, K]` padded with -1, mask
      float `[B]`.
    mean, std: three floats each, of pixels in 0..1.
    label_smoothing: see `targets`.
    mixup_alpha, cutmix_alpha, switch_probability, mix_per_pair: see `mixing`; neither alpha, no
      mixing, which then needs no key.
    key: PRNG key of what mixing draws.

  Returns:
    image float32 `[B, S, S, 3]`, target float32 `[B, num_classes]`, mask as given.
  """
  image = normalize(batch["image"], mean, std)
  if "labels" in batch:
    target = multi_hot(batch["labels"], num_classes, smoothing=label_smoothing)
  else:
    target = one_hot(batch["label"], num_classes, smoothing=label_smoothing)
  if mixup_alpha or cutmix_alpha:
    image, target = mix_neighbours(
        image, target, batch["mask"], mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha,
        switch_probability=switch_probability, per_pair=mix_per_pair, key=key,
    )
  return {"image": image, "target": target, "mask": batch["mask"]}
