"""Data sets by name."""

import dataclasses
import difflib
import hashlib

from vit_jax.bucket.path import is_bucket
from vit_jax.data.digits import open_digits
from vit_jax.data.folder import open_folder
from vit_jax.data.sampling import balance
from vit_jax.data.source import DataSet
from vit_jax.data.split import open_split, shared
from vit_jax.errors import ConfigError

_NAMES = (
    "digits", "folder", "array_record", "cifar10", "cifar100", "mnist", "fashion_mnist",
    "imagenet_v2", "mixture",
)
_TFDS = "tfds:"
_FROM_BUCKETS = "array_record"


def open_dataset(
    name: str, *, path: str | None, held_out: float, split: str = "train",
    evaluation: str | None = None, sampling: str = "uniform", seed: int = 0,
) -> DataSet:
  """Opens a data set.

  Args:
    name: "digits"; "folder" for images of one's own; "array_record" for what `vit-jax prepare`
      wrote; "cifar10", "cifar100", "mnist", "fashion_mnist"; "imagenet_v2"; "mixture" for a file
      that lists others; "tfds:NAME[/CONFIG][:VERSION]".
    path: where it lies; None or empty for digits, optional for tfds.  Of "array_record" it may be
      gs://BUCKET/PATH.
    held_out: share held out for validation where the data has no such split, in [0, 1).
    split: what to train on, perhaps a part as "train[:99%]", with which nothing is held out.
    evaluation: a split to evaluate on; a part such as "train[99%:]" becomes a split of that name.
    sampling: "uniform", each training example once an epoch, or "class_balanced".
    seed: of mixtures and of class-balanced sampling.

  Raises:
    ConfigError: no such data set, or the path is missing or in excess.
    DataError: the data is missing or unusable.
  """
  whole = split == "train"
  dataset = _open(name, path=path, held_out=held_out if whole else 0, seed=seed)
  splits, parts = dict(dataset.splits), {}
  if not whole:
    parts["train"] = open_split(
        splits, split, shuffled=dataset.shuffled, key="config.input.split"
    )
  if evaluation and "[" in evaluation:
    parts[evaluation] = open_split(
        splits, evaluation, shuffled=dataset.shuffled, key="config.evaluate.split"
    )
  notes = dataset.notes + _notes_on_evaluation(splits, split, evaluation)
  splits |= parts
  if sampling == "class_balanced" and "train" in splits:
    splits["train"] = balance(splits["train"], seed=seed)
  fingerprint = dataset.fingerprint
  if not whole:
    fingerprint = hashlib.sha256(f"{fingerprint} {split}".encode()).hexdigest()
  return dataclasses.replace(dataset, splits=splits, fingerprint=fingerprint, notes=notes)


def _notes_on_evaluation(splits, split: str, evaluation: str | None) -> tuple[str, ...]:
  """What to say where evaluation sees images that are trained on."""
  if split == "train" and "train" not in splits:
    return ()
  if evaluation is None and not {"validation", "test"} & set(splits):
    return ("no split is held out: evaluation is on the images of train",)
  if evaluation and (evaluation in splits or "[" in evaluation):
    if count := shared(split, evaluation, splits):
      return (f"{count} images of {evaluation}, which is evaluated on, are trained on in {split}",)
  return ()


def open_configured(config) -> DataSet:
  """Opens the data set that a config's keys name; raises as `open_dataset`."""
  return open_dataset(
      config.input.dataset, path=config.input.path, held_out=config.input.held_out,
      split=config.input.split, evaluation=config.evaluate.split,
      sampling=config.input.sampling, seed=config.seed,
  )


def _open(name: str, *, path: str | None, held_out: float, seed: int) -> DataSet:
  if path and is_bucket(path) and name != _FROM_BUCKETS:
    raise ConfigError(
        f"config.input.path is {path}, and of the data sets only {_FROM_BUCKETS} is read from a"
        " bucket: `vit-jax prepare` the data, mount the bucket (gcsfuse; on GKE the Cloud Storage"
        " FUSE CSI driver), or copy it to a disk"
    )
  if name.startswith(_TFDS):
    from vit_jax.data.tfds import open_tfds

    return open_tfds(name.removeprefix(_TFDS), path=path, held_out=held_out)
  if name not in _NAMES:
    near = difflib.get_close_matches(name, _NAMES, n=1, cutoff=0)[0]
    raise ConfigError(
        f"config.input.dataset is {name!r}, not one of {', '.join(_NAMES)}, tfds:NAME; did you "
        f"mean {near!r}?"
    )
  if name == "digits":
    if path:
      raise ConfigError(
          f"config.input.path is {str(path)!r}, but the digits come with scikit-learn: leave "
          "it out, or set config.input.dataset=folder"
      )
    return open_digits(held_out=held_out)
  if not path:
    raise ConfigError(
        "config.input.path is not set: give the "
        + ("folder with your images" if name == "folder" else f"place of {name}")
    )
  if name == "folder":
    return open_folder(path, held_out=held_out)
  if name == "array_record":
    from vit_jax.data.array_record import open_array_record

    return open_array_record(path, held_out=held_out)
  if name in ("mnist", "fashion_mnist"):
    from vit_jax.data.mnist import open_mnist

    return open_mnist(name, path=path)
  if name == "imagenet_v2":
    from vit_jax.data.imagenet_variants import open_imagenet_v2

    return open_imagenet_v2(path)
  if name == "mixture":
    from vit_jax.data.mixture import open_mixture

    return open_mixture(path, open_dataset, held_out=held_out, seed=seed)
  from vit_jax.data.cifar import open_cifar

  return open_cifar(name, path=path)
