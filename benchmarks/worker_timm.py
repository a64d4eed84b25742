"""timm's VisionTransformer in a plain PyTorch loop that does the work of ours, step by step.

uint8 images on the device, normalised there; autocast for bfloat16; gradient clipping; fused
AdamW with decay on matrices alone; `torch.compile` around normalisation, model and loss where
asked.
"""

import sys

import torch


class Contestant:
  """The model, its optimizer and the batch of one job; on one device."""

  def __init__(self, job):
    if job["backend"] == "gpu" and not torch.cuda.is_available():
      raise ImportError(f"torch {torch.__version__} sees no CUDA device")
    if job["backend"] not in ("gpu", "cpu"):
      raise ImportError(f"torch does not run on {job['platform']}")
    timm = import_timm()
    self._cuda = job["backend"] == "gpu"
    device = torch.device("cuda" if self._cuda else "cpu")
    torch.manual_seed(0)
    shape = job["model"]
    self._model = timm.models.VisionTransformer(
        img_size=shape["image_size"], patch_size=shape["patch_size"],
        num_classes=shape["num_classes"], embed_dim=shape["width"], depth=shape["depth"],
        num_heads=shape["num_heads"], mlp_ratio=shape["mlp_dim"] / shape["width"],
    ).to(device)
    optimizer = job["optimizer"]
    self._clip = optimizer["clip_global_norm"]
    groups = timm.optim.param_groups_weight_decay(
        self._model, optimizer["weight_decay"],
        no_weight_decay_list=self._model.no_weight_decay(),
    )
    self._optimizer = torch.optim.AdamW(
        groups, lr=optimizer["learning_rate"], betas=(optimizer["b1"], optimizer["b2"]),
        fused=True,
    )

    pixels = (job["batch"], 3, shape["image_size"], shape["image_size"])
    self._images = torch.randint(0, 256, pixels, dtype=torch.uint8, device=device)
    self._labels = torch.randint(0, shape["num_classes"], (job["batch"],), device=device)
    mean, std = (
        torch.tensor(job[name], device=device).reshape(1, 3, 1, 1) for name in ("mean", "std")
    )
    bfloat16 = shape["dtype"] == "bfloat16"

    def loss(images, labels):
      images = (images.float() * (1 / 255) - mean) / std
      with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        logits = self._model(images)
      return torch.nn.functional.cross_entropy(logits.float(), labels)

    self._compute_loss = torch.compile(loss) if job["compile"] else loss
    self.facts = {
        "parameters": sum(p.numel() for p in self._model.parameters()),
        "device": torch.cuda.get_device_name() if self._cuda else "cpu",
        "devices": 1,
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }

  def run(self, steps: int):
    for _ in range(steps):
      loss = self._compute_loss(self._images, self._labels)
      loss.backward()
      torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
      self._optimizer.step()
      self._optimizer.zero_grad(set_to_none=True)
    self._loss = loss.item()
    if self._cuda:
      torch.cuda.synchronize()

  def finish(self) -> dict:
    peak = torch.cuda.max_memory_allocated() if self._cuda else None
    return {"loss": self._loss, "peak_bytes": peak}


def import_timm():
  """Imports timm, also beside a torchvision whose compiled operators do not fit torch.

  timm imports torchvision for transforms that nothing here calls.  Where PyPI's torchvision
  meets another build of torch (as 0.28.0 meets 2.13.0+cpu) its library of operators is not
  loaded, and its Python part stops at declaring how two of them act on abstract tensors:
  "operator torchvision::nms does not exist".  Their schemas are all that it misses.
  """
  try:
    import timm
  except RuntimeError as error:
    if "operator torchvision::nms does not exist" not in str(error):
      raise
    for name in ("nms", "qnms"):
      _OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [n for n in sys.modules if n.split(".")[0] in ("timm", "torchvision")]:
      del sys.modules[name]
    import timm
  import timm.models
  import timm.optim
  return timm


# torch forgets the schemas when this object is gone.
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
