"""The part of a model card that says how to load the model; tests execute every snippet."""


def usage(card) -> str:
  """Markdown for the last step of a `model_card.Card`: transformers, timm and vit_jax."""
  step = card.steps[-1]
  ours = f"hf:{step.path}" if step.revision else step.path
  parts = [_timm(step) if card.to == "timm" else _transformers(card, step)]
  if card.timm and card.to != "timm":
    parts.append(_by_way_of_timm(card, ours))
  parts.append(_vit_jax(card, ours))
  if step.revision and len(card.steps) > 1:
    first = card.steps[0].revision
    parts.append(
        f"Another step is another revision: `revision=\"{first}\"` in transformers and "
        f"`{ours}@{first}` in vit_jax."
    )
  return "\n\n".join(parts)


def _python(code: str) -> str:
  return f"```python\n{code.strip()}\n```"


def _transformers(card, step) -> str:
  if card.classifies:
    code = f"""
from transformers import pipeline

classify = pipeline("image-classification", model="{step.path}")
print(classify("photo.jpg"))
"""
    return f"With transformers:\n\n{_python(code)}"
  # Without it, these make a pooler of random weights where the files have none.
  pooled = card.architecture in ("ViTModel", "DeiTModel")
  plain = pooled and not card.model["pre_logits"]
  options = ", add_pooling_layer=False" if plain else ""
  masked = "MaskedImageModeling" in card.architecture
  answer = "reconstruction" if masked else "last_hidden_state"
  code = f"""
import torch
from PIL import Image
from transformers import AutoImageProcessor, {card.architecture}

processor = AutoImageProcessor.from_pretrained("{step.path}")
model = {card.architecture}.from_pretrained("{step.path}"{options})
inputs = processor(Image.open("photo.jpg").convert("RGB"), return_tensors="pt")
with torch.no_grad():
  print(model(**inputs).{answer}.shape)
"""
  return f"With transformers:\n\n{_python(code)}"


def _timm(step) -> str:
  source = "hf-hub" if step.revision else "local-dir"
  code = f"""
import timm
import torch
from PIL import Image

model = timm.create_model("{source}:{step.path}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.no_grad():
  print(model(transform(Image.open("photo.jpg").convert("RGB"))[None]))
"""
  return f"With timm:\n\n{_python(code)}"


def _by_way_of_timm(card, ours: str) -> str:
  directory = f"{card.name}_timm"
  shell = f"vit-jax convert --model={ours} --output={directory} --to=timm"
  code = f"""
import timm

model = timm.create_model("local-dir:{directory}", pretrained=True).eval()
"""
  return (
      f"With timm, whose files have other names, converted by vit_jax:\n\n```bash\n{shell}\n```\n\n"
      f"{_python(code)}"
  )


def _vit_jax(card, ours: str) -> str:
  code = f"""
import vit_jax

checkpoint = vit_jax.load("{ours}")
model, params = checkpoint
print(model.apply({{"params": params}}, checkpoint.preprocess(["photo.jpg"])))
"""
  text = f"With vit_jax, in JAX:\n\n{_python(code)}"
  if card.classifies:
    text += f"\n\nor `vit-jax predict --model={ours} photo.jpg`."
  return text
