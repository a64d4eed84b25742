"""Position embeddings against PyTorch's and SciPy's interpolation, and the published formulas."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from vit_jax.models.positions import INTERPOLATIONS, grid, resize_position_embedding, sincos2d

GRIDS = [
    ((14, 14), (24, 24)), ((14, 14), (7, 7)), ((16, 16), (5, 5)), ((3, 3), (9, 9)),
    ((2, 2), (3, 3)), ((32, 32), (37, 37)), ((14, 14), (10, 24)), ((8, 12), (12, 5)),
]
TORCH = {
    "bicubic": {"mode": "bicubic"},
    "bicubic_antialias": {"mode": "bicubic", "antialias": True},
    "bilinear_antialias": {"mode": "bilinear", "antialias": True},
}


def table_of(shape, *, token, width=6):
  rng = np.random.default_rng(shape)
  return rng.standard_normal((1, shape[0] * shape[1] + token, width)).astype(np.float32)


def resized(table, old, new, interpolation):
  return resize_position_embedding(
      table, old_grid=old, new_grid=new, interpolation=interpolation
  )


@pytest.mark.torch
@pytest.mark.parametrize("interpolation", TORCH)
@pytest.mark.parametrize("old, new", GRIDS)
def test_as_pytorch(interpolation, old, new):
  torch = pytest.importorskip("torch")
  table = table_of(old, token=1)
  patches = torch.from_numpy(table[:, 1:].reshape(1, *old, -1)).permute(0, 3, 1, 2).double()
  wanted = torch.nn.functional.interpolate(
      patches, size=new, align_corners=False, **TORCH[interpolation]
  )
  wanted = wanted.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).numpy()
  got = resized(table, old, new, interpolation)
  np.testing.assert_array_equal(got[:, :1], table[:, :1])
  np.testing.assert_allclose(got[:, 1:], wanted, atol=1e-6)


@pytest.mark.parametrize("old, new", GRIDS)
def test_bilinear_is_scipys_zoom(old, new):
  table = table_of(old, token=1)
  zoom = (new[0] / old[0], new[1] / old[1], 1)
  patches = table[0, 1:].reshape(*old, -1).astype(np.float64)
  wanted = scipy.ndimage.zoom(patches, zoom, order=1).reshape(1, new[0] * new[1], -1)
  got = resized(table, old, new, "bilinear")
  np.testing.assert_array_equal(got[:, :1], table[:, :1])
  np.testing.assert_allclose(got[:, 1:], wanted, atol=1e-6)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("token", [0, 1, 2])
def test_rows_of_tokens_stay_and_change_nothing(interpolation, token):
  table = table_of((4, 4), token=token)
  got = resized(table, (4, 4), (6, 5), interpolation)
  assert got.shape == (1, 30 + token, 6) and got.dtype == np.float32
  np.testing.assert_array_equal(got[:, :token], table[:, :token])
  without = resized(table[:, token:], (4, 4), (6, 5), interpolation)
  np.testing.assert_array_equal(got[:, token:], without)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_traced_as_loaded(interpolation):
  table = table_of((5, 5), token=1)
  np.testing.assert_array_equal(resized(table, (5, 5), (5, 5), interpolation), table)
  got = resized(jnp.asarray(table), (5, 5), (8, 3), interpolation)
  np.testing.assert_allclose(got, resized(table, (5, 5), (8, 3), interpolation), atol=2e-6)


def test_what_is_no_grid_is_refused():
  with pytest.raises(ValueError, match="are not those of"):
    resized(table_of((4, 4), token=3), (4, 4), (2, 2), "bicubic")
  with pytest.raises(ValueError, match="choose one of"):
    resized(table_of((4, 4), token=0), (4, 4), (2, 2), "nearest")
  for size in (30, (32, 36), 0, (32, 32, 32)):
    with pytest.raises(ValueError, match="not a multiple of the patch size 8"):
      grid(size, 8)
  assert grid(32, 8) == (4, 4) and grid((32, 64), 8) == (4, 8)


@pytest.mark.parametrize("kind, last", [("sincos2d", 3), ("sincos2d_mae", 4)])
def test_fixed_positions_are_the_published_formula(kind, last):
  """Element by element: of a quarter's 4 frequencies big_vision's last is 10000^-1, MAE's
  10000^-3/4 (big_vision/models/vit.py; MAE, util/pos_embed.py)."""
  rows, columns, width = 3, 5, 16
  got = sincos2d(kind, rows, columns, width)
  for y in range(rows):
    for x in range(columns):
      for k in range(4):
        omega = 1.0 / 10000.0 ** (k / last)
        wanted = [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)]
        np.testing.assert_allclose(got[y * columns + x, k::4], wanted, atol=1e-6)


def test_fixed_positions_are_stretched_so_that_pixels_keep_their_place():
  """The middle of a patch has the coordinate that it has in the counted grid; of 2 rows over 4:
  -0.25, 0.25, 0.75, 1.25."""
  got = sincos2d("sincos2d", 4, 3, 8, counted=(2, 6)).reshape(4, 3, 8)
  np.testing.assert_allclose(got[:, 0, 4], np.sin([-0.25, 0.25, 0.75, 1.25]), atol=1e-6)
  np.testing.assert_allclose(got[0, :, 0], np.sin([0.5, 2.5, 4.5]), atol=1e-6)
  np.testing.assert_array_equal(
      sincos2d("sincos2d", 3, 5, 8, counted=(3, 5)), sincos2d("sincos2d", 3, 5, 8)
  )


def test_fixed_positions_need_quarters():
  with pytest.raises(ValueError, match="multiple of 4"):
    sincos2d("sincos2d", 2, 2, 6)
