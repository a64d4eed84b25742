"""Tars of class directories, or one tar a class."""

import functools
from pathlib import Path, PurePosixPath

from vit_jax.data.prepare.items import Item, Listing, Rejected, SPLITS, input_files, is_image
from vit_jax.data.prepare.items import readable_names, split_of
from vit_jax.data.prepare.tar_members import members


def list_tars(path: Path, each) -> Listing:
  """Lists `[SPLIT/]CLASS/image` in tars, or images at the top of a tar that is named CLASS.tar.

  Args:
    path: a tar, or a directory of them.
    each: maps a function over the files, in order, on several cores.
  """
  files = input_files(path, ".tar")
  # Directories between the input and a tar may name its split: train/n01440764.tar.
  names = [file.relative_to(path).as_posix() if path.is_dir() else file.name for file in files]
  items, rejected = [], []
  scan = functools.partial(_list_tar, alone=len(files) == 1)
  for found, bad in each(scan, list(zip(map(str, files), names))):
    items += found
    rejected += bad
  classes = {item.labels[0] for item in items}
  directory = path if path.is_dir() else path.parent
  return Listing(items, rejected, class_names=readable_names(directory, sorted(classes)))


def _list_tar(file_and_name: tuple[str, str], *, alone: bool):
  file, name = file_and_name
  stem = PurePosixPath(name).stem
  items, rejected = [], []
  for member in members(file):
    parts = PurePosixPath(member.name).parts
    split, inside = split_of(name), list(parts[:-1])
    for i, part in enumerate(inside[:-1]):
      if part in SPLITS:
        split, inside = SPLITS[part], inside[i + 1 :]
        break
    if len(parts) == 2 and parts[0] in SPLITS and not alone:
      inside, split = [], SPLITS[parts[0]]
    label = inside[-1] if inside else stem
    fault = member.fault or ("" if is_image(member.name) else "not an image by its name")
    shown = member.name if inside else f"{stem}/{member.name}"
    if fault:
      rejected.append(Rejected(split, shown, fault))
    else:
      items.append(Item(split, shown, (label,), file, member.offset, member.size))
  return items, rejected
