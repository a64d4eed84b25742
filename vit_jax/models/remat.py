"""Rematerialisation: what of a block the backward pass computes again, to save memory."""

import jax

from vit_jax.models.layers import NAMES

_NAMED = "names:"
# By name, for a policy that looks for products does not see those of `dense.product`.
_DENSE = ("query", "key", "value", "attention", "fc1", "gate", "mlp")
# A byte an element, and most of what computing dropout costs: 20 rounds of a hash.
_MASK = ("dropout_mask",)
CHOICES = ("none", "dots", "block")


def remat(run_block, choice: str, *, in_scan: bool):
  """Wraps a function of (tokens, layer) so that its backward pass keeps less.

  Args:
    choice: "none" keeps what XLA needs; "dots" keeps the results of the layers' matrix products and
      the masks of dropout, and computes norms, GELU and attention weights again; "block" keeps the
      input of the block alone; "names:query,key,..." keeps those of `layers.NAMES`.
    in_scan: whether `lax.scan` calls it; elsewhere XLA must be hindered from merging what is
      computed twice (on a CPU it merges nevertheless, and saves nothing).

  Raises:
    ValueError: unknown choice.
  """
  if choice == "none":
    return run_block
  kept = {"dots": _DENSE + _MASK, "block": ()}
  kept = kept[choice] if choice in kept else names_of(choice)
  policy = jax.checkpoint_policies.save_only_these_names(*kept)
  return jax.checkpoint(run_block, policy=policy, prevent_cse=not in_scan)


def names_of(choice: str) -> tuple[str, ...]:
  """The names in "names:query,key".

  Raises:
    ValueError: it does not begin so, or a name is not one of `layers.NAMES`.
  """
  if not choice.startswith(_NAMED):
    raise ValueError(f"{choice!r} is none of {', '.join(CHOICES)}, {_NAMED}NAME,NAME")
  names = tuple(choice.removeprefix(_NAMED).split(","))
  if unknown := [name for name in names if name not in NAMES]:
    raise ValueError(f"{choice!r}: {unknown[0]!r} is none of {', '.join(NAMES)}")
  return names
