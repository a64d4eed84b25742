"""What recipes share: how they read their argument, AugReg's settings, and how they shrink."""

import difflib
import types

# AugReg's augmentations (arXiv 2106.10270): RandAugment's layers and magnitude, Mixup.
_AUGMENTATIONS = {
    "none": (None, 0.0),
    "light1": ("2,0", 0.0),
    "light2": ("2,10", 0.2),
    "medium1": ("2,15", 0.2),
    "medium2": ("2,15", 0.5),
    "strong1": ("2,20", 0.5),
    "strong2": ("2,20", 0.8),
}
AUGREG_SETTINGS = tuple(
    name + drop + decay
    for name in _AUGMENTATIONS for drop in ("", "-drop") for decay in ("", "-wd.03")
)


def choose(arg: str | None, **choices):
  """Reads a recipe's argument: words separated by commas, at most one of each set, and runlocal.

  Args:
    arg: "B/16,runlocal"; None and "" for none.
    choices: name to the words that it may be; a word is in one of the sets only.

  Returns:
    Attributes with the names of `choices`, each the word given or None, and `runlocal`, a bool.

  Raises:
    ValueError: a word that is in no set, with the nearest that is; two of one set.
  """
  choices = {name: tuple(words) for name, words in choices.items()} | {"runlocal": ("runlocal",)}
  chosen = dict.fromkeys(choices)
  for word in arg.split(",") if arg else ():
    name = next((name for name, words in choices.items() if word in words), None)
    if name is None:
      possible = [word for words in choices.values() for word in words]
      near = difflib.get_close_matches(word, possible, n=3, cutoff=0.5)
      hint = f"did you mean {' or '.join(map(repr, near))}?" if near else (
          f"there are {', '.join(possible)}"
      )
      raise ValueError(f"unknown argument {word!r}: {hint}")
    if chosen[name]:
      raise ValueError(f"{chosen[name]!r} and {word!r} are two of which it takes one")
    chosen[name] = word
  return types.SimpleNamespace(**chosen | {"runlocal": bool(chosen["runlocal"])})


def set_augreg(config, setting: str) -> None:
  """Sets the augmentation, regularisation and weight decay that one of AUGREG_SETTINGS names."""
  name, *options = setting.split("-")
  config.input.rand_augment, config.batch_ops.mixup_alpha = _AUGMENTATIONS[name]
  if "drop" in options:
    config.model.update(dropout=0.1, stochastic_depth=0.1, stochastic_depth_schedule="linear")
  config.optimizer.weight_decay = 0.03 if "wd.03" in options else 0.1


def run_local(config) -> None:
  """Shrinks a recipe to a minute on any machine: little data, and a tiny model at 16 px.

  Loss, optimizer, peak rate, schedule's shape, Mixup, RandAugment, heads and pooling stay.
  """
  small_data(config)
  if "head_bias" in config.get("objective", {}):
    config.objective.head_bias = -2.0  # ten sigmoids, of which one is right: about log(1 / 9)
  config.model.update(
      variant="Ti/4", width=64, depth=2, mlp_dim=128, num_heads=4, image_size=16
  )


def small_data(config) -> None:
  """Replaces the data by scikit-learn's 1 797 digits, of 8 px, and trains for 600 steps of 64."""
  config.input.update(dataset="digits", split="train", held_out=0.2, batch_size=64)
  if "short_side" in config.input:
    del config.input.short_side
  if "crop_min_area" in config.input:
    config.input.crop_min_area = 0.5  # of a twentieth of 8 x 8 pixels nothing is learned
  if "warmup" in config.schedule:
    config.schedule.warmup = "10 percent"
  config.total = "600 steps"
  config.evaluate = dict(every="200 steps")
  config.log_every = "100 steps"
