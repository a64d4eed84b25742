"""What a reference names and what `load` makes of it: formats, sizes, heads, places."""

import json
import shutil

import fsspec
import jax
import numpy as np
import pytest
import small_models
from small_models import LABELS, PREPROCESSING, random_params, write

import vit_jax
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.interop import orbax_directory
from vit_jax.loading import at_image_size, load
from vit_jax.models.positions import resize_position_embedding
from vit_jax.models.vit import ViT

MODEL = small_models.MODEL | {"position_interpolation": "bilinear"}


@pytest.fixture(scope="module")
def params():
  return random_params(MODEL)


@pytest.fixture(scope="module")
def directory(params, tmp_path_factory):
  place = tmp_path_factory.mktemp("load") / "export"
  write(orbax_directory, place, MODEL, params=params, preprocessing=PREPROCESSING, labels=LABELS)
  return place


def test_a_checkpoint_unpacks_and_predicts(directory, params):
  checkpoint = vit_jax.load(directory)
  model, loaded = checkpoint
  assert isinstance(model, ViT) and checkpoint.labels == LABELS
  assert checkpoint.preprocessing == PREPROCESSING and checkpoint.step is None
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  pixels = checkpoint.preprocess([np.full((40, 50, 3), 128, np.uint8)])
  assert pixels.shape == (1, 32, 32, 3) and pixels.dtype == np.float32
  logits, extra = model.apply({"params": loaded}, pixels, outputs=("hidden_states", "attentions"))
  assert logits.shape == (1, 5)
  assert extra["hidden_states"].shape == (3, 1, 17, 32)
  assert extra["attentions"].shape == (2, 1, 4, 17, 17)


@pytest.mark.parametrize("size", [48, (24, 40)])
def test_another_image_size_resamples_as_the_source_does(directory, params, size):
  checkpoint = load(directory, image_size=size)
  sides = (size, size) if isinstance(size, int) else size
  wanted = resize_position_embedding(
      params["position_embedding"], old_grid=(4, 4), new_grid=(sides[0] // 8, sides[1] // 8),
      interpolation="bilinear",
  )
  np.testing.assert_array_equal(checkpoint.params["position_embedding"], wanted)
  assert checkpoint.model_config["image_size"] == size
  pixels = checkpoint.preprocess([np.zeros((50, 60, 3), np.uint8)])
  assert pixels.shape == (1, *sides, 3)
  # As good as interpolating at call time.
  model, loaded = checkpoint
  logits = model.apply({"params": loaded}, pixels)
  at_call = ViT(**MODEL).apply({"params": params}, pixels)
  np.testing.assert_allclose(logits, at_call, atol=2e-5)


@pytest.mark.parametrize("size", [48, (24, 40)])
def test_fixed_positions_are_stretched_as_at_call_time(tmp_path, size):
  model = MODEL | {"position_embedding": "sincos2d"}
  write(orbax_directory, tmp_path / "export", model, preprocessing=PREPROCESSING, labels=LABELS)
  own, larger = load(tmp_path / "export"), load(tmp_path / "export", image_size=size)
  assert larger.model_config["position_image_size"] == MODEL["image_size"]
  pixels = small_models.images_of({"image_size": size})
  logits, at_call = (
      checkpoint.model.apply({"params": checkpoint.params}, pixels) for checkpoint in (larger, own)
  )
  np.testing.assert_allclose(logits, at_call, atol=2e-5)
  back = at_image_size(larger, MODEL["image_size"])
  assert back.model_config == own.model_config | {"position_image_size": None}


def test_another_class_count_is_a_new_head_said_aloud(directory, params):
  checkpoint = load(directory, num_classes=3)
  assert not checkpoint.params["head"]["kernel"].any()
  assert checkpoint.params["head"]["kernel"].shape == (32, 3) and checkpoint.labels is None
  assert checkpoint.report[-1] == "a new head of 3 classes, all zero, replaces that of 5"
  same = load(directory, num_classes=5)
  np.testing.assert_array_equal(same.params["head"]["kernel"], params["head"]["kernel"])
  assert same.labels == LABELS


def test_no_classes_is_no_head(directory):
  model, params = load(directory, num_classes=0)
  assert "head" not in params
  assert model.apply({"params": params}, np.zeros((1, 32, 32, 3), np.float32)).shape == (1, 32)


def test_dtype_is_of_the_computation(directory):
  model, params = load(directory, dtype="bfloat16")
  assert model.dtype == "bfloat16" and params["head"]["kernel"].dtype == np.float32


def test_what_cannot_be_is_refused(directory, tmp_path):
  with pytest.raises(ConfigError, match="33 is not a multiple of the patch size 8"):
    load(directory, image_size=33)
  with pytest.raises(ConfigError, match="must not be negative"):
    load(directory, num_classes=-1)
  with pytest.raises(CheckpointError, match="there is nothing at .*absent"):
    load(tmp_path / "absent")
  with pytest.raises(CheckpointError, match="is not a run of vit_jax, so it has no step 'best'"):
    load(f"{directory}@best")
  (tmp_path / "weights.h5").write_bytes(b"x")
  with pytest.raises(CheckpointError, match="weights.h5 is not a checkpoint that can be .*npz"):
    load(tmp_path / "weights.h5")
  (tmp_path / "empty").mkdir()
  with pytest.raises(CheckpointError, match="is neither a run of vit_jax .* nor a directory"):
    load(tmp_path / "empty")


def test_a_flipped_bit_is_found(directory, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(directory, copy)
  files = [path for path in (copy / "params").rglob("*") if path.is_file()]
  file = max(files, key=lambda path: path.stat().st_size)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)
  with pytest.raises(CheckpointError, match="not as they were written"):
    load(copy)


def test_the_size_that_is_asked_for_is_preprocessed_to(params, tmp_path):
  """DINOv2 is published so: positions of 518 pixels, a processor of 224."""
  write(
      orbax_directory, tmp_path / "small", MODEL, params=params,
      preprocessing=PREPROCESSING | {"image_size": 16, "short_side": 18},
  )
  checkpoint = load(tmp_path / "small")
  assert "preprocessed to 16 pixels; positions, of 32" in checkpoint.report[-1]
  for size in (32, 24):
    resized = load(tmp_path / "small", image_size=size)
    assert resized.preprocess([np.zeros((50, 60, 3), np.uint8)]).shape == (1, size, size, 3)
    assert resized.preprocessing["short_side"] == 18 * size // 16
    assert not any("preprocessed to" in line for line in resized.report)


def test_what_is_not_square_is_squashed_whole(directory):
  checkpoint = load(directory, image_size=[32, 64])
  assert checkpoint.report[-1] == "images are squashed to 32x64, not cropped"
  left_white = np.zeros((50, 100, 3), np.uint8)
  left_white[:, :20] = 255
  pixels = checkpoint.preprocess([left_white])
  assert pixels.shape == (1, 32, 64, 3) and pixels[0, :, :8].min() > 0
  checkpoint.model.apply({"params": checkpoint.params}, pixels)


@pytest.mark.parametrize("options, said", [
    ({"dtype": "banana"}, "computes in"), ({"dtype": "float16"}, "computes in"),
    ({"image_size": "48"}, "image size '48'"), ({"image_size": (8, 8, 8)}, "height, width"),
])
def test_options_are_checked(directory, options, said):
  with pytest.raises(ConfigError, match=said):
    load(directory, **options)


def test_a_dtype_may_be_jaxs(directory):
  assert load(directory, dtype=jax.numpy.bfloat16).model_config["dtype"] == "bfloat16"


@pytest.fixture
def bucket(directory, tmp_path, monkeypatch):
  """The export in a file system that is not the machine's."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  memory = fsspec.filesystem("memory")
  memory.put(str(directory), "/models/vit", recursive=True)
  yield memory
  memory.rm("/models", recursive=True)


def test_a_url_is_fetched_once(bucket, params, monkeypatch):
  jax.tree.map(np.testing.assert_array_equal, load("memory://models/vit").params, params)
  fetched = []
  real = type(bucket).get_file
  monkeypatch.setattr(
      type(bucket), "get_file", lambda self, *a, **k: (fetched.append(a[0]), real(self, *a, **k))
  )
  assert load("memory://models/vit").ref == "memory://models/vit"
  assert not fetched


def test_what_changed_is_fetched_again(bucket):
  load("memory://models/vit")
  mark = "/models/vit/conversion.json"
  report = json.loads(bucket.cat(mark))
  report["labels"] = list("vwxyz")
  with bucket.open(mark, "wb") as file:
    file.write(json.dumps(report).encode())
  assert load("memory://models/vit").labels == tuple("vwxyz")


def test_urls_that_lead_nowhere(bucket):
  with pytest.raises(CheckpointError, match="memory://models/absent cannot be fetched"):
    load("memory://models/absent")
  with pytest.raises(CheckpointError, match="nosuch://x cannot be reached: .*nosuch"):
    load("nosuch://x")
