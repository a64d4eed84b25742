"""A Hugging Face Hub in memory on the loopback interface: the part of its HTTP protocol that
huggingface_hub needs for models, and the ways in which the real one fails.

As observed in the source of huggingface_hub 2.4 and 0.36; large files go by Git LFS, so the client
must run with HF_HUB_DISABLE_XET.
"""

import base64
import dataclasses
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import re
import threading
import time
from urllib.parse import parse_qs, unquote, urlsplit

USER, TOKEN, READ_TOKEN = "alice", "hf_write", "hf_read"
_LARGE = (".safetensors", ".bin", ".npz", ".msgpack")  # stored by LFS, as .gitattributes says


@dataclasses.dataclass
class Commit:
  """A state of all files, `{path: content}`, and what it was made from."""

  files: dict[str, bytes]
  title: str
  parent: str | None = None


@dataclasses.dataclass
class Repo:
  """Branches and pull requests point to commits."""

  private: bool = False
  gated: bool = False
  refs: dict[str, str] = dataclasses.field(default_factory=dict)
  commits: dict[str, Commit] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    self.refs["main"] = self.add(Commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "init"))

  def add(self, commit: Commit) -> str:
    """Stores a commit and returns its name."""
    name = hashlib.sha1(repr((len(self.commits), commit.title, commit.parent)).encode()).hexdigest()
    self.commits[name] = commit
    return name

  def files(self, revision: str = "main") -> dict[str, bytes]:
    """The files of a branch, tag, pull request or commit."""
    return self.commits[self.refs.get(revision, revision)].files


class Hub:
  """The server; a context that stops it.

  Attributes:
    url: of the server, what HF_ENDPOINT is to be.
    repos: by "USER/NAME".
    stored: LFS files by sha256.
    log: (method, path) of each request that was answered.
    put, committed: names of the LFS files received, and of the files in commits, in order.
    drop_puts: how many uploads are to lose their connection in the middle.
    lose_commit_answers: how many commits are made, but not answered.
    fail: statuses that the next requests get, whatever they ask.
  """

  def __init__(self):
    self.repos: dict[str, Repo] = {}
    self.stored: dict[str, bytes] = {}
    self.log, self.put, self.committed, self.fail = [], [], [], []
    self.drop_puts = self.lose_commit_answers = 0
    hub = self

    class Handler(_Handler):
      pass

    Handler.hub = hub
    self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self._server.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
    threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._server.shutdown()
    self._server.server_close()


def point_client(monkeypatch, hub: Hub, home) -> None:
  """Makes huggingface_hub in this process what HF_ENDPOINT, HF_TOKEN, HF_HOME and
  HF_HUB_DISABLE_XET would have made it at its import; its pauses become short."""
  from huggingface_hub import constants

  for name, value in {
      "ENDPOINT": hub.url,
      "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
      "HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token"),
      "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"), "HF_HUB_DISABLE_XET": True,
  }.items():
    monkeypatch.setattr(constants, name, value)
  monkeypatch.setenv("HF_TOKEN", TOKEN)
  pause = time.sleep
  monkeypatch.setattr(time, "sleep", lambda seconds: pause(min(seconds, 0.01)))


class _Refused(Exception):
  """An answer other than success: status, `X-Error-Code`, text."""


class _Handler(BaseHTTPRequestHandler):
  """One request; `hub` is the state."""

  hub: Hub
  protocol_version = "HTTP/1.1"
  routes = []

  def log_message(self, *_):
    pass

  def _serve(self):
    url = urlsplit(self.path)
    self.query = parse_qs(url.query)
    try:
      if self.command == "PUT" and self.hub.drop_puts > 0:
        self.hub.drop_puts -= 1
        self.rfile.read(200)
        self.close_connection = True
        self.connection.close()
        return
      self.body = self._read_body()
      self.hub.log.append((self.command, url.path))
      if self.hub.fail:
        raise _Refused(self.hub.fail.pop(0), "", "on purpose")
      for method, pattern, answer in self.routes:
        match = re.fullmatch(pattern, url.path)
        if match and self.command in method:
          answer(self, *(unquote(group) for group in match.groups() if group is not None))
          return
      raise _Refused(404, "", f"the test's Hub does not know {self.command} {url.path}")
    except _Refused as refused:
      status, code, text = refused.args
      headers = {"X-Error-Message": text} | ({"X-Error-Code": code} if code else {})
      self._answer({"error": text}, status=status, headers=headers)

  do_GET = do_HEAD = do_POST = do_PUT = _serve

  def _read_body(self) -> bytes:
    if "chunked" not in self.headers.get("Transfer-Encoding", ""):
      return self.rfile.read(int(self.headers.get("Content-Length", 0)))
    parts = []
    while size := int(self.rfile.readline(), 16):
      parts.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b"".join(parts)

  def _answer(self, content, *, status=200, headers=None):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    self.send_response(status)
    for name, value in (headers or {}).items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data)

  def _token(self) -> str:
    return self.headers.get("Authorization", "").removeprefix("Bearer ")

  def _check_write(self, name: str = f"{USER}/"):
    if self._token() not in (TOKEN, READ_TOKEN):
      raise _Refused(401, "", "Invalid username or password.")
    if self._token() != TOKEN or not name.startswith(f"{USER}/"):
      raise _Refused(403, "", "you don't have the rights")

  def _repo(self, name: str) -> Repo:
    repo, known = self.hub.repos.get(name), self._token() in (TOKEN, READ_TOKEN)
    if repo is None or (repo.private and not known):
      raise _Refused(404 if known else 401, "RepoNotFound", "Repository not found")
    return repo

  def _commit(self, name: str, revision: str) -> tuple[str, Commit]:
    repo = self._repo(name)
    commit = repo.refs.get(revision, revision)
    if commit not in repo.commits:
      raise _Refused(404, "RevisionNotFound", "Invalid rev id")
    return commit, repo.commits[commit]


def _route(method: str, pattern: str):
  def add(function):
    _Handler.routes.append((method, pattern, function))
    return function

  return add


_ID = r"([^/]+/[^/]+)"


@_route("POST", "/api/repos/create")
def _create(request):
  asked = json.loads(request.body)
  name = f"{asked['organization'] or USER}/{asked['name']}"
  request._check_write(name)
  if name in request.hub.repos:
    raise _Refused(409, "", "You already created this model repo")
  request.hub.repos[name] = Repo(private=asked.get("visibility") == "private")
  request._answer({"url": f"{request.hub.url}/{name}"})


@_route("POST", "/api/validate-yaml")
def _validate(request):
  request._answer({"errors": [], "warnings": []})


@_route("GET", f"/api/models/{_ID}(?:/revision/([^/]+))?")
def _info(request, name, revision="main"):
  commit, _ = request._commit(name, revision)
  repo = request.hub.repos[name]
  request._answer({
      "_id": "0", "id": name, "modelId": name, "sha": commit, "private": repo.private,
      "tags": [], "downloads": 0, "likes": 0,
      "siblings": [{"rfilename": path} for path in repo.files(commit)],
  })


@_route("GET", f"/api/models/{_ID}/refs")
def _refs(request, name):
  repo = request._repo(name)
  kinds = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
  for ref, commit in repo.refs.items():
    proposed = ref.startswith("refs/pr/")
    kinds["pullRequests" if proposed else "branches"].append({
        "name": ref.removeprefix("refs/pr/"), "targetCommit": commit,
        "ref": ref if proposed else f"refs/heads/{ref}",
    })
  request._answer(kinds)


@_route("GET", f"/api/models/{_ID}/commits/([^/]+)")
def _history(request, name, revision):
  commit, entries = request._commit(name, revision)[0], []
  while commit:
    found = request.hub.repos[name].commits[commit]
    entries.append({
        "id": commit, "title": found.title, "message": "", "authors": [{"user": USER}],
        "date": "2026-01-01T00:00:00.000Z",
    })
    commit = found.parent
  request._answer(entries)


@_route("POST", f"/api/models/{_ID}/branch/([^/]+)")
def _branch(request, name, branch):
  request._check_write(name)
  start = json.loads(request.body).get("startingPoint", "main")
  if branch in request._repo(name).refs:
    raise _Refused(409, "", "Reference already exists")
  request._repo(name).refs[branch] = request._commit(name, start)[0]
  request._answer({})


@_route("GET", f"/api/models/{_ID}/tree/([^/]+)")
def _tree(request, name, revision):
  entries = []
  for path, content in request._commit(name, revision)[1].files.items():
    entry = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
    if path.endswith(_LARGE):
      entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 130}
    entries.append(entry)
  request._answer(entries)


@_route("POST", f"/api/models/{_ID}/preupload/([^/]+)")
def _preupload(request, name, revision):
  if "create_pr" not in request.query:
    request._check_write(name)
  present = request._commit(name, revision)[1].files
  answer = []
  for file in json.loads(request.body)["files"]:
    content, lfs = present.get(file["path"]), file["path"].endswith(_LARGE)
    hashed = None if content is None else _sha256(content) if lfs else _blob(content)
    answer.append({
        "path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False,
        "oid": hashed,
    })
  request._answer({"files": answer})


@_route("POST", f"/{_ID}.git/info/lfs/objects/batch")
def _batch(request, name):
  request._repo(name)
  objects = json.loads(request.body)["objects"]
  for entry in objects:
    if entry["oid"] not in request.hub.stored:
      entry["actions"] = {"upload": {"href": f"{request.hub.url}/lfs/{entry['oid']}"}}
  request._answer({"transfer": "basic", "objects": objects})


@_route("PUT", "/lfs/([0-9a-f]+)")
def _put(request, oid):
  if _sha256(request.body) != oid:
    raise _Refused(400, "", "content does not match its hash")
  request.hub.stored[oid] = request.body
  request.hub.put.append(oid)
  request._answer({})


@_route("POST", f"/api/models/{_ID}/commit/([^/]+)")
def _make_commit(request, name, revision):
  hub, proposed = request.hub, "create_pr" in request.query
  if proposed:
    if not request._token():
      raise _Refused(401, "", "Invalid username or password.")
  else:
    request._check_write(name)
  repo = request._repo(name)
  parent, before = request._commit(name, revision)
  files, header = dict(before.files), {}
  for line in request.body.splitlines():
    item = json.loads(line)
    value = item["value"]
    if item["key"] == "header":
      header = value
    elif item["key"] == "file":
      files[value["path"]] = base64.b64decode(value["content"])
    elif item["key"] == "lfsFile":
      files[value["path"]] = hub.stored[value["oid"]]
    elif item["key"] == "deletedFile":
      del files[value["path"]]
    if item["key"] != "header":
      hub.committed.append(value["path"])
  if header.get("parentCommit", parent) != parent:
    raise _Refused(412, "", "A commit has happened since")
  commit, number = repo.add(Commit(files, header["summary"], parent)), 1
  if proposed:
    number += sum(ref.startswith("refs/pr/") for ref in repo.refs)
    revision = f"refs/pr/{number}"
  repo.refs[revision] = commit
  if hub.lose_commit_answers:
    hub.lose_commit_answers -= 1
    request.close_connection = True
    request.connection.close()
    return
  request._answer({
      "success": True, "commitOid": commit, "commitUrl": f"{hub.url}/{name}/commit/{commit}",
      "pullRequestUrl": f"{hub.url}/{name}/discussions/{number}" if proposed else None,
  })


@_route("GET HEAD", f"/{_ID}/resolve/([^/]+)/(.+)")
def _resolve(request, name, revision, path):
  if request._repo(name).gated:
    raise _Refused(403, "GatedRepo", "Access to this model is restricted")
  commit, found = request._commit(name, revision)
  if path not in found.files:
    raise _Refused(404, "EntryNotFound", "Entry not found")
  content = found.files[path]
  hashed = _sha256(content) if path.endswith(_LARGE) else _blob(content)
  request._answer(content, headers={"X-Repo-Commit": commit, "ETag": f'"{hashed}"'})


def _blob(content: bytes) -> str:
  return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
