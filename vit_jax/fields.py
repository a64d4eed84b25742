"""Every config key: its type, default, class, and which values it takes.

Keys are of three classes, which decide what may change when a run is resumed:
  RUNTIME   how it is computed or watched; may differ, the change is recorded.
  RECIPE    what is optimised and how; differs only with `--amend`.
  IDENTITY  what the run is; a difference is refused.
"""

import dataclasses
from typing import Any

from vit_jax import durations

RUNTIME, RECIPE, IDENTITY = "runtime", "recipe", "identity"


@dataclasses.dataclass(frozen=True)
class Field:
  """One config key: its default, class, and which values it takes.

  `kind` is the type where the default is None, which then stays allowed; `units` makes a string a
  duration, `is_regex` a regular expression, `is_path` one that is made absolute; `choices`,
  `minimum` and `maximum` bound the value, `prefixes` begin what is allowed beside the choices;
  `words` are texts that are allowed beside a number or mean no path; `length` makes it a tuple of
  that many `kind`, `is_rules` one of (regular expression, number) pairs.
  """

  default: Any
  key_class: str
  doc: str
  kind: Any = None
  choices: tuple = ()
  prefixes: tuple[str, ...] = ()
  minimum: float | None = None
  maximum: float | None = None
  units: tuple[str, ...] = ()
  is_regex: bool = False
  is_path: bool = False
  length: int = 0
  words: tuple[str, ...] = ()
  is_rules: bool = False

  @property
  def value_type(self) -> type:
    return self.kind or type(self.default)

  @property
  def optional(self) -> bool:
    return self.kind is not None


_STEPS = durations.STEP_UNITS
_ANY_UNIT = durations.STEP_UNITS + durations.TIME_UNITS

FIELDS = {
    "seed": Field(0, IDENTITY, "seed of everything random", minimum=0, maximum=2**31 - 1),
    "total": Field("90 epochs", RECIPE, "length of training", units=_STEPS[:-1]),
    "micro_batch": Field(
        None, RUNTIME, "examples computed at a time; auto: the most that fit [all of a batch]", int,
        minimum=1, words=("auto",),
    ),
    "log_every": Field("50 steps", RUNTIME, "between two progress lines", units=_STEPS),
    "watchdog": Field(
        "30 minutes", RUNTIME, "longest a step may take before it counts as hanging and the run "
        "ends with exit code 75, showing where; what is no step may take four times that; "
        "None: off",
        str, units=durations.TIME_UNITS,
    ),
    # The model.  None: as the checkpoint in init.checkpoint, or the value in brackets.
    "model.variant": Field(None, IDENTITY, 'size and patch, as "B/16" ["S/16"]', str),
    "model.width": Field(None, IDENTITY, "replaces the variant's", int, minimum=1),
    "model.depth": Field(None, IDENTITY, "replaces the variant's", int, minimum=1),
    "model.mlp_dim": Field(None, IDENTITY, "replaces the variant's", int, minimum=1),
    "model.num_heads": Field(None, IDENTITY, "replaces the variant's", int, minimum=1),
    "model.patch_size": Field(None, IDENTITY, "replaces the variant's", int, minimum=1),
    "model.image_size": Field(None, IDENTITY, "side in pixels [224]", int, minimum=1),
    "model.class_token": Field(None, IDENTITY, "prepend one [where pooling is cls]", bool),
    "model.distillation_token": Field(None, IDENTITY, "prepend a second, DeiT's [False]", bool),
    "model.distillation_head": Field(None, IDENTITY, "a second classifier on it [False]", bool),
    "model.register_tokens": Field(None, IDENTITY, "further tokens [0]", int, minimum=0),
    "model.mask_token": Field(None, IDENTITY, "for masked patches [False]", bool),
    "model.pooling": Field(
        None, IDENTITY, "class token, mean over patches or attention pooling [cls]", str,
        choices=("cls", "gap", "map"),
    ),
    "model.norm_after_pooling": Field(
        None, IDENTITY, "norm the mean of the patches instead of each [False]", bool
    ),
    "model.pre_logits": Field(False, IDENTITY, "dense layer with tanh before the head"),
    "model.position_embedding": Field(
        None, IDENTITY, "learned, or fixed as big_vision's or MAE's [learned]", str,
        choices=("learned", "sincos2d", "sincos2d_mae"),
    ),
    "model.class_token_position": Field(
        None, IDENTITY, "learned positions cover class and distillation token [True]", bool
    ),
    "model.position_image_size": Field(
        None, IDENTITY, "side of the images whose patches fixed positions count, stretched over "
        "others [as init.checkpoint's do, or image_size]", int, minimum=1,
    ),
    "model.position_interpolation": Field(
        None, IDENTITY, "of learned positions at another image size [bicubic]", str,
        choices=("bicubic", "bilinear", "bicubic_antialias", "bilinear_antialias"),
    ),
    "model.qkv_bias": Field(None, IDENTITY, "biases of query, key and value [True]", bool),
    "model.qk_norm": Field(None, IDENTITY, "layer norm of queries and keys [False]", bool),
    "model.layer_scale": Field(
        None, IDENTITY, "initial value of LayerScale [off]", float, minimum=0
    ),
    "model.mlp": Field(
        None, IDENTITY, "the MLP's kind [gelu]", str, choices=("gelu", "swiglu")
    ),
    "model.gelu": Field(
        None, IDENTITY, "tanh approximation or exact erf [tanh]", str, choices=("tanh", "erf")
    ),
    "model.layer_norm_epsilon": Field(
        None, IDENTITY, "of every layer norm [1e-6]", float, minimum=0
    ),
    "model.attention_initialization": Field(
        "xavier", IDENTITY, "kernels of attention: uniform, or as trained attention looks",
        choices=("xavier", "mimetic"),
    ),
    "model.dropout": Field(0.0, RECIPE, "rate after dense layers", minimum=0, maximum=0.99),
    "model.attention_dropout": Field(
        0.0, RECIPE, "rate on attention weights", minimum=0, maximum=0.99
    ),
    "model.stochastic_depth": Field(
        0.0, RECIPE, "rate of the last block", minimum=0, maximum=0.99
    ),
    "model.stochastic_depth_schedule": Field(
        "linear", RECIPE, "over the blocks, from 0 or constant", choices=("linear", "constant")
    ),
    "model.dtype": Field(
        None, RECIPE, "of the computation [bfloat16, on a CPU float32]", str,
        choices=("bfloat16", "float32"),
    ),
    "model.gradient_dtype": Field(
        "float32", RECIPE, "in which gradients are summed over examples and devices",
        choices=("float32", "bfloat16"),
    ),
    "model.scan": Field(
        None, RUNTIME, "run the blocks by lax.scan instead of unrolled [on TPUs, whose compiler "
        "takes minutes for unrolled ones]", bool,
    ),
    "model.remat": Field(
        None, RUNTIME, "what the backward pass computes again: nothing, all but dense layers' "
        "results, whole blocks, or all but names:NAME,NAME (models/layers.py) [dots where blocks "
        "are scanned on TPUs, else none]", str,
        choices=("none", "dots", "block"), prefixes=("names:",),
    ),
    "model.attention": Field(
        "auto", RUNTIME, "implementation of attention", choices=("auto", "xla", "cudnn")
    ),
    "input.dataset": Field(
        "folder", IDENTITY, "where examples come from, or tfds:NAME[/CONFIG][:VERSION]",
        choices=(
            "folder", "array_record", "digits", "cifar10", "cifar100", "mnist", "fashion_mnist",
            "imagenet_v2", "mixture",
        ),
        prefixes=("tfds:",),
    ),
    "input.path": Field(
        None, RUNTIME, "directory of the data set; of a mixture the file that lists it", str,
        is_path=True,
    ),
    "input.split": Field(
        "train", IDENTITY, 'trained on; a part of one as "train[:99%]", then none is held out'
    ),
    "input.sampling": Field(
        "uniform", RECIPE, "each example once an epoch, or each class equally often",
        choices=("uniform", "class_balanced"),
    ),
    "input.held_out": Field(
        0.1, IDENTITY, "share held out where no such split exists; 0: none", minimum=0, maximum=0.9
    ),
    "input.batch_size": Field(128, RECIPE, "examples of one step, over all devices", minimum=2),
    "input.crop": Field(
        "random_resized", RECIPE, "of training images; see data/augment.py",
        choices=(
            "random_resized", "simple", "random", "center", "squash_random", "pad", "none",
        ),
    ),
    "input.crop_min_area": Field(
        0.08, RECIPE, "smallest share of a random_resized crop", minimum=0.001, maximum=1
    ),
    "input.crop_padding": Field(0, RECIPE, "pixels added on each side by a pad crop", minimum=0),
    "input.crop_short_side": Field(
        None, RECIPE, "resized to this before a random, center or squash_random crop [8/7 image]",
        int, minimum=1,
    ),
    "input.crop_filter": Field(
        "bilinear", RECIPE, "of training crops and of timm's RandAugment",
        choices=("bilinear", "bicubic", "random"),
    ),
    "input.antialias": Field(
        False, RECIPE, "average where a random_resized crop is made smaller; others always are"
    ),
    "input.scaled_decoding": Field(
        False, RECIPE, "decode JPEGs at 1/2, 1/4 or 1/8 where the crop stays large enough"
    ),
    "input.flip": Field(True, RECIPE, "mirror every second training image"),
    "input.rand_augment": Field(
        None, RECIPE, 'LAYERS,MAGNITUDE as "2,15", or timm\'s "rand-m9-mstd0.5-inc1"; None: off',
        str,
    ),
    "input.three_augment": Field(False, RECIPE, "DeiT-III's: gray, solarized or blurred"),
    "input.color_jitter": Field(
        0.0, RECIPE, "strength, of brightness, contrast and saturation; 0: off", minimum=0
    ),
    "input.random_erasing": Field(
        0.0, RECIPE, "probability that a box is erased", minimum=0, maximum=1
    ),
    "input.random_erasing_mode": Field(
        "pixel", RECIPE, "fill with noise or with the mean colour", choices=("pixel", "const")
    ),
    "input.resize": Field(
        None, IDENTITY, "evaluation: squash, or centre crop [squash]", str,
        choices=("squash", "center"),
    ),
    "input.short_side": Field(
        None, IDENTITY, "resized to this before a centre crop [8/7 of the image]", int, minimum=1
    ),
    "input.interpolation": Field(
        None, IDENTITY, "of evaluation resizing [bilinear]", str, choices=("bilinear", "bicubic")
    ),
    "input.mean": Field(None, IDENTITY, "of pixels in 0..1 [.5 .5 .5]", float, length=3),
    "input.std": Field(
        None, IDENTITY, "of pixels in 0..1 [.5 .5 .5]", float, length=3, minimum=1e-6
    ),
    "input.exif_orientation": Field(
        None, IDENTITY, "turn photos as their EXIF data says [True]", bool
    ),
    "input.threads": Field(2, RUNTIME, "that decode images", minimum=0),
    "input.workers": Field(
        0, RUNTIME, "processes that decode images instead of the threads", minimum=0
    ),
    "input.max_bad_fraction": Field(
        0.01, RUNTIME, "share of unreadable images above which the run stops", minimum=0, maximum=1
    ),
    "input.repeated_augmentation": Field(
        1, RECIPE, "times each image stands in the order, so that R epochs visit each R times",
        minimum=1,
    ),
    "batch_ops.mixup_alpha": Field(0.0, RECIPE, "of Mixup's Beta distribution; 0: off", minimum=0),
    "batch_ops.cutmix_alpha": Field(
        0.0, RECIPE, "of CutMix's Beta distribution; 0: off", minimum=0
    ),
    "batch_ops.switch_probability": Field(
        0.5, RECIPE, "of CutMix where Mixup is on, too", minimum=0, maximum=1
    ),
    "batch_ops.mix_per_pair": Field(
        False, RECIPE, "each pair of neighbours draws for itself, not once a batch"
    ),
    "batch_ops.label_smoothing": Field(
        0.0, RECIPE, "share of a target that is spread over the classes", minimum=0, maximum=0.999
    ),
    "objective.loss": Field(
        "softmax", RECIPE, "cross-entropy among all classes, or the sum of each class's own (BCE)",
        choices=("softmax", "sigmoid"),
    ),
    "objective.class_weights": Field(
        None, RECIPE, "balanced, or a JSON file of {class: weight}; None: all 1", str,
        is_path=True, words=("balanced",),
    ),
    "objective.head_bias": Field(0.0, RECIPE, "of the new head, as -10 for 21 843 sigmoids"),
    "optimizer.name": Field("adamw", RECIPE, "the rule", choices=("adam", "adamw", "sgd")),
    "optimizer.learning_rate": Field(1e-3, RECIPE, "the peak", minimum=1e-12),
    "optimizer.learning_rate_batch_size": Field(
        None, RECIPE, "batch that the rate is meant for, and end_learning_rate: both are scaled to "
        "the run's; None: as they are",
        int, minimum=1,
    ),
    "optimizer.learning_rate_rules": Field(
        (), RECIPE, '((regex, multiplier), ...) of paths; the first that matches counts',
        is_rules=True,
    ),
    "optimizer.layer_decay": Field(
        None, RECIPE, "the rate falls by this factor from layer to layer towards the input", float,
        minimum=0.01, maximum=1,
    ),
    "optimizer.freeze": Field(
        None, IDENTITY, "regex of paths that are not trained", str, is_regex=True
    ),
    "optimizer.b1": Field(0.9, RECIPE, "decay of Adam's first moment", minimum=0, maximum=1),
    "optimizer.b2": Field(0.999, RECIPE, "decay of Adam's second moment", minimum=0, maximum=1),
    "optimizer.epsilon": Field(1e-8, RECIPE, "added to Adam's denominator", minimum=0),
    "optimizer.moment_dtype": Field(
        None, IDENTITY, "of Adam's first moment or sgd's momentum [float32]", str,
        choices=("bfloat16",),
    ),
    "optimizer.momentum": Field(0.9, RECIPE, "of sgd", minimum=0, maximum=1),
    "optimizer.weight_decay": Field(
        0.0, RECIPE, "times the learning rate; of adam added to the gradient", minimum=0
    ),
    "optimizer.weight_decay_independent": Field(
        False, RECIPE, "times the schedule's share of its peak instead, as big_vision writes it"
    ),
    "optimizer.weight_decay_mask": Field(
        "kernel$", RECIPE, "regex of paths that decay", is_regex=True
    ),
    "optimizer.clip_global_norm": Field(
        1.0, RECIPE, "largest gradient norm; None: off", float, minimum=1e-12
    ),
    "optimizer.ema_decay": Field(
        None, RECIPE, "of the average of parameters that is evaluated and exported; None: off",
        float, minimum=0, maximum=0.9999999,
    ),
    "schedule.name": Field(
        "cosine", RECIPE, "decay", choices=("cosine", "linear", "rsqrt", "constant")
    ),
    "schedule.warmup": Field("0 steps", RECIPE, "linear from 0", units=_STEPS),
    "schedule.cooldown": Field(
        "0 steps", RECIPE, "linear to the end, of rsqrt and constant", units=_STEPS
    ),
    "schedule.timescale": Field(
        "10000 steps", RECIPE, "of rsqrt, at which the rate is the peak / sqrt(2)", units=_STEPS
    ),
    "schedule.end_learning_rate": Field(0.0, RECIPE, "where the decay ends", minimum=0),
    "init.checkpoint": Field(
        None, IDENTITY, "REF whose weights the run starts from", str, is_path=True
    ),
    "init.head": Field(
        "new", IDENTITY, "new, from zero; keep: init.checkpoint's, where the classes are the same",
        choices=("new", "keep"),
    ),
    "init.required": Field(False, RUNTIME, "init.checkpoint has to be given, as to fine-tune"),
    "fork.checkpoint": Field(
        None, IDENTITY, "RUN@STEP of another run, whose whole state this one goes on from", str,
        is_path=True,
    ),
    "fork.skip": Field(
        "0 steps", IDENTITY, "of the data left out there, as what a spike came of",
        units=_STEPS[:-1],
    ),
    "skip.spike_factor": Field(
        None, RECIPE, "skip a step whose gradient norm is above this many times the usual; None: "
        "only one that is not finite", float, minimum=1,
    ),
    "skip.limit": Field(10, RUNTIME, "steps skipped in a row; one more ends the run", minimum=0),
    "evaluate.every": Field("1 epochs", RUNTIME, "between two evaluations", units=_STEPS),
    "evaluate.split": Field(
        None, RUNTIME, 'perhaps a part as "train[99%:]" [validation where it exists, else test]',
        str,
    ),
    "evaluate.real_labels": Field(
        None, RUNTIME, "ImageNet-ReaL's real.json, whose labels replace those of ImageNet's "
        "validation images (evaluate.split=validation)", str, is_path=True,
    ),
    "evaluate.classes": Field(
        "by_name", RUNTIME, "how the classes of a checkpoint that is judged, or whose head is "
        "kept, must agree with those of the data",
        choices=("by_name", "by_order"),
    ),
    "evaluate.batch_size": Field(None, RUNTIME, "[input.batch_size]", int, minimum=1),
    "checkpoint.every": Field("10 minutes", RUNTIME, "between two checkpoints", units=_ANY_UNIT),
    "checkpoint.keep_latest": Field(2, RUNTIME, "newest checkpoints kept", minimum=1),
    "checkpoint.grace": Field(
        None, RUNTIME, "from SIGTERM until the run leaves, saved or not; None: when it has saved",
        str, units=durations.TIME_UNITS,
    ),
    "checkpoint.keep_every": Field(
        "0 steps", RUNTIME, "besides, the first checkpoint of each such interval; 0: none",
        units=_ANY_UNIT,
    ),
    "checkpoint.local": Field(
        None, RUNTIME, "directory on a fast disk to save to first; the run gets a copy", str,
        is_path=True,
    ),
    "checkpoint.retries": Field(
        10, RUNTIME, "attempts after a failed save, 1, 2, 4, ... seconds apart", minimum=0
    ),
    "checkpoint.best_metric": Field(
        None, RUNTIME, "evaluation metric whose best checkpoint is kept, and by which a sweep "
        "chooses; None: keep none, and choose by accuracy", str,
        choices=("accuracy", "accuracy_top5", "loss"),
    ),
    "debug.repeat_batch": Field(
        False, IDENTITY, "train on the first batch for ever: measures the step without the input"
    ),
    "mesh.replica": Field(None, RUNTIME, "data-parallel copies [what is left]", int, minimum=1),
    "mesh.fsdp": Field(
        None, RUNTIME, "data-parallel shards of the parameters [the fewest that fit the memory]",
        int, minimum=1,
    ),
    "mesh.tensor": Field(1, RUNTIME, "tensor-parallel shards of each layer", minimum=1),
}
