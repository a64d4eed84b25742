"""What a bucket's libraries raise, as one sentence that says how to mend it."""

import contextlib
import errno
import os
import re
from typing import Iterator

from vit_jax.errors import redacted

# Packages whose errors come from the network or the storage service.
_LIBRARIES = (
    "gcsfs", "fsspec", "aiohttp", "requests", "urllib3", "google.api_core", "google.auth",
    "google.cloud",
)
_BUSY = (408, 429, 500, 502, 503, 504)
# The words that gRPC and TensorStore have for a status.
_WORDS = {
    "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "RESOURCE_EXHAUSTED": 429, "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_UNREACHABLE = -1


class BucketError(OSError):
  """A failure of a bucket; `strerror` says what it is and how to mend it."""

  def __str__(self):
    return f"{self.filename}: {self.strerror}"


def reason(error: BaseException) -> str | None:
  """A sentence for what a bucket's library raised, or what caused it; None for other errors."""
  if isinstance(error, BucketError):
    return error.strerror
  seen = error
  while seen is not None:
    if (status := _status(seen)) is not None:
      return _sentence(status, redacted(" ".join(str(seen).split()))[:200])
    seen = seen.__cause__ or seen.__context__
  return None


@contextlib.contextmanager
def as_os_errors(path: os.PathLike) -> Iterator[None]:
  """Makes what gcsfs raises about an object an OSError.

  Raises:
    FileNotFoundError: there is no such object.
    FileExistsError: a condition on its generation did not hold.
    BucketError: anything else.
  """
  try:
    yield
  except (BucketError, FileNotFoundError, FileExistsError):
    raise
  except Exception as error:
    text = reason(error)
    if text is None:
      raise
    code = errno.EACCES if "denied" in text or "credentials" in text else errno.EIO
    raise BucketError(code, text, os.fspath(path)) from error


def _status(error: BaseException) -> int | None:
  """The HTTP status that an error stands for; `_UNREACHABLE` for none at all."""
  text = str(error)
  if stated := re.search(r"HTTP response code: (\d{3})", text):  # TensorStore's
    return int(stated[1])
  if (word := text.partition(":")[0]) in _WORDS and "gs://" in text:
    return _WORDS[word]
  module = type(error).__module__
  if isinstance(error, OSError) and text.startswith("Forbidden"):  # gcsfs's
    return 403
  if not module.startswith(_LIBRARIES):
    return None
  if module.startswith("google.auth"):
    return 401
  code = str(getattr(error, "code", None) or getattr(error, "status", None) or "")
  return int(code) if code.isdigit() else _UNREACHABLE


def _sentence(status: int, text: str) -> str:
  if status == 401:
    return (
        "this machine has no valid credentials (401): give it a service account, run `gcloud auth"
        " application-default login`, or point GOOGLE_APPLICATION_CREDENTIALS to a key"
    )
  if status == 403:
    return (
        "access is denied (403): give this machine's account the roles storage.objectAdmin and"
        f" storage.legacyBucketReader on the bucket [{text}]"
    )
  if status == 404:
    return f"there is no such object or bucket (404) [{text}]"
  if status in _BUSY:
    return f"the storage service is busy or failing ({status}), also after many tries [{text}]"
  if status == _UNREACHABLE:
    return f"the storage service cannot be reached: look after this machine's network [{text}]"
  return f"the storage service answered {status} [{text}]"
