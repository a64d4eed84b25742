"""What broke first in a training step: computed again when a run ends of it, and only then."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.optim.norms import norms_by_block
from vit_jax.optim.rules import path_of
from vit_jax.parallel.mesh import replicated
from vit_jax.step import in_parts, make_gradient

# Names in the order in which the forward pass comes to them (models/vit.py, models/layers.py).
_FORWARD = (
    "patch_embedding", "class_token", "distillation_token", "mask_token", "register_tokens",
    "position_embedding", "blocks", "norm1", "probe", "attention", "query", "key", "value",
    "query_norm", "key_norm", "out", "layer_scale1", "norm2", "mlp", "fc1", "gate", "fc2",
    "layer_scale2", "norm", "map_head", "pre_logits", "head", "distillation_head", "pixel_decoder",
)


def make_diagnosis(objective, *, prepare, mesh, micro_batches: int = 1, frozen=None):
  """Returns `diagnose(state, batch, key)`, jitted; for the arguments see `step.make_train_step`.

  The state is that before the step, and is not donated.  The result is replicated: the loss; how
  many numbers are not finite in each of `parameters` and `gradients`, trees of int32 `[depth]` for
  what lies under `blocks` and scalars else; the same of `tokens`, `[depth + 1]`, before each block
  and after the last, without dropout; `norms` of the gradient by block.
  """
  options = dict(prepare=prepare, mesh=mesh, micro_batches=micro_batches)
  gradient = make_gradient(objective, **options, frozen=frozen)

  def tokens(params, images):
    _, seen = objective.model.apply({"params": params}, images, outputs=("hidden_states",))
    return _not_finite(seen["hidden_states"], stacked=True)

  def diagnose(state, batch, key):
    gradients, means, _ = gradient(state, batch, key)
    prepare_key, _ = jax.random.split(jax.random.fold_in(key, state.step))
    images = in_parts(prepare(batch, key=prepare_key)["image"], micro_batches, mesh)
    counts = jax.lax.map(lambda part: tokens(state.params, part), images)
    return {
        "loss": means["loss"],
        "parameters": _by_path(state.params),
        "gradients": _by_path(gradients),
        "tokens": jnp.sum(counts, axis=0),
        "norms": norms_by_block(gradients),
    }

  return jax.jit(diagnose, out_shardings=replicated(mesh))


def describe(found: dict, params) -> tuple[str, dict]:
  """A sentence on what broke first, and all of it, JSON-able.

  Args:
    found: what `diagnose` returned, on the host.
    params: the parameters, of which the shapes are used.
  """
  told = {name: _listed(found[name], params) for name in ("parameters", "gradients")}
  told["tokens"] = np.asarray(found["tokens"]).tolist()
  told["gradient_norms"] = {name: _number(norm) for name, norm in found["norms"].items()}
  told["loss"] = _number(found["loss"])
  broken = np.flatnonzero(found["tokens"])
  if told["parameters"]:
    said = f"parameters broke first: {_some(told['parameters'])}"
  elif broken.size and broken[0]:
    said = f"parameters are finite; what block {broken[0] - 1} puts out is the first that is not"
  elif broken.size:
    said = "parameters are finite; the tokens that enter block 0 are the first that are not"
  elif told["loss"] is None:
    said = (
        "parameters and the tokens of all blocks are finite; head or loss are the first that is not"
    )
  elif told["gradients"]:
    said = (
        "parameters and loss are finite; the gradient broke on its way back first at "
        f"{_name(told['gradients'][-1])}, and reached: {_some(told['gradients'])}"
    )
  else:
    norms = {name: norm for name, norm in told["gradient_norms"].items() if name != "all"}
    longest = max(norms, key=lambda name: norms[name] or 0.0)
    said = (
        f"everything is finite; the gradient is longest in {longest}: {norms[longest]:.3g} of "
        f"{found['norms']['all']:.3g} in all"
    )
  return said, told | {"said": said}


def broken_leaves(tree) -> list[str]:
  """Paths of the arrays that hold a number that is not finite; the same on all processes."""
  flags = jax.tree.map(lambda leaf: bool(jnp.any(~jnp.isfinite(leaf))), tree)
  return [path_of(path) for path, flag in jax.tree_util.tree_leaves_with_path(flags) if flag]


def _by_path(tree):
  """Counts of what is not finite, block by block under `blocks`."""
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: _not_finite(leaf, stacked=path_of(path[:1]) == "blocks"), tree
  )


def _not_finite(leaf, *, stacked: bool):
  axes = tuple(range(int(stacked), leaf.ndim))
  return jnp.sum(~jnp.isfinite(leaf), axis=axes, dtype=jnp.int32)


def _listed(counts, params) -> list[dict]:
  """What is not finite, as the forward pass comes to it: path, block or None, count, of what."""
  found = []
  for (path, count), leaf in zip(
      jax.tree_util.tree_leaves_with_path(counts), jax.tree.leaves(params)
  ):
    path, count = path_of(path), np.asarray(count)
    for block in np.flatnonzero(count):
      inside = count.ndim > 0
      found.append({
          "path": path, "block": int(block) if inside else None,
          "not_finite": int(np.ravel(count)[block]),
          "of": leaf.size // (leaf.shape[0] if inside else 1),
      })
  return sorted(found, key=_place)


def _place(entry: dict):
  names = entry["path"].split("/")
  ranks = [_FORWARD.index(name) if name in _FORWARD else len(_FORWARD) for name in names]
  return ranks[0], entry["block"] or 0, ranks, entry["path"]


def _name(entry: dict) -> str:
  return entry["path"] + ("" if entry["block"] is None else f" of block {entry['block']}")


def _some(entries: list[dict], *, listed: int = 3) -> str:
  """The first of some entries in words."""
  text = "; ".join(
      f"{_name(entry)} ({entry['not_finite']} of {entry['of']})" for entry in entries[:listed]
  )
  return text + (f" and {len(entries) - listed} more" if len(entries) > listed else "")


def _number(value) -> float | None:
  """A float, None where it is not finite, as JSON has no NaN."""
  return float(value) if np.isfinite(value) else None
