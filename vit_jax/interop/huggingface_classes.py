"""The classes of transformers that are read and written, and what each can hold."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Family:
  """What the classes of one `model_type` have in common: transformers' own defaults and formulas.

  Attributes:
    position_interpolation: what its `interpolate_pos_encoding` does (transformers 5.23).
    defaults: keys of config.json that may be absent.
    tokens: "class", "class and distillation", or "patches" alone.
    dinov2: LayerScale in every block, SwiGLU on request, the MLP's width by a ratio.
    square: images of another shape than a square have no positions in it.
  """

  position_interpolation: str = "bicubic"
  defaults: tuple[tuple[str, object], ...] = (("layer_norm_eps", 1e-12),)
  tokens: str = "class"
  dinov2: bool = False
  square: bool = False


_DINOV2 = (("layer_norm_eps", 1e-6), ("layerscale_value", 1.0), ("mlp_ratio", 4))
_SIGLIP = Family(
    tokens="patches", square=True,
    defaults=(("layer_norm_eps", 1e-6), ("hidden_act", "gelu_pytorch_tanh")),
)
_SIGLIP2 = dataclasses.replace(_SIGLIP, position_interpolation="bilinear_antialias")

# By model_type of config.json.
FAMILIES = {
    "vit": Family(),
    "deit": Family(tokens="class and distillation"),
    "ijepa": Family(tokens="patches"),
    "dinov2": Family(dinov2=True, square=True, defaults=(*_DINOV2, ("patch_size", 14))),
    "dinov2_with_registers": Family(
        dinov2=True, square=True, defaults=(*_DINOV2, ("num_register_tokens", 4)),
        position_interpolation="bicubic_antialias",
    ),
    "siglip_vision_model": _SIGLIP,
    "siglip": _SIGLIP,
    "siglip2_vision_model": _SIGLIP2,
    "siglip2": _SIGLIP2,
    "vit_mae": Family(),
    "vit_msn": Family(defaults=(("layer_norm_eps", 1e-6),)),
}


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One class that is written.

  Attributes:
    name: of the class.
    model_type: its family.
    prefix: of the encoder's tensors on disk.
    answer: of what our model must answer with: "cls", "gap" or "map", a feature of this pooling;
      "logits" of a classifier on "cls", or on "gap" where there is no class token; "both logits",
      their mean with those of the distillation token; "pixels".
    pooler: whether `pre_logits` has a place (the pooler).
    mask_token: "kept" where the model has one, "made" where it has none, or "dropped".
  """

  name: str
  model_type: str
  prefix: str
  answer: str
  pooler: bool = False
  mask_token: str = "dropped"

  @property
  def family(self) -> Family:
    return FAMILIES[self.model_type]

  @property
  def pooling(self) -> str:
    """Of the models it holds, as our description names it."""
    if self.answer in ("map", "pixels"):
      return {"map": "map", "pixels": "none"}[self.answer]
    return "gap" if self.family.tokens == "patches" else "cls"


# The richest first: without a wish the first that leaves nothing of the answer out is written.
ARCHITECTURES = {
    a.name: a for a in (
        Architecture("ViTForMaskedImageModeling", "vit", "vit.", "pixels", mask_token="made"),
        Architecture("DeiTForImageClassificationWithTeacher", "deit", "deit.", "both logits"),
        Architecture("DeiTForImageClassification", "deit", "deit.", "logits"),
        Architecture("ViTForImageClassification", "vit", "vit.", "logits"),
        Architecture("IJepaForImageClassification", "ijepa", "ijepa.", "logits"),
        Architecture("SiglipVisionModel", "siglip_vision_model", "vision_model.", "map"),
        Architecture("DeiTModel", "deit", "", "cls", pooler=True, mask_token="kept"),
        Architecture("ViTModel", "vit", "", "cls", pooler=True, mask_token="kept"),
        Architecture("IJepaModel", "ijepa", "", "gap", mask_token="kept"),
        Architecture("Dinov2Model", "dinov2", "", "cls", mask_token="kept"),
        Architecture(
            "Dinov2WithRegistersModel", "dinov2_with_registers", "", "cls", mask_token="made"
        ),
    )
}

# Read, but not written.
READ_ONLY = (
    "Siglip2VisionModel", "SiglipModel", "Siglip2Model", "ViTMAEModel", "ViTMAEForPreTraining",
    "ViTMSNModel", "ViTMSNForImageClassification",
)

# Classes of these families that are not read, and why.
_DINOV2_HEAD = (
    "its classifier sees the class token and the mean of the patches side by side, which no head "
    "of this ViT does. The encoder can be read: save it alone, {base}.from_pretrained(DIR)"
    ".save_pretrained(NEW)"
)
_SIGLIP_HEAD = (
    "its classifier sees the mean of the patches and leaves the attention head unused. Read the "
    "{base} that it was made from"
)
REFUSED = {
    "Dinov2ForImageClassification": _DINOV2_HEAD.format(base="Dinov2Model"),
    "Dinov2WithRegistersForImageClassification": _DINOV2_HEAD.format(
        base="Dinov2WithRegistersModel"
    ),
    "SiglipForImageClassification": _SIGLIP_HEAD.format(base="SiglipVisionModel"),
    "Siglip2ForImageClassification": _SIGLIP_HEAD.format(base="Siglip2VisionModel"),
    "DeiTForMaskedImageModeling": (
        "transformers changed after 5.8 which tokens it decodes. Save its encoder alone, "
        "DeiTModel.from_pretrained(DIR, use_mask_token=True).save_pretrained(NEW)"
    ),
}
REFUSED_FAMILIES = {
    "beit": "BEiT adds relative position biases to its attention, which this ViT does not have",
    "data2vec-vision": (
        "Data2Vec adds relative position biases to its attention, which this ViT does not have"
    ),
    "dinov3_vit": "DINOv3 rotates queries and keys by position, which this ViT does not do",
    "clip_vision_model": "CLIP normalises before its first block, which this ViT does not do",
    "clip": "CLIP normalises before its first block, which this ViT does not do",
    "timm_wrapper": "this is a timm model in transformers' wrapper, not one of its own",
}


def swiglu_width(width: int, mlp_ratio: int) -> int:
  """Hidden width of DINOv2's SwiGLU (transformers `Dinov2SwiGLUFFN`)."""
  return (int(int(width * mlp_ratio) * 2 / 3) + 7) // 8 * 8


def mlp_ratio(model) -> int | None:
  """The whole number that gives DINOv2 this description's `mlp_dim`, None where there is none."""
  width, hidden = model["width"], model["mlp_dim"]
  if model["mlp"] == "gelu":
    return hidden // width if hidden % width == 0 else None
  ratios = range(1, 2 * hidden // width + 2)
  return next((r for r in ratios if swiglu_width(width, r) == hidden), None)
