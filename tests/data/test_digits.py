"""The bundled digits."""

import numpy as np

from vit_jax.data.digits import open_digits


def test_every_digit_once():
  from sklearn.datasets import load_digits

  dataset = open_digits()
  assert dataset.classes == tuple("0123456789")
  train, validation = dataset.splits["train"], dataset.splits["validation"]
  assert len(train) + len(validation) == 1797 and 355 <= len(validation) <= 363
  assert len(dataset.fingerprint) == 64 and dataset.fingerprint == open_digits().fingerprint
  assert f"20 % ({len(validation)} images)" in dataset.notes[0]
  assert train.images.dtype == np.uint8 and train.images.shape[1:] == (8, 8, 3)
  assert train.labels.dtype == np.int32
  # Back in 0..16, together they are scikit-learn's, label by label.
  bunch = load_digits()
  ours = [
      (int(label), tuple(np.round(image[..., 0] / 255 * 16).astype(int).ravel()))
      for source in (train, validation) for image, label in zip(source.images, source.labels)
  ]
  theirs = [(int(t), tuple(d.astype(int))) for d, t in zip(bunch.data, bunch.target)]
  assert sorted(ours) == sorted(theirs)
  for label in range(10):
    whole = (bunch.target == label).sum()
    assert abs((validation.labels == label).sum() - 0.2 * whole) <= 1
  kept = {image.tobytes() for image in train.images}
  assert not kept & {image.tobytes() for image in validation.images}


def test_held_out_share():
  assert len(open_digits(held_out=0.5).splits["validation"]) > 850
  alone = open_digits(held_out=0)
  assert list(alone.splits) == ["train"] and len(alone.splits["train"]) == 1797
  assert alone.fingerprint != open_digits().fingerprint
  record = alone.splits["train"].record(3)
  assert record["image"].shape == (8, 8, 3) and record["label"] == 3
  assert record["name"] == "digits/train/3"
