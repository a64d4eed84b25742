"""Checkpoints of the Hugging Face Hub: the files that we can read, cached by its own library."""

import fnmatch
from pathlib import Path

from vit_jax.errors import CheckpointError
from vit_jax.interop.hub_client import answer, client, explained, library

_BESIDE = ("config.json", "preprocessor_config.json", "conversion.json")
# Kinds of weights by preference: the first that a repository has is fetched, and no other.
_WEIGHTS = (
    ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json"),
    ("*.safetensors",),
    ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"),
    ("flax_model.msgpack",),
    ("*.npz",),
)


def download(repo_id: str, *, revision: str | None = None) -> Path:
  """Fetches a model, or finds it in the cache; without a network the cache alone is asked.

  Args:
    repo_id: "USER/NAME".
    revision: a branch, tag or commit; None for the default branch.

  Returns:
    The directory of the snapshot, not to be written to; or the one .npz file, where a repository
    holds no weights but that.

  Raises:
    CheckpointError: no such repository or revision, no access, no network and not cached, or no
      weights of a kind that we read.
  """
  hub, api, wanted = library(), client(), revision
  with explained(repo_id):
    for kind in _WEIGHTS:
      try:
        # Subfolders hold other things, such as ONNX files or checkpoints of the optimizer.
        folder = Path(api.snapshot_download(
            repo_id, revision=wanted, allow_patterns=[*_BESIDE, *kind], ignore_patterns=["*/*"]
        ))
      except hub.errors.HfHubHTTPError as error:
        if answer(error)[1] != "RevisionNotFound":
          raise
        raise _no_revision(api, repo_id, revision) from error
      wanted = folder.name  # the commit: the next look is at the same one, without asking
      found = sorted(
          path for path in folder.glob("*")
          if any(fnmatch.fnmatch(path.name, pattern) for pattern in kind)
      )
      if len(found) == 1 and found[0].suffix == ".npz":
        return found[0]
      if found:
        return folder
  listed = ", ".join(pattern for kind in _WEIGHTS for pattern in kind)
  raise CheckpointError(
      f"{api.endpoint}/{repo_id} holds no weights that can be read ({listed}) at "
      f"{revision or 'its default branch'}"
  )


def download_timm(name: str) -> Path:
  """Fetches one of timm's models, named as in timm: MODEL.TAG; otherwise as `download`.

  Raises:
    CheckpointError: the tag is missing (the text lists those that timm knows), or as `download`.
  """
  if "." in name:
    return download(f"timm/{name}")
  try:
    import timm

    known = timm.list_pretrained(f"{name}.*")
  except ImportError:
    raise CheckpointError(
        f"timm:{name} lacks the tag that says which weights, as in {name}.augreg_in21k. The tags "
        "are listed at https://huggingface.co/timm, and here where timm is installed"
    ) from None
  tags = f"name one of {', '.join(known)}" if known else "timm has no weights for that model"
  raise CheckpointError(f"timm:{name} lacks the tag that says which weights: {tags}")


def _no_revision(api, repo_id: str, revision: str | None) -> CheckpointError:
  refs = api.list_repo_refs(repo_id)
  existing = ", ".join(ref.name for ref in refs.branches + refs.tags)
  return CheckpointError(
      f"{api.endpoint}/{repo_id} has no revision {revision!r}; it has {existing}"
  )
