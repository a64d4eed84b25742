"""A process with timm in it, which answers requests, one JSON object a line (see timm_process.py).

It is apart from the tests because timm needs torchvision, and transformers, which the tests use
too, takes torchvision's presence for a promise that its compiled operators work.
"""

import json
import logging
import sys

import torch

# PyPI's torchvision beside another build of torch lacks its compiled operators, and its Python part
# stops at declaring how two of them act on abstract tensors.  Their schemas are all that it misses.
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
  _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import numpy as np
import timm
import timm.models


def create(create, *, images, random=False, save_directory=None, save_file=None):
  """A timm model; with random weights it may be saved as a directory or as a state dict."""
  model = timm.create_model(**create)
  if random:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
      for parameter in model.parameters():
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
  if save_directory:
    timm.models.save_for_hf(model, save_directory, safe_serialization=True)
  if save_file:
    torch.save({"model": model.state_dict()}, save_file)
  return _answer(model, images)


def bfloat16_npz(create, *, images, path):
  """What timm makes of an .npz with bfloat16 arrays."""
  from timm.models.vision_transformer import _load_weights

  model = timm.create_model(**create)
  _load_weights(model, path, load_bfloat16=True)
  return _answer(model, images)


def wrapper(directory, *, images, head=True):
  """What transformers answers, which loads a timm directory in a wrapper."""
  import transformers

  kind = transformers.AutoModelForImageClassification if head else transformers.AutoModel
  model, info = kind.from_pretrained(directory, output_loading_info=True, dtype="float32")
  answer = model.eval()(_pixels(images))
  outputs = answer.logits if head else answer.pooler_output
  labels = [model.config.id2label[i] for i in range(len(model.config.id2label))] if head else []
  return {
      "outputs": outputs.detach().numpy(), "labels": np.array(labels),
      "unclean": np.array([str(name) for names in info.values() for name in names]),
  }


def judge(module, directory, *, images):
  """What our own judge says, which imports timm."""
  import importlib

  judged = importlib.import_module(module).judge(directory, {"images": np.load(images)}, None)
  return judged["images"]


def architectures():
  """Names of every registered ViT, and of what is a plain one; with the arguments that matter."""
  from unittest import mock

  from timm.models import deit, vision_transformer

  found = {}
  note = lambda cls, variant, pretrained, **arguments: arguments
  with mock.patch.object(deit, "build_model_with_cfg", note), \
      mock.patch.object(vision_transformer, "build_model_with_cfg", note):
    for name in timm.list_models(module=["vision_transformer", "deit"]):
      arguments = timm.models.model_entrypoint(name)()
      found[name] = {
          "width": arguments.get("embed_dim", 768),
          "num_heads": arguments.get("num_heads", 12),
          "act_layer": _text(arguments.get("act_layer", "gelu")),
          "epsilon": getattr(arguments.get("norm_layer"), "keywords", {}).get("eps", 1e-6),
          "init_values": arguments.get("init_values"),
          "global_pool": arguments.get("global_pool", "token"),
          "odd": [
              key for key, value in arguments.items()
              if key in ("pre_norm", "block_fn", "attn_layer", "scale_attn_norm",
                         "pool_include_prefix", "embed_norm_layer")
              or (key == "final_norm" and not value) or (key == "proj_bias" and not value)
              or (key == "norm_layer" and "LayerNorm" not in str(value))
          ],
          "mlp_layer": _text(arguments.get("mlp_layer", "")),
      }
  return {"names": np.array(json.dumps(found)), "all": np.array(timm.list_models())}


def _text(value):
  return value if isinstance(value, str) else getattr(value, "__name__", str(value))


def _pixels(images):
  return torch.from_numpy(np.load(images).transpose(0, 3, 1, 2).copy())


def _answer(model, images):
  with torch.inference_mode():
    pixels = _pixels(images)
    model = model.eval()
    return {
        "tokens": model.forward_features(pixels).numpy(), "outputs": model(pixels).numpy(),
    }


class _Notes(logging.Handler):

  def __init__(self):
    super().__init__()
    self.lines = []

  def emit(self, record):
    self.lines.append(record.getMessage())


def main():
  torch.set_num_threads(1)
  notes = _Notes()
  logging.getLogger("timm").addHandler(notes)
  logging.getLogger("timm").setLevel(logging.INFO)
  operations = {f.__name__: f for f in (create, bfloat16_npz, wrapper, judge, architectures)}
  answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print stays out of the answers
  for line in sys.stdin:
    request = json.loads(line)
    notes.lines.clear()
    try:
      arrays = operations[request["operation"]](**request["arguments"])
      np.savez(request["answer"], **arrays)
      reply = {"notes": notes.lines}
    except Exception as error:  # the test that asked fails, the others go on
      reply = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(reply), file=answers, flush=True)


main()
