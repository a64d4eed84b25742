"""The Hub's client against a server on the loopback interface, through huggingface_hub itself."""

import hashlib
import os
import pathlib
import subprocess
import sys

from hub_server import READ_TOKEN, TOKEN, Commit, Hub, Repo, point_client
import pytest

from vit_jax.errors import CheckpointError
from vit_jax.interop.hub import download, download_timm
from vit_jax.interop.hub_upload import upload
from vit_jax.interop.model_card import is_untouched

pytest.importorskip("huggingface_hub")
NAME = "alice/vit"


@pytest.fixture
def hub(monkeypatch, tmp_path):
  """A server to which huggingface_hub is pointed."""
  with Hub() as server:
    point_client(monkeypatch, server, tmp_path / "home")
    yield server


@pytest.fixture
def export(tmp_path):
  """A directory of an export: small files go into the commit, the large one by LFS."""
  directory = tmp_path / "export"
  directory.mkdir()
  for name, content in {
      "config.json": b'{"model_type": "vit"}', "preprocessor_config.json": b"{}",
      "conversion.json": b"{}", "README.md": b"---\nlicense: mit\n---\n",
      "model.safetensors": bytes(range(256)) * 40,
  }.items():
    (directory / name).write_bytes(content)
  return directory


def send(directory, **options) -> tuple[str, str]:
  """Uploads; the address, and everything that was reported."""
  lines = []
  options = {"repo_id": NAME, "message": "Step 10", "report": lines.append} | options
  return upload(directory, **options), "\n".join(lines)


def contents(directory) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in directory.iterdir()}


def without_attributes(files) -> dict[str, bytes]:
  return {name: content for name, content in files.items() if name != ".gitattributes"}


def test_a_new_repository_and_its_branches(hub, export):
  url, said = send(export, revision="step10")
  assert url == f"{hub.url}/{NAME}/tree/step10"
  assert "public repository" in said and "branch step10" in said
  repo = hub.repos[NAME]
  assert without_attributes(repo.files("step10")) == contents(export)
  assert not without_attributes(repo.files("main")) and not repo.private
  send(export, revision="main")
  assert without_attributes(repo.files()) == contents(export)
  # main's weights are those of the branch: stored once, sent once.
  assert len(hub.put) == 1
  # A later branch begins empty, not with what main holds.
  (export / "model.safetensors").write_bytes(b"step 20" * 1000)
  send(export, revision="step20")
  assert without_attributes(repo.files("step20")) == contents(export)


def test_a_repeated_upload_sends_what_changed_and_nothing_else(hub, export):
  send(export)
  hub.put.clear(), hub.committed.clear()
  commits = len(hub.repos[NAME].commits)
  url, said = send(export)
  assert url.endswith("/tree/main") and "nothing to send" in said
  assert not hub.put and not hub.committed and len(hub.repos[NAME].commits) == commits
  (export / "conversion.json").write_bytes(b'{"verification": {}}')
  _, said = send(export)
  assert hub.committed == ["conversion.json"] and not hub.put and "conversion.json" in said
  assert hub.repos[NAME].files()["conversion.json"] == b'{"verification": {}}'


def test_another_export_is_refused_and_replaced_on_request(hub, export):
  (export / "model-00001-of-00002.safetensors").write_bytes(b"shard" * 1000)
  send(export)
  repo = hub.repos[NAME]
  before = repo.refs["main"]
  (export / "model-00001-of-00002.safetensors").unlink()
  (export / "model.safetensors").write_bytes(b"other weights" * 999)
  with pytest.raises(CheckpointError) as refused:
    send(export)
  said = str(refused.value)
  assert "model.safetensors" in said and "model-00001-of" in said and "--overwrite" in said
  assert "conversion.json" not in said and repo.refs["main"] == before
  repo.commits[before].files["notes/eval.txt"] = b"somebody's own"
  send(export, overwrite=True)
  left = without_attributes(repo.files())
  assert left.pop("notes/eval.txt") and left == contents(export)


def test_a_card_that_somebody_edited_on_the_hub_stays(hub, export):
  send(export)
  files = hub.repos[NAME].commits[hub.repos[NAME].refs["main"]].files
  files["README.md"] += b"My own words.\n"
  assert not is_untouched(files["README.md"].decode())
  _, said = send(export)
  assert "was edited" in said and "nothing to send" in said
  send(export, overwrite=True)
  assert hub.repos[NAME].files()["README.md"] == (export / "README.md").read_bytes()


def test_a_connection_that_drops_once_is_taken_up_again(hub, export):
  hub.drop_puts, hub.fail = 1, [503]
  send(export)
  assert without_attributes(hub.repos[NAME].files()) == contents(export)


def test_an_interrupted_upload_is_finished_by_repeating_it(hub, export):
  (export / "model.safetensors").rename(export / "model-00001-of-00002.safetensors")
  (export / "model-00002-of-00002.safetensors").write_bytes(b"second" * 1000)
  hub.drop_puts = 10**6
  with pytest.raises(CheckpointError) as lost:
    send(export)
  assert "cannot be reached" in str(lost.value) and "Repeat" in str(lost.value)
  assert not without_attributes(hub.repos[NAME].files())
  # One of both came through before the other was lost.
  content = (export / "model-00001-of-00002.safetensors").read_bytes()
  hub.stored[hashlib.sha256(content).hexdigest()] = content
  hub.drop_puts = 0
  send(export)
  assert len(hub.put) == 1 and without_attributes(hub.repos[NAME].files()) == contents(export)


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, export):
  hub.lose_commit_answers = 1
  _, said = send(export)
  assert "nothing to send" in said and len(hub.repos[NAME].commits) == 2
  hub.repos["bob/vit"], hub.lose_commit_answers = Repo(), 1
  url, said = send(export, repo_id="bob/vit", create_pr=True)
  assert url.endswith("/discussions/1") and "proposes" in said


def test_private(hub, export):
  _, said = send(export, private=True)
  assert hub.repos[NAME].private and "private repository" in said
  assert "nothing to send" in send(export, private=True)[1]
  hub.repos[NAME].private = False
  with pytest.raises(CheckpointError, match="is public"):
    send(export, private=True)


def test_a_pull_request_to_somebody_elses_repository(hub, export):
  with pytest.raises(CheckpointError, match="does not exist"):
    send(export, repo_id="bob/vit", create_pr=True)
  hub.repos["bob/vit"] = Repo()
  url, _ = send(export, repo_id="bob/vit", create_pr=True)
  assert url == f"{hub.url}/bob/vit/discussions/1"
  assert without_attributes(hub.repos["bob/vit"].files("refs/pr/1")) == contents(export)
  assert not without_attributes(hub.repos["bob/vit"].files())
  url, said = send(export, repo_id="bob/vit", create_pr=True)
  assert url == f"{hub.url}/bob/vit/discussions/1" and "already" in said


@pytest.mark.parametrize("token, words", [
    (None, "without a token"), ("hf_wrong", "did not accept the token"),
    (READ_TOKEN, "may not write there"),
])
def test_a_token_without_the_right(hub, export, monkeypatch, token, words):
  monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
  with pytest.raises(CheckpointError) as refused:
    send(export)
  said = str(refused.value)
  assert words in said and "hf auth login" in said and "HF_TOKEN" in said and '"write"' in said
  assert not hub.repos and "\n" not in said


def test_not_ones_own_namespace(hub, export):
  hub.repos["bob/vit"] = Repo()
  for name in ("bob/vit", "bob/new"):
    with pytest.raises(CheckpointError, match="under bob") as refused:
      send(export, repo_id=name)
    assert "--create-pr" in str(refused.value)


def test_download_and_the_cache_without_a_network(hub, export, monkeypatch, tmp_path):
  (export / "training_args.bin").write_bytes(b"not to be fetched")
  (export / "pytorch_model.bin").write_bytes(b"not to be fetched either")
  send(export, revision="step10")
  send(export)
  folder = download(NAME, revision="step10")
  assert sorted(path.name for path in folder.iterdir()) == [
      "config.json", "conversion.json", "model.safetensors", "preprocessor_config.json"
  ]
  assert (folder / "model.safetensors").read_bytes() == (export / "model.safetensors").read_bytes()
  hub.log.clear()
  assert download(NAME, revision="step10") == folder
  assert not [path for _, path in hub.log if "/resolve/" in path]
  commit = hub.repos[NAME].refs["step10"]
  with Hub() as nobody:
    pass
  point_client(monkeypatch, nobody, tmp_path / "home")
  assert download(NAME, revision="step10") == download(NAME, revision=commit) == folder
  with pytest.raises(CheckpointError) as lost:
    download(NAME, revision="step20")
  assert "cannot be reached" in str(lost.value) and "cache" in str(lost.value)


def test_the_best_kind_of_weights_is_fetched(hub):
  def has(name, *files):
    hub.repos[name] = Repo()
    hub.repos[name].refs["main"] = hub.repos[name].add(Commit({f: f.encode() for f in files}, "x"))
    return download(name)

  torch = has("bob/torch", "config.json", "pytorch_model.bin", "flax_model.msgpack", "a/b.npz")
  assert sorted(path.name for path in torch.iterdir()) == ["config.json", "pytorch_model.bin"]
  google = has("bob/google", "README.md", "B_16.npz")
  assert google.name == "B_16.npz" and google.read_bytes() == b"B_16.npz"
  with pytest.raises(CheckpointError, match="no weights that can be read"):
    has("bob/none", "README.md", "onnx/model.onnx", "tf_model.h5")


def test_what_cannot_be_downloaded(hub, monkeypatch):
  with pytest.raises(CheckpointError, match="bob/nothing does not exist, or"):
    download("bob/nothing")
  with pytest.raises(CheckpointError, match="names no repository"):
    download("a/b/c")
  hub.repos["bob/vit"] = Repo()
  hub.repos["bob/vit"].refs["step10"] = hub.repos["bob/vit"].refs["main"]
  with pytest.raises(CheckpointError, match="no revision 'step1'; it has main, step10"):
    download("bob/vit", revision="step1")
  hub.repos["bob/gated"] = Repo(gated=True)
  gated = hub.repos["bob/gated"]
  gated.refs["main"] = gated.add(Commit({"config.json": b"{}"}, "x"))
  with pytest.raises(CheckpointError, match="is gated"):
    download("bob/gated")
  hub.repos["bob/private"] = Repo(private=True)
  monkeypatch.delenv("HF_TOKEN")
  with pytest.raises(CheckpointError, match="private: log in with `hf auth login`"):
    download("bob/private")


def test_timm_names(hub, monkeypatch):
  name = "vit_tiny_patch16_224.augreg_in21k"
  hub.repos[f"timm/{name}"] = Repo()
  files = {"config.json": b"{}", "model.safetensors": b"x"}
  hub.repos[f"timm/{name}"].refs["main"] = hub.repos[f"timm/{name}"].add(Commit(files, "x"))
  assert (download_timm(name) / "model.safetensors").read_bytes() == b"x"
  monkeypatch.setitem(sys.modules, "timm", None)
  with pytest.raises(CheckpointError, match="lacks the tag"):
    download_timm("vit_tiny_patch16_224")
  known = type("timm", (), {"list_pretrained": staticmethod(lambda pattern: [name])})
  monkeypatch.setitem(sys.modules, "timm", known)
  with pytest.raises(CheckpointError, match=f"name one of {name}"):
    download_timm("vit_tiny_patch16_224")


def test_without_huggingface_hub(monkeypatch, export):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  for action in (lambda: download(NAME), lambda: send(export)):
    with pytest.raises(CheckpointError, match=r"pip install 'vit_jax\[hub\]'"):
      action()


def test_a_process_that_is_pointed_there_by_its_environment(hub, export, tmp_path):
  """As a user meets it: HF_ENDPOINT, HF_TOKEN, HF_HOME, and HF_HUB_OFFLINE afterwards."""
  home = os.environ | {
      "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"),
      "HF_HUB_DISABLE_XET": "1",
  }
  command = (
      "from vit_jax.interop.hub import download; from vit_jax.interop.hub_upload import upload\n"
      "import sys\n"
      f"if sys.argv[1:]: print(upload(sys.argv[1], repo_id='{NAME}', message='x'))\n"
      f"print(download('{NAME}'))"
  )
  command = [sys.executable, "-c", command]
  options = {"capture_output": True, "text": True, "check": True}
  first = subprocess.run([*command, str(export)], env=home, **options)
  assert f"{hub.url}/{NAME}/tree/main" in first.stdout
  folder = pathlib.Path(first.stdout.splitlines()[-1])
  assert folder.is_relative_to(tmp_path / "home")
  hub.log.clear()
  again = subprocess.run(command, env=home | {"HF_HUB_OFFLINE": "1"}, **options)
  assert again.stdout.splitlines()[-1] == str(folder) and not hub.log
