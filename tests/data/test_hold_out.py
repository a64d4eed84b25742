"""The held-out split is a pure, stratified function of the contents."""

import random

import pytest

from vit_jax.data.hold_out import content_hash, hold_out
from vit_jax.errors import ConfigError


def records(sizes):
  """(content, label, name) of classes with the given sizes."""
  return [
      (f"image {label} {i}".encode(), label, f"{label}/{i}")
      for label, size in enumerate(sizes) for i in range(size)
  ]


def held(rows, fraction):
  contents, labels, names = zip(*rows)
  chosen = hold_out([content_hash(c) for c in contents], labels, names, fraction=fraction)
  return {row for row, out in zip(rows, chosen) if out}


def test_smallest_hashes_of_each_class():
  sizes, rows = (100, 37, 5, 2, 1), records((100, 37, 5, 2, 1))
  chosen = held(rows, 0.1)
  for label, (size, wanted) in enumerate(zip(sizes, (10, 4, 1, 1, 0))):
    members = [row for row in rows if row[1] == label]
    assert len(members) == size
    ours = [row for row in chosen if row[1] == label]
    assert len(ours) == wanted
    assert set(ours) == set(sorted(members, key=lambda r: content_hash(r[0]))[:wanted])


def test_order_and_names_do_not_matter():
  rows = records((40, 30))
  chosen = held(rows, 0.25)
  shuffled = rows[:]
  random.Random(0).shuffle(shuffled)
  assert held(shuffled, 0.25) == chosen
  renamed = [(content, label, name[::-1]) for content, label, name in rows]
  assert {row[:2] for row in held(renamed, 0.25)} == {row[:2] for row in chosen}


def test_a_new_image_moves_at_most_one_other_of_its_class():
  rows = records((50, 50))
  more = rows + [(b"new", 0, "0/new")]
  assert len((held(more, 0.2) ^ held(rows, 0.2)) - {more[-1]}) <= 1


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.7])
def test_equal_contents_stay_together(fraction):
  rows = [(f"content {i // 3}".encode(), 0, str(i)) for i in range(60)]
  chosen = held(rows, fraction)
  assert abs(len(chosen) - 60 * fraction) <= 1
  kept = {row[0] for row in rows if row not in chosen}
  assert not kept & {row[0] for row in chosen}


def test_a_class_of_one_content_is_cut_by_name():
  rows = [(b"same", 0, name) for name in "dbca"] + records((0, 4))
  chosen = {row for row in held(rows, 0.5) if row[1] == 0}
  assert chosen == {(b"same", 0, "a"), (b"same", 0, "b")}


def test_something_stays_on_each_side():
  rows = records((2, 3))
  for fraction in (0.01, 0.99):
    chosen = held(rows, fraction)
    for label in (0, 1):
      count = sum(row[1] == label for row in chosen)
      assert 1 <= count < (2, 3)[label]


def test_nothing_is_held_out_at_zero():
  assert not held(records((9, 9)), 0)


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5])
def test_fraction_out_of_range(fraction):
  with pytest.raises(ConfigError, match=str(fraction)):
    hold_out(["a"], [0], ["a"], fraction=fraction)
