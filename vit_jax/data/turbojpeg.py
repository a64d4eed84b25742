"""Part of a JPEG by libjpeg-turbo: rows and columns outside of it are read, but not decoded.

The pixels equal those of a whole decode.  The library comes with the package `turbojpeg`, or with
the system from its version 3 on; without it everything is decoded, at the same pixels.
"""

import ctypes
import ctypes.util
import functools
import importlib.util

import numpy as np

Box = tuple[int, int, int, int]
REDUCTIONS = (8, 4, 2)

_END = b"\xff\xd9"
# Names and numbers of turbojpeg.h, version 3.
_INIT_DECOMPRESS = 1
_PARAM_STOP_ON_WARNING, _PARAM_SUBSAMPLING = 0, 4
_FORMAT_RGB = 0
# Width and height of a minimum coded unit by subsampling: 4:4:4, 4:2:2, 4:2:0, gray, 4:4:0.
_UNITS = {0: (8, 8), 1: (16, 8), 2: (16, 16), 3: (8, 8), 4: (8, 16)}


class _Region(ctypes.Structure):
  _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class _Factor(ctypes.Structure):
  _fields_ = [("num", ctypes.c_int), ("denom", ctypes.c_int)]


def decode_part(data: bytes, box: Box, *, size: tuple[int, int], reduction: int = 1):
  """Decodes a box of a JPEG, as it is stored, whatever its EXIF data says.

  Args:
    data: the file's content.
    box: (top, left, height, width) in pixels of the reduced image.
    size: height and width of the reduced image, which are rounded up.
    reduction: 1, or one of `REDUCTIONS`: the image is decoded at that fraction of its sides.

  Returns:
    uint8 `[height, width, 3]`; None where there is no such library, or it has anything to say
    against the file, or the file's end is missing: a whole decode then tells.  Damage between the
    box and the end is not seen.
  """
  library = _library()
  if library is None or not data.endswith(_END):
    return None
  handle = library.tj3Init(_INIT_DECOMPRESS)
  try:
    library.tj3Set(handle, _PARAM_STOP_ON_WARNING, 1)
    if library.tj3DecompressHeader(handle, data, len(data)):
      return None
    unit = _UNITS.get(library.tj3Get(handle, _PARAM_SUBSAMPLING))
    if unit is None or library.tj3SetScalingFactor(handle, _Factor(1, reduction)):
      return None
    top, left, height, width = box
    # One unit more on each side: what is outside of the region is not seen by the interpolation
    # of its colours.  Its left edge must lie between units.
    columns, rows = (max(1, side // reduction) for side in unit)
    x, y = max(0, left // columns - 1) * columns, max(0, top - rows)
    right, bottom = min(size[1], left + width + columns), min(size[0], top + height + rows)
    if library.tj3SetCroppingRegion(handle, _Region(x, y, right - x, bottom - y)):
      return None
    pixels = np.empty((bottom - y, right - x, 3), np.uint8)
    target = pixels.ctypes.data_as(ctypes.c_void_p)
    if library.tj3Decompress8(handle, data, len(data), target, 0, _FORMAT_RGB):
      return None
    return pixels[top - y : top - y + height, left - x : left - x + width]
  finally:
    library.tj3Destroy(handle)


@functools.cache
def _library() -> ctypes.CDLL | None:
  """libturbojpeg of version 3 or later, or None."""
  package = importlib.util.find_spec("turbojpeg")
  # Symbols are looked up in what a library is linked with, too: here the package's own copy.
  for path in (package and package.origin, ctypes.util.find_library("turbojpeg")):
    try:
      library = ctypes.CDLL(path) if path else None
      if library and hasattr(library, "tj3SetCroppingRegion"):
        return _typed(library)
    except OSError:
      continue
  return None


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
  """Declares what is called."""
  handle, data, number, integer = (
      ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int
  )
  library.tj3Init.restype = handle
  for name, types in {
      "Init": [integer],
      "Destroy": [handle],
      "Set": [handle, integer, integer],
      "Get": [handle, integer],
      "DecompressHeader": [handle, data, number],
      "SetScalingFactor": [handle, _Factor],
      "SetCroppingRegion": [handle, _Region],
      "Decompress8": [handle, data, number, handle, integer, integer],
  }.items():
    getattr(library, f"tj3{name}").argtypes = types
  return library
