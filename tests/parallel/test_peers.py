"""Three processes that watch each other, here threads over real connections."""

import contextlib
import socket
import time

import pytest

from vit_jax.parallel.clusters import Cluster
from vit_jax.parallel.peers import Peers


class Star:
  """The connections of process 0 to 1 and 2, and who watches at their ends."""

  def __init__(self):
    self.sockets = {0: {}, 1: {}, 2: {}}
    with socket.create_server(("127.0.0.1", 0)) as server:
      for other in (1, 2):
        self.sockets[other][0] = socket.create_connection(server.getsockname())
        self.sockets[0][other], _ = server.accept()
    self.told = {0: [], 1: [], 2: []}
    self.peers = {
        process: Peers(
            Cluster("flags", "127.0.0.1:1", 3, process, ("a", "b", "c")), connections,
            end=lambda *said, process=process: self.told[process].append(said),
        )
        for process, connections in self.sockets.items()
    }

  def ends(self, process: int) -> None:
    """What the system does to the connections of a process that ends, and with it its watch."""
    self.peers[process]._leaving = True
    for connection in self.sockets[process].values():
      with contextlib.suppress(OSError):  # the other end has gone before
        connection.shutdown(socket.SHUT_RDWR)

  def settled(self, *survivors: int) -> list[list[tuple[str, int]]]:
    """What the survivors were told, and with what code to end."""
    deadline = time.monotonic() + 5
    while not all(self.told[process] for process in survivors) and time.monotonic() < deadline:
      time.sleep(0.005)
    return [self.told[process] for process in survivors]


@pytest.fixture
def star():
  star = Star()
  yield star
  for connections in star.sockets.values():
    for connection in connections.values():
      connection.close()


def test_all_hear_at_once_who_was_killed(star):
  began = time.monotonic()
  star.ends(2)
  told = star.settled(0, 1)
  assert time.monotonic() - began < 2
  assert told[0] == told[1] and len(told[0]) == 1
  text, code = told[0][0]
  assert text.startswith("process 2 (c) has gone without a word: it was killed") and code == 75


def test_all_hear_that_process_0_was_killed(star):
  star.ends(0)
  assert [said[0][0][:22] for said in star.settled(1, 2)] == ["process 0 (a) has gone"] * 2


@pytest.mark.parametrize("left, code", [(3, 3), (4, 4), (75, 75), (1, 75)])
def test_who_fails_says_with_what_code(star, left, code):
  """One that no launcher starts again is everybody's."""
  star.peers[1].leave(left, orderly=False)
  time.sleep(0.1)
  assert not star.told[0]  # it may be that all fail alike, and each says why
  star.ends(1)
  for said in star.settled(0, 2):
    assert said[0][1] == code
    assert said[0][0].startswith(f"process 1 (b) has left with exit code {left}: its messages")


def test_who_leaves_orderly_is_not_missed(star):
  for process in (1, 2, 0):
    star.peers[process].leave(75, orderly=True)
    star.ends(process)
  time.sleep(0.2)
  assert star.told == {0: [], 1: [], 2: []}


def test_the_others_are_watched_when_one_has_left_orderly(star):
  star.peers[1].leave(0, orderly=True)
  star.ends(1)
  time.sleep(0.1)
  star.ends(2)
  assert star.settled(0)[0][0][0].startswith("process 2 (c) has gone")


def test_who_leaves_no_longer_watches(star):
  star.peers[0].leave(2, orderly=False)
  star.ends(1)
  time.sleep(0.2)
  assert not star.told[0]
