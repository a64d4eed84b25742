"""Members of tar files as ranges of bytes: nothing is ever unpacked to the disk."""

from pathlib import PurePosixPath
import tarfile
from typing import BinaryIO, Iterator, NamedTuple

from vit_jax.errors import DataError


# Long names and other records about a member, which tarfile reads whole, are no longer than this.
_MAX_RECORD = 1 << 20


class Member(NamedTuple):
  """A member of an archive.

  Attributes:
    name: as stored, without a leading "./".
    offset, size: its range of bytes in the file.
    fault: why it must not be read; "" where it may.
  """

  name: str
  offset: int
  size: int
  fault: str


class _Window:
  """Bytes [start, start + size) of an open file as a file of their own."""

  def __init__(self, file: BinaryIO, start: int, size: int):
    self._file, self._start, self._size, self._place = file, start, size, 0

  def read(self, count: int) -> bytes:
    if not 0 <= count <= _MAX_RECORD:
      raise tarfile.ReadError(f"a record about a member claims {count:,} bytes")
    count = min(count, max(0, self._size - self._place))
    self._file.seek(self._start + self._place)
    data = self._file.read(count)
    self._place += len(data)
    return data

  def seek(self, offset: int, whence: int = 0) -> int:
    self._place = offset + (0, self._place, self._size)[whence]
    return self._place

  def tell(self) -> int:
    return self._place


def members(path: str, *, start: int = 0, size: int | None = None) -> Iterator[Member]:
  """Yields every member but directories, in order, reading only the headers between them.

  Args:
    start, size: where the archive lies within the file, when it is a member of another.

  Raises:
    DataError: not a tar, a compressed one, or truncated.
  """
  try:
    with open(path, "rb") as file:
      end = file.seek(0, 2) if size is None else start + size
      window = _Window(file, start, end - start)
      with tarfile.open(fileobj=window, mode="r:") as tar:
        before = 0
        while (member := tar.next()) is not None:
          tar.members.clear()  # it would keep millions
          if member.size < 0 or tar.offset <= before:
            raise tarfile.ReadError(f"{member.name} claims {member.size:,} bytes")
          before = tar.offset
          if member.isdir():
            continue
          offset = start + member.offset_data
          if offset + member.size > end:
            raise tarfile.ReadError("unexpected end of data")
          name = member.name.removeprefix("./")
          yield Member(name, offset, member.size, _fault(member, name))
        # A whole archive ends with zeros; a cut between two members would else go unseen.
        window.seek(tar.offset)
        if window.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
          raise tarfile.ReadError("the end of the archive is missing")
  except (OSError, tarfile.TarError, EOFError, LookupError, RecursionError, ValueError) as error:
    packed = _is_compressed(path, start)
    raise DataError(
        f"{path} is compressed, so its members cannot be read by place: unpack it (gunzip, or "
        "tar -xzf where it holds further tars)" if packed else
        f"{path} cannot be read as a tar ({error}): it is truncated or damaged; copy or "
        "download it again"
    ) from error


def _fault(member: tarfile.TarInfo, name: str) -> str:
  if member.issym() or member.islnk():
    return "a link, not a file"
  if not member.isreg() or member.issparse():
    return "not a regular file"
  if name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name or "\0" in name:
    return "a name that leads out of the archive"
  return ""


def _is_compressed(path: str, start: int) -> bool:
  try:
    with open(path, "rb") as file:
      file.seek(start)
      return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
  except OSError:
    return False
