"""What TensorBoard shows of a run."""

import struct

from tensorboardX.proto import event_pb2


def points_of(directory):
  """(tag, step) of every point that TensorBoard shows, after its purges, oldest file first."""
  shown = []
  files = (directory / "tensorboard").iterdir()
  for path in sorted(files, key=lambda path: path.stat().st_mtime_ns):
    content = path.read_bytes()
    while content:
      (length,) = struct.unpack("<Q", content[:8])
      event = event_pb2.Event.FromString(content[12:12 + length])
      content = content[16 + length:]
      if event.session_log.status == event_pb2.SessionLog.START:
        shown = [point for point in shown if point[1] < event.step]
      shown += [(value.tag, event.step) for value in event.summary.value]
  return shown
