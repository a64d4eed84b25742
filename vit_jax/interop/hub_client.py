"""The way to the Hugging Face Hub, and what a user can do where it refuses.

Endpoint (HF_ENDPOINT), token (HF_TOKEN), cache (HF_HOME) and HF_HUB_OFFLINE are huggingface_hub's
own, and whether large files go by Xet or by Git LFS is its business too.  The classes of its errors
changed with its HTTP library (requests, httpx, httpx2), so errors are told apart by what the Hub
itself sends: status and `X-Error-Code`.
"""

import contextlib
from typing import Iterator

import vit_jax
from vit_jax.errors import CheckpointError, VitJaxError

LOGIN = (
    "log in with `hf auth login`, or set HF_TOKEN to a token from "
    "https://huggingface.co/settings/tokens"
)
# Top-level packages whose errors mean that no answer came.
_TRANSPORTS = {"httpx2", "httpcore2", "httpx", "httpcore", "requests", "urllib3", "hf_xet"}


def library():
  """The module huggingface_hub; CheckpointError where it is not installed."""
  try:
    import huggingface_hub
  except ImportError as error:
    raise CheckpointError(
        "The Hugging Face Hub is reached through huggingface_hub, which is not installed here: pip "
        "install 'vit_jax[hub]'"
    ) from error
  return huggingface_hub


def client():
  """A `huggingface_hub.HfApi` that says who we are; CheckpointError as `library`."""
  return library().HfApi(library_name="vit_jax", library_version=vit_jax.__version__)


@contextlib.contextmanager
def explained(repo_id: str, *, writing: bool = False) -> Iterator[None]:
  """Turns errors of huggingface_hub into a CheckpointError of one paragraph.

  Args:
    repo_id: the repository that is read or written.
    writing: whether more than reading was asked for.
  """
  try:
    yield
  except VitJaxError:
    raise
  except Exception as error:
    text = _explanation(error, repo_id, writing)
    if text is None:
      raise
    raise CheckpointError(text) from error


def answer(error: BaseException) -> tuple[int | None, str]:
  """Status and `X-Error-Code` of the Hub's answer that led to an error; (None, "") without one."""
  for cause in _causes(error):
    response = getattr(cause, "response", None)
    if response is not None:
      return response.status_code, response.headers.get("X-Error-Code") or ""
    if _is_silence(cause):  # an answer further back was to an earlier request
      break
  return None, ""


def is_passing(error: BaseException) -> bool:
  """Whether the same request may succeed in a moment: a lost connection, or a busy Hub."""
  status, _ = answer(error)
  if status is None:
    return any(map(_is_silence, _causes(error)))
  return status in (408, 429) or status >= 500


def _explanation(error: Exception, repo_id: str, writing: bool) -> str | None:
  """The paragraph; None for an error that the Hub has nothing to do with."""
  hub = library()
  status, code = answer(error)
  where = f"{hub.constants.ENDPOINT}/{repo_id}"
  if isinstance(error, hub.errors.HFValidationError):
    return f"{repo_id!r} names no repository of the Hub, which would be USER/NAME: {error}"
  if code == "GatedRepo":
    return f"{where} is gated: ask its owners for access on that page, then {LOGIN}"
  if writing and status == 401:
    state = "did not accept the token" if hub.get_token() else "asks for a token, and there is none"
    return f"{where}: the Hub {state}. Writing needs a token of role \"write\": {LOGIN}"
  if writing and status == 403:
    return (
        f"{where}: the token may not write there ({_said(error)}). It needs the role \"write\", "
        f"or, being fine-grained, \"Write access to contents/settings of all repos\" under "
        f"{repo_id.partition('/')[0]}: make one at https://huggingface.co/settings/tokens, then "
        f"{LOGIN}. To propose the files to somebody else's repository add --create-pr"
    )
  if code == "RepoNotFound" or status in (401, 403, 404):
    hidden = "this token may not read it" if hub.get_token() else f"it is private: {LOGIN}"
    return f"{where} does not exist, or {hidden}"
  if status in (409, 412):
    return f"{where} was changed by somebody else meanwhile ({_said(error)}): repeat the command"
  if status is not None:
    return f"{where}: the Hub answered {status} ({_said(error)}). Repeat the command later"
  if isinstance(error, hub.errors.LocalEntryNotFoundError) or is_passing(error):
    if writing:
      return (
          f"{where} cannot be reached ({_last_line(error)}). Repeat the command when there is a "
          "network: what was sent already is not sent again"
      )
    return (
        f"{where} cannot be reached ({_last_line(error)}), and its files are not all in the cache "
        f"{hub.constants.HF_HUB_CACHE}. Repeat the command where there is a network, or copy that "
        "cache here"
    )
  return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def _is_silence(error: BaseException) -> bool:
  """Whether an error is that no answer came."""
  library_of = type(error).__module__.partition(".")[0]
  return isinstance(error, (ConnectionError, TimeoutError)) or library_of in _TRANSPORTS


def _said(error: BaseException) -> str:
  """The Hub's own words, else the library's."""
  words = (getattr(cause, "server_message", None) for cause in _causes(error))
  return next(filter(None, words), None) or _last_line(error)


def _last_line(error: BaseException) -> str:
  """The root's words on one line, short."""
  root = list(_causes(error))[-1]
  text = " ".join(str(root).split()) or type(root).__name__
  return text if len(text) <= 200 else text[:200] + " ..."
