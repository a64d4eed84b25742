"""What a file of weights really is, whatever its name says."""

from pathlib import Path
import zipfile

from vit_jax.errors import CheckpointError

_MARKS = (
    (b"\x89HDF", "a TensorFlow or Keras file (HDF5)"),
    (b"\x80\x02", "a PyTorch file (a pickle)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"GGUF", "a GGUF file"),
)


def open_error(path: Path, wanted: str, problem: str) -> CheckpointError:
  """The error for a file of weights that does not open, saying what it is instead if that shows.

  Args:
    path: of the file.
    wanted: what its name promises, such as "safetensors".
    problem: what the reader of that format found.
  """
  with open(path, "rb") as file:
    start = file.read(512)
  text = start.lstrip()[:15].lower()
  if not start:
    what, fix = "is empty", "Copy it again from its source."
  elif start.startswith(b"version https://git-lfs"):
    what = "is a Git LFS pointer, a text of a few lines in the place of the weights"
    fix = "Run `git lfs pull` in its repository, or download the file itself."
  elif text.startswith((b"<!doctype", b"<html")):
    what = "is an HTML page, such as the error page of a download that failed"
    fix = "Download it again and look at what the server answers."
  elif (kind := _kind(path, start)) and wanted not in kind:
    what = f"is {kind}, although its name says {wanted}"
    fix = "Give it the ending of what it is."
  else:
    what = f"is truncated or not a {wanted} file ({problem})"
    fix = "Copy it again from its source."
  return CheckpointError(f"{path} {what}. {fix}")


def _kind(path: Path, start: bytes) -> str | None:
  """What else a file is by its first bytes, None where they say nothing."""
  if start.startswith(b"PK\x03\x04"):
    try:
      with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    except zipfile.BadZipFile:
      return None
    arrays = all(name.endswith(".npy") for name in names)
    return "a NumPy archive (.npz)" if arrays else "a PyTorch file (.bin, .pth or .pt)"
  if start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") < path.stat().st_size:
    return "a safetensors file"
  return next((kind for mark, kind in _MARKS if start.startswith(mark)), None)
