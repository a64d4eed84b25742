"""Files made to do harm: they are refused by name, before they take memory or run anything."""

import argparse
import ast
import gzip
import io
import json
import os
import pathlib
import pickle
import struct
import sys
import tarfile
import tracemalloc
import zipfile
import zlib

from etils import epath
import numpy as np
from PIL import Image
import pytest

from small_models import MODEL, random_params
from vit_jax.data.array_record import FORMAT, open_array_record
from vit_jax.data.cifar import open_cifar
from vit_jax.data.decode import UnreadableImage, decode
from vit_jax.data.folder import open_folder
from vit_jax.data.prepare.parquet import list_parquet
from vit_jax.data.prepare.run import prepare
from vit_jax.data.prepare.tar_members import members
from vit_jax.data.prepare.webdataset import list_webdataset
from vit_jax.data.tfds import open_tfds_directory
from vit_jax.errors import CheckpointError, DataError
from vit_jax.interop import huggingface, orbax_directory
from vit_jax.interop.read import read
from vit_jax.interop.safetensors_writer import write_shards

SOURCES = pathlib.Path(__file__).parents[2] / "vit_jax"
# Modules and calls that run what a file says, or unpack it where it wants; and who may, why.
RUNNING = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "eval",
    "exec", "extractall", "extract", "system", "popen", "allow_pickle=True", "shell=True",
    "weights_only=False", "trust_remote_code=True",
}
ALLOWED = {
    ("data/cifar.py", "pickle"),  # an Unpickler that knows arrays alone
    ("data/workers.py", "pickle"),  # of its own errors
    ("interop/torch_reader.py", "pickle"),  # the name of an error
    ("config.py", "exec"),  # a recipe, which the user names as a program
    ("interop/huggingface_judge.py", "eval"), ("interop/timm_judge.py", "eval"),  # torch's
}
MOST = 64 << 20  # bytes that a refusal may take


def refused(function, error=CheckpointError, match=".") -> None:
  """Holds that the call fails so, having allocated next to nothing."""
  tracemalloc.start()
  try:
    with pytest.raises(error, match=match):
      function()
    assert tracemalloc.get_traced_memory()[1] < MOST
  finally:
    tracemalloc.stop()


def running_in(tree) -> set[str]:
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {alias.name.partition(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      found |= {node.module.partition(".")[0]}
    elif isinstance(node, ast.Call):
      name = getattr(node.func, "attr", getattr(node.func, "id", ""))
      found |= {name} | {f"{k.arg}={getattr(k.value, 'value', None)}" for k in node.keywords}
      if name == "load" and ast.unparse(node.func) in ("np.load", "torch.load"):
        assert {"allow_pickle", "weights_only"} & {k.arg for k in node.keywords}, ast.unparse(node)
  return found & RUNNING


def test_no_module_runs_what_it_reads():
  found = set()
  for path in SOURCES.rglob("*.py"):
    name = path.relative_to(SOURCES).as_posix()
    found |= {(name, what) for what in running_in(ast.parse(path.read_text()))}
  assert found <= ALLOWED


# --- weights


def safetensors(entries: dict | bytes, data: bytes = b"") -> bytes:
  text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
  return struct.pack("<Q", len(text)) + text + data


def test_a_header_that_claims_gigabytes(tmp_path):
  path = tmp_path / "model.safetensors"
  path.write_bytes(struct.pack("<Q", 1 << 33))
  os.truncate(path, 1 << 34)  # as large as it claims, on the disk nothing
  refused(lambda: read(path), match="header claims 8,589,934,592 bytes")


@pytest.mark.parametrize("entries", [
    b"[" * 100_000,
    {"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0.0, 8.0]}},
    {"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 8]}},
    {"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 2**82]}},
], ids=["deep", "float shape", "float offsets", "infinite", "dtype", "terabytes"])
def test_headers_of_safetensors(tmp_path, entries):
  path = tmp_path / "model.safetensors"
  path.write_bytes(safetensors(entries, bytes(8)))
  refused(lambda: read(path), match=str(path))


def npy(shape: str, data: bytes = b"", descr: str = "<f4") -> bytes:
  text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
  return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize("content", [
    npy(f"({10**12},)", bytes(64)), npy("(-4, -4)", bytes(64)), npy("(4, 5)", bytes(64)),
    npy("(1,)", bytes(64), f"({10**11},)<f4"),
    b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 28) + b" " * (1 << 28),
], ids=["terabytes", "negative", "other size", "dtype", "long header"])
def test_arrays_of_npz_that_claim_what_is_not_there(tmp_path, content):
  path = tmp_path / "model.npz"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
    archive.writestr("embedding/kernel.npy", content)
  del content
  refused(lambda: read(path), match="damaged at embedding/kernel")


def patched_directory(path, **fields) -> None:
  """Writes sizes into the first entry of a ZIP's list of members."""
  data = bytearray(path.read_bytes())
  at = data.index(b"PK\x01\x02")
  for name, value in fields.items():
    offset = {"packed": 20, "size": 24, "method": 10}[name]
    struct.pack_into("<H" if name == "method" else "<I", data, at + offset, value)
  path.write_bytes(data)


@pytest.mark.parametrize("fields", [
    {"size": 0xFFFFFFF0}, {"packed": 0xFFFFFFF0}, {"method": 12},
    {"packed": 0xF0000000, "size": 0xF0000000},
], ids=["size", "packed", "method", "both"])
def test_members_of_npz_that_claim_gigabytes(tmp_path, fields):
  path = tmp_path / "model.npz"
  np.savez(path, **{"embedding/kernel": np.zeros((4, 4), np.float32)})
  patched_directory(path, **fields)
  refused(lambda: read(path), match="damaged at")


@pytest.mark.parametrize("content", [
    b"\x81\xa1a" * 300_000, b"\xdf\xff\xff\xff\xff" + bytes(9),
    b"\x81\xa1a\xc7\x0f\x01\x93\x91\x01\xa1O\xc4\x08" + bytes(8),
    b"\x81\xc4\x01a\xcb" + bytes(8),
], ids=["deep", "long", "objects", "names"])
def test_msgpack(tmp_path, content):
  (tmp_path / "config.json").write_text(json.dumps(CONFIG))
  (tmp_path / "flax_model.msgpack").write_bytes(content)
  refused(lambda: read(tmp_path))


@pytest.mark.torch
def test_tensors_of_pytorch_that_claim_more_than_the_file_has(tmp_path):
  torch = pytest.importorskip("torch")
  for name, tensor in {
      "expanded": torch.zeros(1).expand(10**7, 10**6),
      "meta": torch.zeros(10**7, 10**6, device="meta"),
      "sparse": torch.sparse_coo_tensor(torch.zeros(2, 1), torch.zeros(1), (10**7, 10**6)),
  }.items():
    torch.save({name: tensor}, tmp_path / "model.pth")
    refused(lambda: read(tmp_path / "model.pth"), match=f"more numbers than the file has: {name}")


# --- descriptions

CONFIG = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}


@pytest.mark.parametrize("text", [
    json.dumps(CONFIG | {"num_hidden_layers": 10**9}), json.dumps(CONFIG | {"hidden_size": 10**12}),
    json.dumps(CONFIG | {"hidden_size": float("inf")}),
    json.dumps(CONFIG | {"patch_size": float("nan")}),
    "[" * 100_000, '{"model_type": ["vit"]}', json.dumps(CONFIG | {"architectures": 3}),
], ids=["blocks", "width", "infinity", "nan", "deep", "type", "classes"])
def test_a_config_of_hugging_face_cannot_make_the_reader_allocate(tmp_path, text):
  huggingface.write(
      tmp_path, model=MODEL | {"gelu": "erf"}, params=random_params(MODEL), preprocessing=None,
      labels=None,
  )
  (tmp_path / "conversion.json").unlink(missing_ok=True)
  (tmp_path / "config.json").write_text(text)
  refused(lambda: read(tmp_path))


def test_a_json_file_of_gigabytes(tmp_path):
  (tmp_path / "config.json").write_text("{")
  os.truncate(tmp_path / "config.json", 1 << 33)
  refused(lambda: read(tmp_path), match="larger than")


@pytest.mark.parametrize("block", ["999999999", "x", "-3"])
def test_names_of_blocks_that_are_not_there(tmp_path, block):
  tensors = {
      "patch_embed.proj.weight": (32, 3, 8, 8), f"blocks.{block}.norm1.weight": (32,),
      "blocks.0.mlp.fc1.weight": (64, 32), "blocks.0.mlp.fc2.weight": (32, 64),
      "pos_embed": (1, 17, 32), "cls_token": (1, 1, 32),
  }
  write_shards(
      tmp_path, tensors, lambda name: np.zeros(tensors[name], np.float32), dtype="float32",
      max_shard_bytes=10**9,
  )
  refused(lambda: read(tmp_path / "model.safetensors"))


def test_arrays_of_orbax_that_its_files_cannot_hold(tmp_path, monkeypatch):
  orbax_directory.write(
      epath.Path(tmp_path), model=MODEL, params=random_params(MODEL), preprocessing=None,
      labels=None,
  )
  read(tmp_path)
  monkeypatch.setattr(orbax_directory, "_MAX_PACKED", 0.5)
  with pytest.raises(CheckpointError, match="claims .* bytes of parameters"):
    read(tmp_path)


# --- archives


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
  """A member's header with any size, also negative."""
  info = tarfile.TarInfo(name)
  info.type = kind
  block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
  block[124:136] = (
      b"%011o\0" % size if 0 <= size < 8**11 else b"\x80" + size.to_bytes(11, "big") if size > 0
      else b"\xff" + (256**11 + size).to_bytes(11, "big")
  )
  block[148:156] = b" " * 8
  block[148:156] = b"%06o\0 " % sum(block)
  return bytes(block)


@pytest.mark.parametrize("content", [
    header("a/0.jpg", -1024), header("a/0.jpg", -512), header("a/0.jpg", 1 << 50),
    header("././@LongLink", 1 << 31, tarfile.GNUTYPE_LONGNAME),
    header("././@LongLink", -1, tarfile.GNUTYPE_LONGNAME),
    header("././@PaxHeader", 1 << 31, tarfile.XHDTYPE),
    (header("././@LongLink", 1, tarfile.GNUTYPE_LONGNAME) + bytes(512)) * 2000,
    header("a/0.jpg", 0, tarfile.GNUTYPE_SPARSE)[:482] + b"\1" * 30,
], ids=["back", "on the spot", "terabytes", "name", "negative name", "pax", "names", "sparse"])
def test_tars_neither_loop_nor_fill_the_memory(tmp_path, content):
  path = tmp_path / "a.tar"
  path.write_bytes(content + bytes(1024))
  os.truncate(path, 1 << 32)
  refused(lambda: list(members(str(path))), DataError, match="cannot be read as a tar")


@pytest.mark.parametrize("kind", [
    tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE,
    tarfile.GNUTYPE_SPARSE,
])
def test_devices_links_and_the_like_are_not_read(tmp_path, kind):
  path = tmp_path / "a.tar"
  path.write_bytes(header("cat/0.jpg", 0, kind) + bytes(1024))
  (member,) = members(str(path))
  assert member.fault


@pytest.mark.parametrize("name", [
    "/etc/0.jpg", "../0.jpg", "a/../../0.jpg", "a\\..\\0.jpg", "./../0.jpg", ".//etc/0.jpg",
])
def test_names_that_lead_out_are_refused(tmp_path, name):
  path = tmp_path / "a.tar"
  path.write_bytes(header(name, 0) + bytes(1024))
  (member,) = members(str(path))
  assert "leads out" in member.fault


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "a/../../secret.png"])
def test_metadata_cannot_name_files_elsewhere(tmp_path, name):
  folder = tmp_path / "photos"
  folder.mkdir()
  for file in ("secret.png", "photos/a.png"):
    Image.new("RGB", (8, 8)).save(tmp_path / file)
  (folder / "metadata.csv").write_text(f"file_name,label\na.png,x\n{name},y\n")
  with pytest.raises(DataError, match="line 3: .* leads out"):
    open_folder(folder)


def cifar(tmp_path, meta: bytes):
  directory = tmp_path / "cifar-10-batches-py"
  directory.mkdir(exist_ok=True)
  (directory / "batches.meta").write_bytes(meta)
  return open_cifar("cifar10", path=tmp_path)


@pytest.mark.parametrize("data", [
    b"\x80\x02}r" + struct.pack("<I", 1 << 31) + b".", b"}p2000000000\n.",
    pickle.dumps(argparse.Namespace(x=1)), b"cos\nsystem\n(S'true'\ntR.", b"(" * 100_000,
], ids=["memo", "text memo", "class", "call", "deep"])
def test_pickles_of_cifar(tmp_path, data):
  refused(lambda: cifar(tmp_path, data), DataError, match="batches.meta cannot be read as arrays")


def test_a_packed_archive_of_terabytes(tmp_path):
  content = header("cifar-10-batches-py/batches.meta", 1 << 40) + bytes(4096)
  (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(content))
  refused(lambda: open_cifar("cifar10", path=tmp_path), DataError, match="batches.meta claims")


def each(function, arguments):
  return map(function, arguments)


def test_a_label_that_would_make_a_billion_classes(tmp_path):
  path = tmp_path / "train.tar"
  label = b"999999999999"
  path.write_bytes(
      header("0.jpg", 0) + header("0.cls", len(label)) + label.ljust(512, b"\0") + bytes(1024)
  )
  refused(lambda: list_webdataset(path, each), DataError, match="label 999999999999")


def test_a_table_with_more_rows_than_bytes(tmp_path):
  pa = pytest.importorskip("pyarrow")
  import pyarrow.parquet as pq

  rows = 2_000_000
  path = tmp_path / "train.parquet"
  table = {"image": pa.nulls(rows, pa.binary()), "label": np.zeros(rows, int)}
  pq.write_table(pa.table(table), path)
  with pytest.raises(DataError, match="claims 2,000,000 rows"):
    list_parquet(path, each)


def test_features_of_tfds_name_no_modules_of_others(tmp_path, monkeypatch):
  pytest.importorskip("tensorflow_datasets")
  (tmp_path / "harmful.py").write_text("import os; os.mkdir(os.environ['HARMED'])")
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setenv("HARMED", str(tmp_path / "harmed"))
  (tmp_path / "dataset_info.json").write_text(json.dumps(
      {"name": "x", "version": "1.0.0", "fileFormat": "array_record", "splits": []}
  ))
  for text in (
      '{"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",'
      ' "featuresDict": {"features": {"image": {"python_class_name": "harmful.X"}}}}',
      '{"type": "harmful.X", "content": {}}',
  ):
    (tmp_path / "features.json").write_text(text)
    with pytest.raises(DataError, match="harmful.X"):
      open_tfds_directory(tmp_path, held_out=0, decode_small=True)
  assert not (tmp_path / "harmed").exists() and "harmful" not in sys.modules


@pytest.mark.parametrize("splits, said", [
    ({"train": {"shards": [{"file": file, "examples": 1, "bytes": 1}]}}, "outside of its directory")
    for file in ("../secret", "/etc/secret", "a/b", "..")
] + [([], "damaged"), ({"train": None}, "damaged"), ({"train": {"shards": [{}]}}, "damaged")])
def test_shards_lie_beside_what_lists_them(tmp_path, splits, said):
  described = {"format": FORMAT, "name": "x", "classes": ["a"], "fingerprint": "0"}
  (tmp_path / "dataset.json").write_text(json.dumps(described | {"splits": splits}))
  refused(lambda: open_array_record(tmp_path, held_out=0.0), DataError, match=said)


# --- images


def small_image(kind: str, **options) -> bytes:
  file = io.BytesIO()
  Image.new("RGB", (100, 99)).save(file, kind, **options)
  return file.getvalue()


def bomb(kind: str) -> bytes:
  """A small file whose header says 50000x50000 pixels, 7.5 GB; or 16383x16383, a WEBP's most."""
  data, size = bytearray(small_image(kind)), 50_000
  if kind == "PNG":
    at = data.index(b"IHDR")
    struct.pack_into(">II", data, at + 4, size, size)
    struct.pack_into(">I", data, at + 17, zlib.crc32(data[at : at + 17]))
  elif kind == "JPEG":
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, size, size)
  elif kind == "BMP":
    struct.pack_into("<ii", data, 18, size, size)
  elif kind == "DIB":
    struct.pack_into("<ii", data, 4, size, size)
  elif kind == "GIF":
    struct.pack_into("<HH", data, 6, size, size)
  elif kind == "PPM":
    data = data.replace(b"100 99", b"50000 50000")
  elif kind == "TIFF":
    for tag, side in ((256, 100), (257, 99)):  # ImageWidth, ImageLength
      at = data.index(struct.pack("<HHII", tag, 4, 1, side))
      struct.pack_into("<HHII", data, at, tag, 4, 1, size)
  elif kind == "JPEG2000":
    struct.pack_into(">II", data, data.index(b"ihdr") + 4, size, size)
  elif kind == "AVIF":
    struct.pack_into(">II", data, data.index(b"ispe") + 8, 16_384, 16_384)
  elif kind == "WEBP":
    struct.pack_into("<HH", data, data.index(b"\x9d\x01\x2a") + 3, 16_383, 16_383)
  return bytes(data)


BOMBS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "PPM", "TIFF", "JPEG2000", "AVIF", "WEBP")


@pytest.mark.parametrize("pillows_own", [Image.MAX_IMAGE_PIXELS, None], ids=["limit", "none"])
@pytest.mark.parametrize("kind", BOMBS)
def test_image_bombs(kind, pillows_own, monkeypatch):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_own)
  refused(
      lambda: decode(bomb(kind), exif_orientation=True), UnreadableImage, match="limit",
  )


def test_bombs_among_the_images_are_counted_and_left_out(tmp_path):
  for label in ("cat", "dog"):
    (tmp_path / "in" / label).mkdir(parents=True)
    for i in range(3):
      pixels = np.random.default_rng(len(label) + i).integers(0, 256, (9, 9, 3), np.uint8)
      Image.fromarray(pixels).save(tmp_path / "in" / label / f"{i}.png")
  for kind in BOMBS:
    (tmp_path / "in" / "cat" / f"{kind}.jpg").write_bytes(bomb(kind))
  (tmp_path / "in" / "cat" / "EPS.jpg").write_bytes(small_image("EPS"))
  prepare(source="imagefolder", input=tmp_path / "in", output=tmp_path / "out", workers=1)
  rejected = (tmp_path / "out" / "rejected.csv").read_text()
  assert all(f"cat/{kind}.jpg" in rejected for kind in (*BOMBS, "EPS"))
  assert json.loads((tmp_path / "out" / "dataset.json").read_text())["rejected"] == len(BOMBS) + 1


def test_postscript_is_not_interpreted(tmp_path, monkeypatch):
  for name in ("gs", "gswin32c"):
    (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / name).chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  with pytest.raises(UnreadableImage, match="unknown format"):
    decode(small_image("EPS"), exif_orientation=True)
  assert not (tmp_path / "ran").exists()
