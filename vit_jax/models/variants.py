"""Named sizes of the Vision Transformer, each with any patch size: "B/16", "So400m/14".

Sources: Ti, S: DeiT (arXiv 2012.12877, Table 1) and AugReg (2106.10270); B, L, H: ViT (2010.11929,
Table 1); g, G: Scaling ViTs (2106.04560, Table 2); So400m: Getting ViT in Shape (2305.13035).
"""

import difflib

SIZES = {
    # name: (width, depth, mlp_dim, num_heads)
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
}


def variant_shape(variant: str) -> dict[str, int]:
  """Returns width, depth, mlp_dim, num_heads and patch_size of a variant such as "B/16".

  Raises:
    ValueError: unknown size or no patch size; the text names the nearest size.
  """
  size, _, patch = variant.partition("/")
  if size not in SIZES:
    near = difflib.get_close_matches(size, SIZES, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"unknown ViT size {size!r} in {variant!r}; did you mean {near!r}? "
        f"Sizes: {', '.join(SIZES)}, each followed by /PATCH, as in B/16"
    )
  if not patch.isdigit() or int(patch) == 0:
    raise ValueError(f"{variant!r} has no patch size; write it as in {size}/16")
  shape = dict(zip(("width", "depth", "mlp_dim", "num_heads"), SIZES[size]))
  return shape | {"patch_size": int(patch)}
