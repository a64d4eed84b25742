"""An exported directory onto the Hugging Face Hub: only what changed, in one commit, repeatable."""

import fnmatch
import hashlib
from pathlib import Path
import time
from typing import Callable, Mapping

from vit_jax.errors import CheckpointError
from vit_jax.interop.hub_client import LOGIN, client, explained, is_passing, library
from vit_jax.interop.model_card import CARD, is_untouched

# Seconds between attempts; huggingface_hub repeats single requests besides.
_PAUSES = (2, 10, 30)
# What tells one export from another, and would mislead a reader if it stayed beside another one.
_IDENTITY = (
    "config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json", "*.bin",
    "*.bin.index.json", "*.msgpack", "*.h5", "*.npz",
)
_PROPOSALS = 10  # newest pull requests looked at for one that holds the same files already


def upload(
    directory, *, repo_id: str, revision: str = "main", private: bool = False,
    create_pr: bool = False, overwrite: bool = False, message: str,
    report: Callable[[str], None] = print,
) -> str:
  """Makes a branch of a repository hold an export; repeating it finishes what was interrupted.

  The repository and the branch are made where they are missing.  README.md is left as it is where
  somebody wrote or edited it on the Hub.

  Args:
    directory: the export; its subfolders are not sent.
    repo_id: "USER/NAME".
    revision: the branch.
    private: of a repository that is made; one that exists must be private then.
    create_pr: propose the files as a pull request; needs no right to write there.
    overwrite: replace another export, and a README.md of somebody's own.
    message: of the commit.
    report: is told what happens, a line each.

  Returns:
    The address of the branch or of the pull request.

  Raises:
    CheckpointError: no token or not its right, the branch holds another export, the repository is
      public but `private` was asked for, no network.
  """
  api, directory = client(), Path(directory)
  check_token(repo_id)
  with explained(repo_id, writing=True):
    for pause in (*_PAUSES, None):
      try:
        _prepare(api, repo_id, revision, private=private, create_pr=create_pr, report=report)
        return _send(
            api, directory, repo_id, revision, create_pr=create_pr, overwrite=overwrite,
            message=message, report=report,
        )
      except Exception as error:
        if pause is None or not is_passing(error):
          raise
        report(f"{repo_id}: the connection failed ({type(error).__name__}); again in {pause} s")
        time.sleep(pause)


def check_token(repo_id: str) -> None:
  """Raises CheckpointError where there is no token at all; nothing is asked of the Hub."""
  if not library().get_token():
    raise CheckpointError(
        f"{client().endpoint}/{repo_id} cannot be written without a token of role \"write\": "
        f"{LOGIN}"
    )


def _prepare(api, repo_id, revision, *, private, create_pr, report) -> None:
  """Makes repository and branch where they are missing."""
  hub = library()
  try:
    info = api.model_info(repo_id)
  except hub.errors.RepositoryNotFoundError:
    if create_pr:
      raise
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    report(f"{repo_id}: made a {'private' if private else 'public'} repository")
  else:
    if private and not info.private:
      raise CheckpointError(
          f"{api.endpoint}/{repo_id} exists and is public: make it private in its settings, leave "
          "--private out, or choose another --repo"
      )
  if create_pr or revision in _branches(api, repo_id):
    return
  # From the first commit, which holds nobody's weights: main may hold another step's.
  first = api.list_repo_commits(repo_id)[-1].commit_id
  api.create_branch(repo_id, branch=revision, revision=first, exist_ok=True)
  report(f"{repo_id}: made branch {revision}")


def _send(api, directory, repo_id, revision, *, create_pr, overwrite, message, report) -> str:
  """Commits the difference between directory and branch."""
  hub = library()
  head = _branches(api, repo_id).get(revision)
  if head is None:
    raise CheckpointError(f"{api.endpoint}/{repo_id} has no branch {revision} to propose files to")
  address = f"{api.endpoint}/{repo_id}/tree/{revision}"
  local = {path.name: path for path in sorted(directory.iterdir()) if path.is_file()}
  remote = _remote_files(api, repo_id, head)
  changed = [name for name, path in local.items() if not _same(path, remote.get(name))]
  foreign = [name for name in remote if name not in local and _matters(name)]
  if CARD in changed and CARD in remote and not overwrite:
    if not is_untouched(_text(api, repo_id, head, CARD)):
      changed.remove(CARD)
      report(f"{repo_id}@{revision}: {CARD} was edited there and stays; --overwrite replaces it")
  replaced = [name for name in changed if name in remote and _matters(name)] + foreign
  if replaced and not overwrite and not create_pr:
    raise CheckpointError(
        f"{address} holds another export: {', '.join(replaced)} differ from {directory}. Choose "
        "another --revision or --repo, or replace it with --overwrite"
    )
  if not changed and not foreign:
    report(f"{repo_id}@{revision}: is as it should be, nothing to send")
    return address
  if create_pr and (proposal := _proposed_already(api, repo_id, local)):
    report(f"{repo_id}: {proposal} proposes these files already, nothing to send")
    return f"{api.endpoint}/{repo_id}/discussions/{proposal.rpartition('/')[2]}"
  for name in changed:
    report(f"{repo_id}@{revision}: sending {name}, {file_size(local[name].stat().st_size)}")
  for name in foreign:
    report(f"{repo_id}@{revision}: removing {name}, of another export")
  commit = api.create_commit(
      repo_id,
      [hub.CommitOperationAdd(name, str(local[name])) for name in changed]
      + [hub.CommitOperationDelete(name) for name in foreign],
      commit_message=message, revision=revision, create_pr=create_pr,
      parent_commit=head,  # somebody else's commit meanwhile is an error, not overwritten
  )
  return commit.pr_url or address


def file_size(count: int) -> str:
  """Bytes as people read them: "1.3 MB"."""
  for unit in ("bytes", "kB", "MB"):
    if count < 1000:
      return f"{count:.3g} {unit}"
    count /= 1000
  return f"{count:.3g} GB"


def _branches(api, repo_id: str) -> dict[str, str]:
  """Branch name to the commit at its head."""
  return {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).branches}


def _remote_files(api, repo_id: str, commit: str) -> Mapping:
  """Path to `RepoFile` (blob_id, size, lfs) of all files of a commit."""
  tree = api.list_repo_tree(repo_id, revision=commit, recursive=True)
  return {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}


def _same(path: Path, remote) -> bool:
  """Whether a file of the Hub has a local file's content; no content is fetched for that."""
  if remote is None or path.stat().st_size != (remote.lfs.size if remote.lfs else remote.size):
    return False
  with path.open("rb") as file:
    if remote.lfs:
      return hashlib.file_digest(file, "sha256").hexdigest() == remote.lfs.sha256
    content = file.read()
  return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == remote.blob_id


def _matters(name: str) -> bool:
  """Whether a path of the Hub, at the top, belongs to an export's weights or settings."""
  return "/" not in name and any(fnmatch.fnmatch(name, pattern) for pattern in _IDENTITY)


def _text(api, repo_id: str, commit: str, name: str) -> str:
  path = api.hf_hub_download(repo_id, name, revision=commit)
  return Path(path).read_text(encoding="utf-8", errors="replace")


def _proposed_already(api, repo_id: str, local: Mapping[str, Path]) -> str | None:
  """The newest pull request that holds all local files, as "refs/pr/N"."""
  refs = api.list_repo_refs(repo_id, include_pull_requests=True).pull_requests or []
  newest = sorted(refs, key=lambda ref: -int(ref.ref.rpartition("/")[2]))
  for ref in newest[:_PROPOSALS]:
    remote = _remote_files(api, repo_id, ref.target_commit)
    if all(_same(path, remote.get(name)) for name, path in local.items()):
      return ref.ref
  return None
