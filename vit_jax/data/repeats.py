"""Repeated augmentation (arXiv 1901.09335, 1902.05509): which example stands where.

The order of examples, all epochs in a row, is cut into groups of four; with R repeats a group fills
4 R places, once through for each repeat, each time turned by one:

  a b c d  b c d a  c d a b ...

So the copies of an image stand in one batch (but for those at its ends), at least three places
apart, and its neighbour, with which Mixup and CutMix pair it, changes from one copy to the next.
"""

_GROUP = 4


def repeated(position: int, repeats: int) -> int:
  """Place in the order without repeats of what stands at `position` of the order with them.

  Every place comes `repeats` times, within `4 * repeats` positions.
  """
  group, place = divmod(position, _GROUP * repeats)
  turn, slot = divmod(place, _GROUP)
  return group * _GROUP + (slot + turn) % _GROUP
