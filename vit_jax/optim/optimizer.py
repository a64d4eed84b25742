"""The optimizer: clip, scale, decay, step."""

import jax
import numpy as np
import optax

from vit_jax.errors import ConfigError
from vit_jax.optim.rules import check_rules, decay_mask, frozen_mask, multipliers

OPTIMIZERS = ("adam", "adamw", "sgd")


def make_optimizer(
    name: str, *, schedule, b1: float, b2: float, momentum: float, weight_decay: float,
    weight_decay_mask: str, clip_global_norm: float | None, epsilon: float = 1e-8,
    weight_decay_independent: bool = False, moment_dtype: str | None = None,
    learning_rate_rules=(), layer_decay: float | None = None, freeze: str | None = None,
    peak_learning_rate: float | None = None, depth: int | None = None,
) -> optax.GradientTransformation:
  """Chains clipping, Adam or momentum, weight decay, the rules' multipliers and the learning rate.

  With u what Adam or momentum make of the clipped gradient, m a parameter's multiplier
  (`rules.multipliers`), and a parameter p that decays:
    adam                 p -= rate * m * u, the gradient of u being g + weight_decay * p
    adamw, sgd           p -= rate * m * (u + weight_decay * p)
    ... independent      p -= rate * m * u + (rate / peak) * weight_decay * p
  The second is PyTorch's and timm's, where m also scales the decay; the third, whose decay follows
  the schedule's shape alone and knows no m, is big_vision's (`optax.py`).

  Args:
    name: "adam" (arXiv 1412.6980), "adamw" (arXiv 1711.05101) or "sgd" with heavy-ball momentum.
    schedule: learning rate as a function of the step.
    b1, b2, epsilon: of Adam; not used by "sgd".
    momentum: of "sgd"; not used by the others.
    weight_decay: see above.
    weight_decay_mask: regular expression; parameters whose path it finds decay.
    clip_global_norm: largest l2 norm of the gradient of all that is trained; None for no clipping.
    weight_decay_independent: of the learning rate; needs `peak_learning_rate`.
    moment_dtype: "bfloat16" stores Adam's first moment or the momentum so (Scaling ViT, arXiv
      2106.04560, section 3.4); every product stays float32.  None stores float32.
    learning_rate_rules, layer_decay: see `rules.multipliers`.
    freeze: regular expression; the parameters that it finds are not updated, do not decay, have no
      moments and do not count in the clipped norm.
    peak_learning_rate: of `schedule`.
    depth: number of blocks; needed by `layer_decay`.

  Returns:
    A transformation whose `init` raises ConfigError where a rule takes no parameter
    (`rules.check_rules`).

  Raises:
    ConfigError: "adam" with independent decay.
    ValueError: unknown name, or an argument that another needs is missing.
  """
  if name not in OPTIMIZERS:
    raise ValueError(f"unknown optimizer {name!r}; choose one of {OPTIMIZERS}")
  if weight_decay_independent:
    _check_independent(name, peak_learning_rate)
    weight_decay = weight_decay / peak_learning_rate
  if layer_decay is not None and depth is None:
    raise ValueError("layer_decay needs depth")
  parts = {"scale": _scale(name, b1, b2, epsilon, momentum, moment_dtype)}
  if clip_global_norm:
    parts["clip"] = optax.clip_by_global_norm(clip_global_norm)
  if weight_decay:
    parts["decay"] = _decay(weight_decay, weight_decay_mask)
  if learning_rate_rules or layer_decay is not None:
    parts["multiply"] = _multiply(learning_rate_rules, layer_decay, depth)
  order = ["clip", "scale", "decay", "multiply"]
  if name == "adam":
    order = ["clip", "decay", "scale", "multiply"]
  elif weight_decay_independent:
    order = ["clip", "scale", "multiply", "decay"]
  # Every part has a name and a place, and none but "scale" and the last a state: so that an amended
  # run may begin or end one.
  chain = optax.named_chain(
      *((part, parts.get(part, optax.identity())) for part in order),
      ("learning_rate", optax.scale_by_learning_rate(schedule)),
  )
  if freeze is not None:
    chain = _freeze(chain, freeze)

  def init(params):
    check_rules(
        params, weight_decay_mask=weight_decay_mask, learning_rate_rules=learning_rate_rules,
        freeze=freeze,
    )
    return chain.init(params)

  return optax.GradientTransformationExtraArgs(init, chain.update)


def _check_independent(name: str, peak_learning_rate: float | None) -> None:
  if name == "adam":
    raise ConfigError(
        "config.optimizer.weight_decay_independent is set, but config.optimizer.name 'adam' adds "
        "the decay to the gradient, where it cannot be independent of the learning rate: choose "
        "'adamw', or leave it off"
    )
  if peak_learning_rate is None:
    raise ValueError("weight_decay_independent needs peak_learning_rate")


def _scale(name, b1, b2, epsilon, momentum, moment_dtype):
  """Adam or momentum, the (first) moment stored in `moment_dtype`."""
  if moment_dtype is not None:
    # A Python float would take the moment's dtype in their product, and 0.999 in bfloat16 is 1.
    b1, momentum = np.float32(b1), np.float32(momentum)
  if name == "sgd":
    return optax.trace(decay=momentum, accumulator_dtype=moment_dtype)
  return optax.scale_by_adam(b1=b1, b2=b2, eps=epsilon, mu_dtype=moment_dtype)


def _decay(weight_decay: float, pattern: str):
  """Adds `weight_decay` times the parameters that decay."""

  def update(updates, params):
    decays = decay_mask(params, pattern)
    return jax.tree.map(
        lambda u, p, decay: u + weight_decay * p if decay else u, updates, params, decays
    )

  return optax.stateless(update)


def _multiply(learning_rate_rules, layer_decay, depth):
  """Multiplies updates as the rules say."""

  def update(updates, params):
    del params
    factors = multipliers(
        updates, learning_rate_rules=learning_rate_rules, layer_decay=layer_decay, depth=depth
    )
    return jax.tree.map(lambda u, factor: u * factor, updates, factors)

  return optax.stateless(update)


def _freeze(chain, pattern: str):
  """`chain` for the parameters that the pattern does not find, no update for the others."""

  def labels(params):
    frozen = frozen_mask(params, pattern)
    return jax.tree.map(lambda fixed: "frozen" if fixed else "trained", frozen)

  return optax.partition({"trained": chain, "frozen": optax.set_to_zero()}, labels)
