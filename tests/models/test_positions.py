"""Resampled position embeddings against PyTorch's bicubic and SciPy's aligned bilinear."""

import numpy as np
import pytest
import scipy.ndimage

from vit_jax.models.positions import INTERPOLATIONS, resize_position_embedding

SIZES = [(14, 24), (14, 7), (7, 12), (16, 5), (3, 9), (2, 3), (24, 14), (32, 37)]


def table_of(side, *, token, width=6):
  rng = np.random.default_rng(side)
  return rng.standard_normal((1, side * side + token, width)).astype(np.float32)


def resized(table, new, interpolation):
  return resize_position_embedding(table, patches_per_side=new, interpolation=interpolation)


@pytest.mark.torch
@pytest.mark.parametrize("old, new", SIZES)
def test_bicubic_is_pytorchs(old, new):
  torch = pytest.importorskip("torch")
  table = table_of(old, token=1)
  grid = torch.from_numpy(table[:, 1:].reshape(1, old, old, -1)).permute(0, 3, 1, 2).double()
  wanted = torch.nn.functional.interpolate(
      grid, size=(new, new), mode="bicubic", align_corners=False
  )
  wanted = wanted.permute(0, 2, 3, 1).reshape(1, new * new, -1).numpy()
  got = resized(table, new, "bicubic")
  np.testing.assert_array_equal(got[:, :1], table[:, :1])
  np.testing.assert_allclose(got[:, 1:], wanted, atol=1e-6)


@pytest.mark.parametrize("old, new", SIZES)
def test_bilinear_is_scipys_zoom(old, new):
  table = table_of(old, token=1)
  zoom = (new / old, new / old, 1)
  grid = table[0, 1:].reshape(old, old, -1).astype(np.float64)
  wanted = scipy.ndimage.zoom(grid, zoom, order=1).reshape(1, new * new, -1)
  got = resized(table, new, "bilinear")
  np.testing.assert_array_equal(got[:, :1], table[:, :1])
  np.testing.assert_allclose(got[:, 1:], wanted, atol=1e-6)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("token", [0, 1])
def test_rows_are_the_grid_with_or_without_a_token(interpolation, token):
  table = table_of(4, token=token)
  got = resized(table, 6, interpolation)
  assert got.shape == (1, 36 + token, 6) and got.dtype == np.float32
  without = resized(table[:, token:], 6, interpolation)
  np.testing.assert_array_equal(got[:, token:], without)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_the_same_size_is_the_same_table(interpolation):
  table = table_of(5, token=1)
  np.testing.assert_array_equal(resized(table, 5, interpolation), table)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("new", [3, 11])
def test_a_constant_stays_constant(interpolation, new):
  got = resized(np.full((1, 49, 2), 0.7, np.float32), new, interpolation)
  np.testing.assert_allclose(got, 0.7, rtol=1e-6)


def test_rows_and_columns_are_not_exchanged():
  rows = np.repeat(np.arange(4.0), 4).reshape(1, 16, 1)
  got = resized(rows, 8, "bilinear").reshape(8, 8)
  assert np.all(got == got[:, :1]) and np.all(np.diff(got[:, 0]) > 0)


@pytest.mark.parametrize("rows", [3, 7, 15, 48])
def test_a_table_that_is_no_square_is_refused(rows):
  with pytest.raises(ValueError, match=f"{rows} positions"):
    resized(np.zeros((1, rows, 4), np.float32), 4, "bicubic")
