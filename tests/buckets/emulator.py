"""Google's storage, as far as training needs it: a server of its JSON API on the loopback.

Objects lie in memory.  gcsfs and google-cloud-storage come here by STORAGE_EMULATOR_HOST,
TensorStore by TENSORSTORE_GCS_HTTP_URL, array_record by CLOUD_STORAGE_EMULATOR_ENDPOINT.  Rules
make it misbehave.
"""

import base64
import contextlib
import dataclasses
import datetime
import hashlib
from http import server
import itertools
import json
import re
import socket
import struct
import threading
import time
from urllib import parse

_OBJECT = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)")
_COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)")
_LIST = re.compile(r"/storage/v1/b/([^/]+)/o")
_BUCKET = re.compile(r"/storage/v1/b/([^/]+)")
_UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")
_SESSION = re.compile(r"/session/(\d+)")
_PAGE = 1000  # entries of a listing


@dataclasses.dataclass
class Fault:
  """A rule by which requests are answered wrongly.

  Attributes:
    pattern: regular expression that is searched for in "METHOD PATH?QUERY", unquoted.
    status: of the answer instead of the right one; None for the right one, after `delay`.
    delay: seconds before any answer.
    reset: the connection is cut instead.
    after: how many such requests are answered rightly first.
    times: how many are then answered wrongly.
    lost: the request is carried out, and only its answer is wrong.
  """

  pattern: str
  status: int | None = None
  delay: float = 0.0
  reset: bool = False
  after: int = 0
  times: int = 1_000_000
  lost: bool = False


@dataclasses.dataclass(frozen=True)
class Stored:
  """One object."""

  content: bytes
  generation: int
  updated: datetime.datetime


class Answer(Exception):
  """Ends the handling of a request with an error's status."""

  def __init__(self, status: int, message: str = ""):
    super().__init__(message)
    self.status, self.message = status, message


class Emulator:
  """The server; a context in which it answers.

  Attributes:
    buckets: {bucket: {name: Stored}}; to be changed by `put` and `remove`.
    faults: rules, the first that fits counts; the list may be changed at any time.
    requests: "METHOD PATH?QUERY" of each request, unquoted, in order.
  """

  def __init__(self, *buckets: str):
    self.buckets: dict[str, dict[str, Stored]] = {name: {} for name in buckets}
    self.faults: list[Fault] = []
    self.requests: list[str] = []
    self.lock = threading.RLock()
    self.sessions: dict[int, _Session] = {}
    self.numbers = itertools.count(1)
    self._server = _Server(("127.0.0.1", 0), _Handler)
    self._server.emulator = self

  def __enter__(self):
    threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
    return self

  def __exit__(self, *_):
    self._server.shutdown()
    self._server.server_close()

  @property
  def url(self) -> str:
    return f"http://127.0.0.1:{self._server.server_address[1]}"

  def environment(self) -> dict[str, str]:
    """What leads the libraries here, and keeps them from looking for credentials elsewhere."""
    return {
        "STORAGE_EMULATOR_HOST": self.url,
        "TENSORSTORE_GCS_HTTP_URL": self.url,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,
        "CLOUDSDK_CONFIG": "/nonexistent",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "NO_GCE_CHECK": "true",
        "GCE_METADATA_HOST": "127.0.0.1:1",
        "GCE_METADATA_ROOT": "127.0.0.1:1",
    }

  def names(self, bucket: str, prefix: str = "") -> list[str]:
    with self.lock:
      return sorted(name for name in self.buckets[bucket] if name.startswith(prefix))

  def read(self, bucket: str, name: str) -> bytes:
    return self.buckets[bucket][name].content

  def put(self, bucket: str, name: str, content: bytes) -> Stored:
    with self.lock:
      generation = time.time_ns() // 1000 * 1000 + next(self.numbers) % 1000
      now = datetime.datetime.now(datetime.timezone.utc)
      stored = self.buckets[bucket][name] = Stored(bytes(content), generation, now)
    return stored

  def remove(self, bucket: str, name: str) -> None:
    with self.lock:
      del self.buckets[bucket][name]

  def flip(self, bucket: str, name: str, position: int = 0) -> None:
    """Changes a bit of an object."""
    content = bytearray(self.read(bucket, name))
    content[position] ^= 1
    self.put(bucket, name, bytes(content))

  def fault(self, line: str) -> Fault | None:
    """The rule that a request falls under, counted."""
    with self.lock:
      self.requests.append(line)
      for fault in self.faults:
        if not re.search(fault.pattern, line):
          continue
        if fault.after > 0:
          fault.after -= 1
        elif fault.times > 0:
          fault.times -= 1
          return fault
    return None


@dataclasses.dataclass
class _Session:
  """A resumable upload under way."""

  bucket: str
  name: str
  conditions: dict[str, str]
  content: bytearray = dataclasses.field(default_factory=bytearray)


class _Server(server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 256
  emulator: Emulator

  def handle_error(self, request, client_address):
    """A client that left is nothing to print."""


class _Handler(server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  disable_nagle_algorithm = True

  def _handle(self):
    url = parse.urlsplit(self.path)
    self.query = {key: values[-1] for key, values in parse.parse_qs(url.query).items()}
    length = int(self.headers.get("Content-Length") or 0)
    self.body = self.rfile.read(length) if length else self._chunks()
    fault = self.server.emulator.fault(f"{self.command} {parse.unquote(self.path)}")
    if fault:
      time.sleep(fault.delay)
      if fault.lost:
        with contextlib.suppress(Answer):
          self._route(url.path)
      if fault.reset:
        self._reset()
        return
    try:
      if fault and fault.status:
        raise Answer(fault.status, "as the test wants it")
      status, headers, content = self._route(url.path)
    except Answer as answer:
      error = {"code": answer.status, "message": answer.message,
               "errors": [{"message": answer.message, "domain": "global", "reason": "test"}]}
      status, headers = answer.status, {"Content-Type": "application/json"}
      content = b"" if status == 304 else json.dumps({"error": error}).encode()
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, str(value))
    if status != 304:
      self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(content)

  def _reset(self):
    """Cuts the connection without lingering: the client sees a reset, not an end."""
    linger = struct.pack("ii", 1, 0)
    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    self.close_connection = True
    self.connection.close()

  do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _handle

  def log_message(self, *_):
    """Nothing: the tests read `Emulator.requests`."""

  def _chunks(self) -> bytes:
    """The body of a request without a length."""
    if self.headers.get("Transfer-Encoding") != "chunked":
      return b""
    body = b""
    while size := int(self.rfile.readline().split(b";")[0], 16):
      body += self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()
    return body

  def _route(self, path: str):
    """(status, headers, content) of the right answer."""
    routes = {
        "GET": ((_OBJECT, self._get), (_LIST, self._list), (_BUCKET, self._bucket)),
        "POST": ((_UPLOAD, self._upload), (_COPY, self._copy), (_SESSION, self._part)),
        "PUT": ((_SESSION, self._part),),
        "DELETE": ((_OBJECT, self._delete), (_SESSION, self._forget)),
    }
    for pattern, answer in routes.get(self.command, ()):
      if match := pattern.fullmatch(path):
        with self.server.emulator.lock:
          return answer(*map(parse.unquote, match.groups()))
    raise Answer(501, f"{self.command} {path} is not emulated")

  def _objects(self, bucket: str) -> dict[str, Stored]:
    try:
      return self.server.emulator.buckets[bucket]
    except KeyError:
      raise Answer(404, "The specified bucket does not exist.") from None

  def _found(self, bucket: str, name: str) -> Stored:
    try:
      return self._objects(bucket)[name]
    except KeyError:
      raise Answer(404, f"No such object: {bucket}/{name}") from None

  def _check(self, bucket: str, name: str, conditions: dict[str, str]) -> None:
    """Holds the conditions on the generation of an object that may be missing."""
    stored = self._objects(bucket).get(name)
    generation = str(stored.generation) if stored else "0"
    if conditions.get("ifGenerationMatch", generation) != generation:
      raise Answer(412, "At least one of the pre-conditions you specified did not hold.")
    if conditions.get("ifGenerationNotMatch") == generation:
      raise Answer(304 if self.command == "GET" else 412)
    if stored and conditions.get("generation", generation) != generation:
      raise Answer(404, f"No such object: {bucket}/{name}#{conditions['generation']}")

  def _bucket(self, bucket: str):
    self._objects(bucket)
    return _json({"kind": "storage#bucket", "id": bucket, "name": bucket, "location": "US"})

  def _list(self, bucket: str):
    """Objects and, by the delimiter, prefixes in one order, a page at a time."""
    query = self.query
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    start = max(query.get("startOffset", ""), query.get("pageToken", ""))
    end, size = query.get("endOffset"), min(_PAGE, int(query.get("maxResults", _PAGE)))
    items, prefixes = [], []
    for name, stored in sorted(self._objects(bucket).items()):
      if not name.startswith(prefix) or (end is not None and name >= end):
        continue
      inner, cut, _ = name[len(prefix):].partition(delimiter) if delimiter else ("", "", "")
      entry = prefix + inner + cut if cut else name
      if name < start or entry < start or entry in prefixes:
        continue
      if len(items) + len(prefixes) == size:
        return _listing(items, prefixes, entry)
      if cut:
        prefixes.append(entry)
      else:
        items.append(_metadata(bucket, name, stored))
    return _listing(items, prefixes, None)

  def _get(self, bucket: str, name: str):
    self._check(bucket, name, self.query)
    stored = self._found(bucket, name)
    if self.query.get("alt") != "media":
      return _json(_metadata(bucket, name, stored))
    content, status = stored.content, 200
    headers = {
        "Content-Type": "application/octet-stream",
        "Last-Modified": self.date_time_string(int(stored.updated.timestamp())),
        "x-goog-generation": stored.generation,
        "x-goog-metageneration": 1,
        "x-goog-stored-content-length": len(content),
        "x-goog-stored-content-encoding": "identity",
        "x-goog-hash": f"md5={_md5(content)}",
    }
    if asked := self.headers.get("Range"):
      first, last = _range(asked, len(content))
      headers["Content-Range"] = f"bytes {first}-{last - 1}/{len(content)}"
      content, status = content[first:last], 206
    return status, headers, content

  def _upload(self, bucket: str):
    kind, query = self.query.get("uploadType"), self.query
    self._objects(bucket)
    if kind == "media":
      return self._store(bucket, query["name"], self.body, query)
    if kind == "multipart":
      described, content = _parts(self.headers["Content-Type"], self.body)
      return self._store(bucket, query.get("name") or described["name"], content, query)
    if kind != "resumable":
      raise Answer(400, f"uploadType {kind}")
    name = query.get("name") or json.loads(self.body)["name"]
    self._check(bucket, name, query)
    emulator = self.server.emulator
    number = next(emulator.numbers)
    emulator.sessions[number] = _Session(bucket, name, query)
    return 200, {"Location": f"{emulator.url}/session/{number}"}, b""

  def _part(self, number: str):
    """A part of a resumable upload: "bytes 0-99/*", "bytes 100-149/150" or "bytes */150"."""
    session = self.server.emulator.sessions.get(int(number))
    if session is None:
      raise Answer(404, "no such upload")
    first, last, total = re.fullmatch(
        r"bytes (?:\*|(\d+)-(\d+))/(\d+|\*)", self.headers["Content-Range"]
    ).groups()
    if first is not None:
      if int(first) > len(session.content):
        raise Answer(400, "a part is missing")
      session.content[int(first):] = self.body
    if total == "*" or len(session.content) < int(total):
      received = len(session.content)
      return 308, {"Range": f"bytes=0-{received - 1}"} if received else {}, b""
    del self.server.emulator.sessions[int(number)]
    return self._store(session.bucket, session.name, bytes(session.content), session.conditions)

  def _forget(self, number: str):
    self.server.emulator.sessions.pop(int(number), None)
    return 204, {}, b""

  def _store(self, bucket: str, name: str, content: bytes, conditions: dict[str, str]):
    self._check(bucket, name, conditions)
    stored = self.server.emulator.put(bucket, name, content)
    return _json(_metadata(bucket, name, stored))

  def _copy(self, bucket: str, name: str, target: str, target_name: str):
    source = self._found(bucket, name)
    self._check(target, target_name, self.query)
    stored = self.server.emulator.put(target, target_name, source.content)
    resource = _metadata(target, target_name, stored)
    if "/copyTo/" in self.path:
      return _json(resource)
    return _json({"kind": "storage#rewriteResponse", "done": True, "resource": resource})

  def _delete(self, bucket: str, name: str):
    self._check(bucket, name, self.query)
    self._found(bucket, name)
    self.server.emulator.remove(bucket, name)
    return 204, {}, b""


def _json(content: dict):
  return 200, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(content).encode()


def _listing(items: list[dict], prefixes: list[str], following: str | None):
  content = {"kind": "storage#objects"}
  content |= {"items": items} if items else {}
  content |= {"prefixes": prefixes} if prefixes else {}
  return _json(content | ({"nextPageToken": following} if following else {}))


def _metadata(bucket: str, name: str, stored: Stored) -> dict:
  when = stored.updated.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
  return {
      "kind": "storage#object", "id": f"{bucket}/{name}/{stored.generation}", "name": name,
      "bucket": bucket, "generation": str(stored.generation), "metageneration": "1",
      "contentType": "application/octet-stream", "storageClass": "STANDARD",
      "size": str(len(stored.content)), "md5Hash": _md5(stored.content), "timeCreated": when,
      "updated": when, "etag": str(stored.generation),
  }


def _md5(content: bytes) -> str:
  return base64.b64encode(hashlib.md5(content).digest()).decode()


def _range(text: str, size: int) -> tuple[int, int]:
  """First byte and the one after the last, of "bytes=0-99", "bytes=100-" or "bytes=-100"."""
  first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", text).groups()
  if not first:
    return max(0, size - int(last)), size
  if int(first) >= size:
    raise Answer(416, "the range is not in the object")
  return int(first), min(size, int(last) + 1) if last else size


def _parts(content_type: str, body: bytes) -> tuple[dict, bytes]:
  """Description and content of a multipart upload."""
  boundary = re.search(r'boundary="?([^";]+)"?', content_type)[1].encode()
  # A line ends as the first one does; what else stands before a boundary is content.
  end = re.match(rb"\s*--" + re.escape(boundary) + rb"(\r?\n)", body)[1]
  _, described, content, _ = re.split(rb"(?:%b)?--%b(?:--)?" % (end, re.escape(boundary)), body)
  text, data = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (described, content))
  return json.loads(text), data
