"""timm's registered ViTs: what a name stands for, and the name to build a model on.

Read off timm 1.0.31 (`timm/models/vision_transformer.py` and `deit.py`); a directory's config.json
names an architecture and may change any of its arguments in `model_args`.
"""

import re
from typing import Mapping

import numpy as np

from vit_jax.errors import CheckpointError

# Plain ViTs whose arguments `model_args` can set one by one, by patch size and width.
_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1408: "giant",
          1664: "gigantic"}
_PLAIN = (
    "vit_tiny_patch16_224", "vit_small_patch32_224", "vit_small_patch16_224",
    "vit_small_patch8_224", "vit_base_patch32_224", "vit_base_patch16_224", "vit_base_patch8_224",
    "vit_large_patch32_224", "vit_large_patch16_224", "vit_large_patch14_224",
    "vit_huge_patch14_224", "vit_giant_patch14_224", "vit_gigantic_patch14_224",
)
_DISTILLED = tuple(f"deit_{size}_distilled_patch16_224" for size in ("tiny", "small", "base"))
# Code, not JSON, gives these their MLP and their norm, so only these names have them.
SWIGLU = ("vit_giant_patch14_dinov2",)
_NORM_5 = ("vit_base_patch16_clip_224",)
EPSILON_5 = "layernorm with epsilon 1e-5"


def candidates(model: Mapping) -> tuple[str, ...]:
  """Architectures on which a directory of this model can be built, the first being the default.

  Args:
    model: a description.
  """
  if model["distillation_head"]:
    names, wanted = _DISTILLED, f"deit_{_SIZES.get(model['width'])}_distilled_patch16_224"
  elif model["mlp"] == "swiglu":
    names, wanted = SWIGLU, None
  elif model["layer_norm_epsilon"] == 1e-5:
    names, wanted = _NORM_5, None
  else:
    names = _PLAIN
    wanted = f"vit_{_SIZES.get(model['width'])}_patch{model['patch_size']}_224"
  general = names[-1] if names is _DISTILLED else "vit_base_patch16_224"
  first = next((name for name in (wanted, general) if name in names), names[0])
  return (first, *(name for name in names if name != first))


# Families whose members are `VisionTransformer` or its distilled kind, minus the members of these
# families that are something else.
_FAMILIES = re.compile(r"(vit|deit|deit3|flexivit|eva_large|test_vit)_.+|test_vit\d?")
_OTHERS = re.compile(
    r".*(relpos|_rope_|dinov3|sapiens2|lingbot|_pe_|_mci_|_r\d*_s\d+|_resnet\d+|beit3|aimv2).*"
)
# Arguments that a name sets in code; they matter only where they differ from the defaults below.
_WIRED = (
    (r".*_clip_.*", {"pre_norm": True, "norm_layer": EPSILON_5}),
    (r".*_quickgelu_.*", {"act_layer": "quick_gelu"}),
    (r".*_xp_.*", {"norm_layer": "rmsnorm", "block_fn": "ParallelScalingBlock"}),
    (r".*_rpn_.*", {"block_fn": "ResPostBlock"}),
    (r".*_18x2_.*", {"block_fn": "ParallelThingsBlock"}),
    (r"vit_(dwee|dlittle)_.*", {"attn_layer": "diff"}),
    (r"vit_d?pwee_.*", {"block_fn": "ParallelScalingBlock"}),
    (r".*_radio_.*|vit_intern300m_.*", {"final_norm": False}),
    (r"test_vit3", {"pool_include_prefix": True}),
    (r"test_vit4", {"norm_layer": "rmsnorm"}),
    (r"vit_base_patch32_siglip_.*|vit_giantopt_.*|vit_large_patch16_siglip_(gap_)?512"
     r"|vit_so400m_patch16_siglip_.*", {"act_layer": "gelu_tanh"}),
    (r"vit_giantopt_.*|vit_base_patch16_gap_224", {"num_heads": 16}),
    (r".*_gap_.*|eva_large_.*|test_vit2", {"global_pool": "avg"}),
    (r".*_siglip_(?!gap).*|.*_map_.*", {"global_pool": "map"}),
    (r"deit3_.*|vit_(medium|betwixt)_patch16_gap_.*", {"init_values": 1e-6}),
    (r".*_tipsv2", {"init_values": 1.0}),
    (r"vit_giant_.*(dinov2|tipsv2)", {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}),
)
# What may be set, and to what, for a model that ours can be; None for any value.
_READ = dict.fromkeys(
    ("img_size", "patch_size", "num_classes", "global_pool", "embed_dim", "depth", "num_heads",
     "mlp_ratio", "qkv_bias", "qk_norm", "init_values", "class_token", "no_embed_class",
     "reg_tokens", "fc_norm", "act_layer")
)
_HARMLESS = dict.fromkeys(
    ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
     "drop_path_rate", "weight_init", "fix_init", "dynamic_img_size", "dynamic_img_pad",
     "strict_img_size", "pretrained_strict", "out_indices")
)
_FIXED = {
    "in_chans": (3,), "pre_norm": (False,), "final_norm": (True,), "proj_bias": (True,),
    "scale_attn_norm": (False,), "scale_mlp_norm": (False,), "pool_include_prefix": (False,),
    "pos_embed": ("learn",), "block_fn": (), "embed_layer": (), "embed_norm_layer": (),
    "attn_layer": ("", "attn"), "mlp_layer": ("SwiGLUPacked",), "use_naflex": (False,),
    "norm_layer": ("layernorm", "layernormfp32", EPSILON_5),
}


def arguments(architecture: str, model_args: Mapping, path) -> dict:
  """Arguments of timm's class that matter to us: those of the name, changed by `model_args`.

  Raises:
    CheckpointError: another kind of model, or a setting that our ViT lacks; the text names it.
  """
  name = architecture.partition(".")[0]
  if not _FAMILIES.fullmatch(name) or _OTHERS.fullmatch(name):
    raise CheckpointError(
        f"{path}: architecture {architecture!r} is not a plain ViT of timm (its "
        "VisionTransformer, or the distilled kind of DeiT). Load it with timm."
    )
  found = {}
  for pattern, wired in _WIRED:
    found |= wired if re.fullmatch(pattern, name) else {}
  # As timm itself, where null means that nothing was said.
  found |= {key: value for key, value in model_args.items() if value is not None}
  for key, value in found.items():
    if key in _READ or key in _HARMLESS:
      continue
    value = value.replace("_", "").lower() if key == "norm_layer" and " " not in value else value
    if value not in _FIXED.get(key, ()):
      raise CheckpointError(
          f"{path}: {key} is {value!r} (of architecture {architecture!r} and its model_args), "
          "which this ViT does not have. Load it with timm."
      )
  return found


def num_heads(width: int) -> int:
  """Heads of the usual ViT of a width: 64 channels each, but for the largest and SoViT."""
  usual = {64: 2, 96: 3, 1152: 16, 1280: 16, 1408: 16, 1664: 16, 1792: 16}
  return usual.get(width) or max(width // 64, 1)


def mlp_ratio(hidden: int, width: int) -> float:
  """The ratio from which timm's int(width * ratio) makes `hidden`."""
  ratio = hidden / width
  return ratio if int(width * ratio) == hidden else float(np.nextafter(ratio, np.inf))
