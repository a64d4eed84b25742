"""Every config key changes the program, the parameters, the data or the run."""

import functools
import hashlib
import json
import pathlib

import jax
from jax.extend.core import ClosedJaxpr
import numpy as np
from PIL import Image
import pytest

from vit_jax import config as config_lib
from vit_jax.data.bad_records import BadRecords
from vit_jax.data.open import open_configured
from vit_jax.data.pipeline import train_batches
from vit_jax.evaluate import evaluation_batches, evaluation_source, evaluation_split
from vit_jax.plan import make_plan
from vit_jax.resolve import resolve
from vit_jax.train import train
from vit_jax.train_input import train_transform

pytestmark = pytest.mark.slow

BASE = {
    "model.variant": "Ti/8", "model.width": 32, "model.depth": 2, "model.mlp_dim": 64,
    "model.num_heads": 2, "model.image_size": 16, "input.batch_size": 16, "total": "40 steps",
    "input.dataset": "folder", "optimizer.weight_decay": 0.1, "schedule.warmup": "4 steps",
}
# Another value of each key, and what must hold beside it for the key to matter.
CHANGES = {
    "seed": (1,), "total": ("50 steps",), "micro_batch": (8,),
    "model.variant": ("Ti/4",), "model.width": (64,), "model.depth": (1,), "model.mlp_dim": (32,),
    "model.num_heads": (4,), "model.patch_size": (4,), "model.image_size": (24,),
    "model.class_token": (True, {"model.pooling": "gap"}), "model.distillation_token": (True,),
    "model.distillation_head": (True, {"model.distillation_token": True}),
    "model.register_tokens": (2,), "model.mask_token": (True,), "model.pooling": ("map",),
    "model.norm_after_pooling": (True, {"model.pooling": "gap"}), "model.pre_logits": (True,),
    "model.position_embedding": ("sincos2d",), "model.class_token_position": (False,),
    "model.qkv_bias": (False,), "model.qk_norm": (True,), "model.layer_scale": (0.1,),
    "model.mlp": ("swiglu",), "model.gelu": ("erf",), "model.layer_norm_epsilon": (1e-5,),
    "model.attention_initialization": ("mimetic",),
    "model.position_image_size": (8, {"model.position_embedding": "sincos2d"}),
    "model.dropout": (0.1,), "model.attention_dropout": (0.1,), "model.stochastic_depth": (0.1,),
    "model.stochastic_depth_schedule": ("constant", {"model.stochastic_depth": 0.1}),
    "model.dtype": ("bfloat16",), "model.scan": (True,), "model.remat": ("block",),
    "model.gradient_dtype": ("bfloat16", {"model.dtype": "bfloat16"}),
    "input.split": ("train[:50%]",),
    "input.sampling": ("class_balanced",), "input.held_out": (0.5,), "input.batch_size": (32,),
    "input.crop": ("simple",), "input.crop_min_area": (0.9,),
    "input.crop_padding": (3, {"input.crop": "pad"}),
    "input.crop_short_side": (40, {"input.crop": "random"}), "input.crop_filter": ("bicubic",),
    "input.antialias": (True,), "input.scaled_decoding": (True,), "input.flip": (False,),
    "input.rand_augment": ("2,10",), "input.three_augment": (True,), "input.color_jitter": (0.5,),
    "input.random_erasing": (0.9,),
    "input.random_erasing_mode": ("const", {"input.random_erasing": 0.9}),
    "input.resize": ("center",), "input.short_side": (30, {"input.resize": "center"}),
    "input.interpolation": ("bicubic",), "input.mean": ((0.1, 0.2, 0.3),),
    "input.std": ((0.2, 0.3, 0.4),), "input.exif_orientation": (False,),
    "input.repeated_augmentation": (2,),
    "batch_ops.mixup_alpha": (0.2,), "batch_ops.cutmix_alpha": (1.0,),
    "batch_ops.switch_probability": (
        0.9, {"batch_ops.mixup_alpha": 0.2, "batch_ops.cutmix_alpha": 1.0}
    ),
    "batch_ops.mix_per_pair": (True, {"batch_ops.mixup_alpha": 0.2}),
    "batch_ops.label_smoothing": (0.1,),
    "objective.loss": ("sigmoid",), "objective.head_bias": (-5.0,),
    "optimizer.name": ("sgd",), "optimizer.learning_rate": (2e-3,),
    "optimizer.learning_rate_batch_size": (8,),
    "optimizer.learning_rate_rules": ((("head", 2.0),),),
    "optimizer.layer_decay": (0.5,), "optimizer.freeze": ("^blocks/",), "optimizer.b1": (0.8,),
    "optimizer.b2": (0.9,), "optimizer.epsilon": (1e-3,), "optimizer.moment_dtype": ("bfloat16",),
    "optimizer.momentum": (0.5, {"optimizer.name": "sgd"}), "optimizer.weight_decay": (0.2,),
    "optimizer.weight_decay_independent": (True,), "optimizer.weight_decay_mask": (".*",),
    "optimizer.clip_global_norm": (None,), "optimizer.ema_decay": (0.9,),
    "schedule.name": ("linear",), "schedule.warmup": ("8 steps",),
    "schedule.cooldown": ("5 steps", {"schedule.name": "constant"}),
    "schedule.timescale": ("5 steps", {"schedule.name": "rsqrt"}),
    "schedule.end_learning_rate": (1e-4,), "skip.spike_factor": (5.0,),
    "evaluate.split": ("train",), "evaluate.batch_size": (4,),
    "mesh.fsdp": (4,), "mesh.tensor": (2,),
}
# What shows in the files of a run, below.
OF_A_RUN = {
    "log_every": "4 steps", "evaluate.every": "4 steps", "checkpoint.every": "4 steps",
    "checkpoint.keep_latest": 1, "checkpoint.keep_every": "6 steps",
    "checkpoint.best_metric": "accuracy",
    "debug.repeat_batch": True, "objective.class_weights": "balanced",
}
# Each shows where neither of the two looks: file and function of the test that holds it.
ELSEWHERE = {
    "input.dataset": "data/test_open::test_names",
    "input.path": "test_folder_run::test_other_data_is_refused",
    "init.checkpoint": "test_finetune_torch::test_hundred_steps_equal_pytorch",
    "init.head": "configs/test_recipes::test_a_run_is_fine_tuned_with_its_head_and_forked",
    "init.required": "configs/test_recipes::test_fine_tuning_needs_a_checkpoint",
    "input.threads": "test_transform_keys::test_what_the_stream_is_given",
    "input.workers": "data/test_workers::test_the_stream_does_not_depend_on_workers_or_hosts",
    "input.max_bad_fraction": "test_folder_run::test_dirt_is_counted_named_once_and_survived",
    "model.attention": "models/test_attention::test_float32_equals_the_formula",
    # Of a checkpoint only.
    "model.position_interpolation": "test_warm_start::test_positions_of_another_size",
    # What the other axes leave is its only value.
    "mesh.replica": "parallel/test_mesh::test_replicas_are_what_is_left",
    "fork.checkpoint": "test_elastic::test_a_fork_with_nothing_changed_goes_on_bit_for_bit",
    "fork.skip": "test_elastic::test_data_is_left_out_only_at_a_fork",
    "skip.limit": "test_sanity::test_too_many_in_a_row_end_the_run",
    "checkpoint.retries": "faults/test_disks::test_a_disk_that_stays_full_ends_the_run",
    "checkpoint.local": "faults/test_local_tier::test_killed_with_and_without_its_machine",
    "evaluate.real_labels": "test_labels_run::test_real_labels_and_classes_of_other_names",
    "evaluate.classes": "test_labels_run::test_a_run_is_judged_on_imagenet_v2",
    "watchdog": "faults/test_hangs::test_a_frozen_input_ends_the_run_and_is_shown",
    "checkpoint.grace":
        "faults/test_preempted::test_where_the_last_save_hangs_it_leaves_at_the_end_of_its_grace",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Photos of two classes, some of them turned by their EXIF data."""
  root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
  exif = Image.Exif()
  exif[0x0112] = 6
  for i in range(40):
    directory = root / ("cat" if i % 3 else "dog")
    directory.mkdir(exist_ok=True)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    small.resize((160, 120)).save(directory / f"{i}.jpg", exif=exif if i % 2 else Image.Exif())
  return root


def digest(*values) -> str:
  return hashlib.sha256(repr(values).encode()).hexdigest()


def constants(program):
  """Arrays that a jaxpr, and the jitted functions called in it, close over."""
  yield from program.consts
  for equation in program.eqns:
    if isinstance(equation.params.get("jaxpr"), ClosedJaxpr):
      yield from constants(equation.params["jaxpr"])


def stream(batches, count):
  return [
      {key: hashlib.sha256(np.asarray(x).tobytes()).hexdigest() for key, x in batch.items()}
      for batch, _ in zip(batches, range(count))
  ]


def observed(values: dict, folder) -> dict:
  """Everything that a run computes and reads, hashed."""
  config = config_lib.complete(BASE | {"input.path": str(folder)} | values, origin="a test")
  config = resolve(config, checkpoint=None, platform="cpu")
  dataset = open_configured(config)
  source = dataset.splits["train"]
  plan = make_plan(config, examples=len(source), num_classes=len(dataset.classes))
  size, side = config.input.batch_size, config.model.image_size
  batch = {
      "image": np.zeros((size, side, side, 3), np.uint8), "label": np.zeros(size, np.int32),
      "mask": np.ones(size, np.float32),
  }
  program = jax.make_jaxpr(plan.train_step)(plan.abstract, batch, jax.random.key(0))
  evaluated = evaluation_source(config, dataset, evaluation_split(config, dataset))
  return {
      # A jaxpr's text names its constants, such as the mean of the pixels, without their values.
      "program": digest(str(program), [np.asarray(x).tolist() for x in constants(program)]),
      "start": digest(str(jax.make_jaxpr(plan.init)(plan.init_key)),
                      jax.random.key_data(plan.init_key).tolist()),
      "shardings": digest(str(plan.state_shardings)),
      "steps": digest(plan.total_steps, [float(plan.schedule(i)) for i in range(plan.total_steps)]),
      "data": digest(dataset.fingerprint, len(source)),
      "batches": digest(stream(train_batches(
          source, seed=config.seed, start=0, transform=train_transform(config),
          repeats=config.input.repeated_augmentation, batch_size=size, shard=0, shards=1,
          threads=0, bad=BadRecords(),
      ), 4)),
      "evaluation": digest(stream(
          evaluation_batches(config, evaluated, mesh=plan.mesh, bad=BadRecords())(), 9
      )),
  }


@functools.lru_cache(maxsize=None)
def cached(items: str, folder):
  return observed({k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(items).items()},
                  folder)


def test_every_key_is_listed():
  assert set(CHANGES) | set(OF_A_RUN) | set(ELSEWHERE) == set(config_lib.FIELDS)
  assert len(CHANGES) + len(OF_A_RUN) + len(ELSEWHERE) == len(config_lib.FIELDS)


@pytest.mark.parametrize("key", ELSEWHERE)
def test_what_holds_a_key_elsewhere_is_there(key):
  file, _, function = ELSEWHERE[key].partition("::")
  assert f"\ndef {function}(" in (pathlib.Path(__file__).parent / f"{file}.py").read_text()


def test_the_same_again_changes_nothing(folder):
  assert observed({}, folder) == cached("{}", folder)


@pytest.mark.parametrize("key", CHANGES)
def test_a_key_changes_what_is_computed(key, folder):
  value, *context = CHANGES[key]
  context = context[0] if context else {}
  before = cached(json.dumps(context), folder)
  after = observed(context | {key: value}, folder)
  assert before.keys() == after.keys()
  assert before != after


def files(workdir):
  """What a run leaves, without what differs from run to run."""
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return (
      [(line["step"], sorted(line), line.get("train/loss")) for line in lines],
      sorted(path.name for path in (workdir / "checkpoints").iterdir()),
      json.loads((workdir / "run.json").read_text())["best_metric"],
  )


@pytest.fixture(scope="module")
def run_of(folder, tmp_path_factory):
  def run(values):
    short = {
        "total": "12 steps", "log_every": "3 steps", "evaluate.every": "3 steps",
        "checkpoint.every": "3 steps",
    }
    config = config_lib.complete(
        BASE | short | {"input.path": str(folder)} | values, origin="a test"
    )
    workdir = tmp_path_factory.mktemp("run") / "run"
    train(config, workdir=workdir)
    return files(workdir)

  return run


@pytest.fixture(scope="module")
def plain_run(run_of):
  first = run_of({})
  assert first == run_of({})
  return first


@pytest.mark.parametrize("key", OF_A_RUN)
def test_a_key_changes_the_files_of_a_run(key, run_of, plain_run):
  assert run_of({key: OF_A_RUN[key]}) != plain_run
