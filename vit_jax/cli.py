"""The verbs: `vit-jax VERB`, also `python -m vit_jax VERB`.

Imports what a verb needs only when it runs, so that `--help` answers at once.
"""

import argparse
import difflib
import json
import logging
import os
import pathlib
import sys
import textwrap
import traceback

from vit_jax import __version__
from vit_jax.interop.targets import TARGETS
from vit_jax.errors import CheckpointError, ConfigError, VitJaxError, redacted
from vit_jax.observe.output import forgiving_stderr, forgiving_stdout

# Of `data.prepare.run`, which is not imported for --help.
_SOURCES = ("imagefolder", "tar", "webdataset", "parquet", "imagenet", "tfds")
_REF = (
    "RUN[@STEP|@latest|@best][+ema]; a directory of Hugging Face or timm; a file (.npz, "
    ".safetensors, .pth); hf:USER/NAME[@REV], timm:NAME, gs://BUCKET/PATH"
)


@forgiving_stderr()
def main(argv: list[str] | None = None) -> None:
  """Runs a verb and leaves with its exit code: 0 done, 2 usage or config, 3 data, 4 non-finite
  training, 5 checkpoint, 75 preempted or a peer lost (start me again)."""
  argv = sys.argv[1:] if argv is None else argv
  debug, failure = "--debug" in argv, None
  if not debug:
    # Orbax logs the tracebacks of what we then say in one paragraph.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
  try:
    arguments, overrides = _parse([a for a in argv if a != "--debug"])
    code = arguments.run(arguments, overrides)
    sys.stdout.flush()
  except VitJaxError as error:
    failure = _lost_peer(error) or error
    code = _say(str(failure), failure.exit_code, debug)
  except OSError as error:
    # Whoever read our output, such as `head`, has left; who trains does not mind (below).
    if isinstance(error, BrokenPipeError) and not {"train", "sweep"} & set(argv[:2]):
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      sys.exit(0)
    code = _say(f"{error}. Mend that and repeat the command", CheckpointError.exit_code, debug)
  except Exception as error:  # what nobody foresaw
    failure = _lost_peer(error)
    said = failure or f"unexpected {type(error).__name__}: {error}. --debug shows where"
    code = _say(str(said), failure.exit_code if failure else 1, debug)
  except KeyboardInterrupt:
    print("vit-jax: interrupted", file=sys.stderr)
    code = 130
  if code and "vit_jax.parallel.processes" in sys.modules:  # else this process is alone
    sys.modules["vit_jax.parallel.processes"].leave(code, failure)
  sys.exit(code or 0)


def _lost_peer(error: Exception) -> VitJaxError | None:
  """A PeerLost where this is one of several processes and another has gone."""
  processes = sys.modules.get("vit_jax.parallel.processes")  # else this process is alone
  return processes and processes.lost_peer(error)


def _say(text: str, code: int, debug: bool) -> int:
  """Prints an error as one paragraph, with its traceback for `--debug`; returns the exit code."""
  if debug:
    print(redacted(traceback.format_exc()), file=sys.stderr)
  paragraph = " ".join(f"vit-jax: {redacted(text)}".split())
  print(textwrap.fill(paragraph, 100, break_long_words=False, break_on_hyphens=False),
        file=sys.stderr)
  return code


def _parse(argv):
  """Splits the command line into a verb's arguments and `--config.key=value` overrides."""
  parser = _parser()
  arguments, rest = parser.parse_known_args(argv)
  overrides = {}
  for text in rest:
    key, equals, value = text.removeprefix("--config.").partition("=")
    if not text.startswith("--config."):
      known = [option for action in arguments.parser._actions for option in action.option_strings]
      near = difflib.get_close_matches(text.partition("=")[0], known, n=1)
      hint = f"; did you mean {near[0]}?" if near else "."
      raise ConfigError(
          f"{arguments.verb} does not take {text!r}{hint} Config keys are set as "
          f"--config.key=value. `vit-jax {arguments.verb} --help` shows an example"
      )
    if not equals:
      raise ConfigError(f"{text} has no value: write it as {text}=VALUE")
    overrides[key] = value
  if overrides and "config" not in arguments:
    raise ConfigError(f"{arguments.verb} takes no --config.key=value")
  return arguments, overrides


def _parser() -> argparse.ArgumentParser:
  """Builds the parser of all verbs."""
  parser = argparse.ArgumentParser(
      prog="vit-jax", allow_abbrev=False,
      description="Train Vision Transformers in JAX, and publish them.",
      epilog="--debug after any verb shows the traceback of an error.",
  )
  parser.add_argument("--version", action="version", version=__version__)
  verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

  def verb(name, run, summary, example):
    sub = verbs.add_parser(
        name, help=summary, description=summary, allow_abbrev=False, epilog=f"Example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(run=run, parser=sub)
    return sub.add_argument

  add = verb("train", _train, "Train, or continue, a run.", """\
  vit-jax train --config=quickstart --workdir=runs/digits --config.total="10 epochs"
  vit-jax train --config=folder --config.init.checkpoint=HF_DIR --config.input.path=PHOTOS \\
      --workdir=runs/photos
The same command again continues the run. Any key is set with --config.key=value; `vit-jax configs`
lists the recipes, `vit-jax configs --keys` the keys.""")
  add("--config", required=True, metavar="NAME[:ARG]|FILE.py[:ARG]", help="the recipe")
  add("--workdir", required=True, metavar="RUN", help="the run's directory, made if missing")
  add("--amend", action="store_true",
      help="go on from the last checkpoint although recipe keys (schedule, optimizer, ...) differ; "
      "config_history.jsonl records it")
  add("--strict", action="store_true",
      help="end with an error where the newest checkpoint is damaged or gone [set it aside, and go "
      "on from the newest that is good]")
  _add_processes(add)

  add = verb("plan", _plan, "Say what a run would do, here or on TPUs and GPUs elsewhere.", """\
  vit-jax plan --config=quickstart                                       this machine
  vit-jax plan --config=vit_i21k:H/14 --topology=v5p:4x4x8 --json=h14.json
  vit-jax plan --config=vit_i1k:L/16 --topology=v5e:16x16*2 --config.mesh.fsdp=16
  vit-jax plan --config=folder:scratch --topology=h100:8 --examples=50000 --classes=12
Nothing is written but FILE, and no accelerator is touched.  For TPUs the training step is compiled
by their own compiler (pip install 'vit_jax[plan]'): does it fit, what does it send, how long will
it take.  For GPUs, or without it, that is estimated.  Each number says what it rests on.""")
  add("--config", required=True, metavar="NAME[:ARG]|FILE.py[:ARG]", help="the recipe")
  add("--topology", metavar="GENERATION:SHAPE[*SLICES]", help="v4, v5e, v5p, v6e or tpu7x, as "
      "v5e:16x16*2; or a100, h100, h200, b200 and GPUs a node, as h100:8*4 [this machine]")
  add("--examples", type=int, metavar="N", help="images of the training split, if it is not here")
  add("--classes", type=int, metavar="N", help="of these")
  add("--mfu", type=float, metavar="SHARE", help="of the bfloat16 peak that training reaches, as "
      "0.4 [what was published of a ViT]")
  add("--json", metavar="FILE", help="also write everything here")

  add = verb("sweep", _sweep, "Train the runs that a recipe's sweep() lists; test the best.", """\
  vit-jax sweep --config=finetune:cifar10 --config.init.checkpoint=REF --config.input.path=DIR \\
      --workdir=runs/sweep
  vit-jax sweep --config=... --workdir=runs/sweep --print             what it would train
  vit-jax sweep --config=... --workdir=runs/sweep --index=$SLURM_ARRAY_TASK_ID      one of them
Each run lies in a directory of its own and is skipped once finished.  DIR/sweep.csv compares them
by config.checkpoint.best_metric [accuracy] on the held-out split; DIR/winner.json names the best,
which alone is evaluated on the test split.""")
  add("--config", required=True, metavar="NAME[:ARG]|FILE.py[:ARG]", help="a recipe with sweep()")
  add("--workdir", required=True, metavar="DIR", help="directory of the runs, made if missing")
  add("--index", type=int, metavar="N", help="train only run N, from 0 [all]")
  add("--print", action="store_true", help="list the runs, and train none")
  _add_processes(add)

  add = verb("evaluate", _evaluate, "Measure a checkpoint on a split, exactly; prints JSON.", """\
  vit-jax evaluate --model=runs/digits --output=accuracy.json
  vit-jax evaluate --model=RUN --config.input.dataset=folder --config.input.path=photos
  vit-jax evaluate --model=HF_DIR --config=folder --config.input.path=photos
  vit-jax evaluate --model=HF_DIR --config=folder --config.input.path=photos \\
      --measures=knn,linear_probe,few_shot
Measures: classification (top-1, top-5, loss), macro_f1, calibration, confusion (tables beside the
JSON file); knn, few_shot and linear_probe judge the pooled features, so that any model will do.
A --config says of which data.  Model and preprocessing are the checkpoint's: keys such as
--config.model.image_size=384 or --config.input.resize=center judge it otherwise, which the JSON
says.""")
  add("--model", required=True, metavar="REF", help=_REF)
  add("--config", metavar="NAME[:ARG]|FILE.py[:ARG]", help="of the data [the run's own]")
  add("--output", metavar="FILE", help="also write the JSON here [of a run in RUN/evaluations, "
      "in a directory for each step, data and way of judging]")
  add("--measures", default="classification", metavar="NAME,NAME",
      help="see below [classification]")
  add("--classes", metavar="MAP", help="judge by these classes of the head: imagenet-1k (of an "
      "ImageNet-21k head), or a file with an index or WordNet id a line")
  _add_processes(add)

  add = verb("predict", _predict, "Name what is in images.", """\
  vit-jax predict --model=runs/flowers@best photo.jpg
  vit-jax predict --model=HF_DIR --attention=looks.png photos/*.jpg""")
  add("--model", required=True, metavar="REF", help=_REF)
  add("--top", type=int, default=5, metavar="N", help="classes shown [5]")
  add("--attention", metavar="PICTURE", help="write where the model looks in each image, by "
      "attention rollout, such as out.png")
  add("images", nargs="+", metavar="IMAGE")

  add = verb("convert", _convert, "Write a checkpoint in somebody else's format, verified.", """\
  vit-jax convert --model=runs/digits --output=digits_hf --to=huggingface
  vit-jax convert --model=B_16.npz --output=b16_timm --to=timm --dtype=bfloat16
  vit-jax convert --model=runs/a@10000,20000,best --output=exports      into exports/10000, ...
The export is read back, compared bit by bit and, where torch is installed, run against ours before
it appears; DIR/conversion.json holds the proof.""")
  add("--model", required=True, metavar="REF", help=_REF)
  add("--output", required=True, metavar="PATH", help="directory to write")
  add("--to", default="huggingface", choices=list(TARGETS), help="the format [huggingface]")
  add("--architecture", metavar="CLASS",
      help="a class of the format, such as ViTModel [the richest that holds the weights]")
  add("--dtype", default="float32", choices=["float32", "bfloat16", "float16"],
      help="of the stored weights [float32]")
  add("--max-shard-size", default="5GB", metavar="SIZE", help="of a file of weights [5GB]")
  add("--image-size", metavar="N|HxW", help="resample position embeddings to it [unchanged]")
  add("--classes", metavar="MAP", help="keep these classes of the head: imagenet-1k (of "
      "an ImageNet-21k head), or a file with an index or WordNet id a line")

  add = verb("publish", _publish, "Publish steps of a run: directories, a card, the Hub.", """\
  vit-jax publish --model=runs/flowers@10000,50000,best --output=flowers --license=apache-2.0
  vit-jax publish --model=runs/flowers@best --output=flowers --license=mit --repo=USER/flowers
Each step is exported and proved as by `vit-jax convert`, into DIR/stepSTEP, and sent to a branch of
its own; `main` is the step named last.  One card lists all of them with what was measured.  The
same command again sends what changed, and finishes what was interrupted.  Log in with `hf auth
login`, or set HF_TOKEN.""")
  add("--model", required=True, metavar="RUN@STEP,STEP",
      help="steps of a run: numbers, latest, best, each with +ema to insist on averaged weights")
  add("--output", required=True, metavar="DIR", help="directory of the directories to write")
  add("--license", required=True, metavar="ID", help="as the Hub calls it: apache-2.0, mit, ...")
  add("--repo", metavar="USER/NAME", help="also send to this repository, made if missing")
  add("--revision", default="step{step}", metavar="PATTERN", help="a step's branch [step{step}]")
  add("--private", action="store_true", help="make the repository private")
  add("--create-pr", action="store_true",
      help="propose the last step as a pull request to main, and touch no branch")
  add("--base-model", metavar="ID", help="the Hub's model that the run began from [on record]")
  add("--to", default="huggingface", choices=["huggingface", "timm"],
      help="the format [huggingface]")
  add("--architecture", metavar="CLASS",
      help="a class of the format [the richest that holds the weights]")
  add("--dtype", default="float32", choices=["float32", "bfloat16", "float16"],
      help="of the stored weights [float32]")
  add("--dry-run", action="store_true", help="print what would be written and sent, and do neither")
  add("--overwrite", action="store_true",
      help="replace another export on the Hub, and a model card that somebody edited")

  add = verb("prepare", _prepare, "Bring a data set into shards that can be read by index.", """\
  vit-jax prepare --source=imagefolder --input=photos --output=photos_shards
  vit-jax prepare --source=imagenet --input=downloads --output=imagenet --workers=16
  vit-jax prepare --source=webdataset --input=imagenet-w21-wds --output=imagenet21k \\
      --short-side=256 --quality=92 --workers=32
  vit-jax train --config=... --config.input.dataset=array_record --config.input.path=imagenet
DIR appears complete; the same command again continues what was interrupted.  What cannot be read is
listed in DIR/rejected.csv.  docs/imagenet21k.md leads through ImageNet-21k.""")
  add("--source", required=True, choices=_SOURCES, help="what the input is")
  add("--input", required=True, metavar="PATH", help="directory or file; of tfds the directory of "
      "one version")
  add("--output", required=True, metavar="DIR", help="directory to write")
  add("--short-side", type=int, metavar="N", help="store larger images reduced to it [as they are]")
  add("--quality", type=int, default=90, metavar="Q", help="of the reduced JPEGs [90]")
  add("--merge-duplicates", action="store_true",
      help="make identical images of a split one record with the labels of all")
  add("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes [one a core]")
  add("--shard-size", type=float, default=1000, metavar="MB", help="of input in a shard [1000]")
  add("--classes", metavar="FILE", help="the order of the classes, one a line, as in "
      "imagenet21k_wordnet_ids.txt; images of others are rejected [sorted]")
  add("--val-labels", metavar="FILE", help="of imagenet: a WordNet id a line for each validation "
      "image [from the development kit or LOC_val_solution.csv in the input]")

  add = verb("configs", _configs, "List the recipes, or copy one here to edit.", """\
  vit-jax configs            the recipes
  vit-jax configs folder     writes ./folder.py; then: vit-jax train --config=folder.py ...
  vit-jax configs --keys     every config key, its default and class""")
  add("name", nargs="?", metavar="NAME")
  add("--keys", action="store_true", help="list the config keys")

  add = verb("checkpoint", _checkpoint, "List, verify or prune the checkpoints of a run.", """\
  vit-jax checkpoint list runs/digits                      newest first: when, size, state, metrics
  vit-jax checkpoint verify runs/digits                    reads every byte of every checkpoint
  vit-jax checkpoint verify gs://BUCKET/RUN --step=10000   of one
  vit-jax checkpoint prune runs/digits --dry-run           what the run's own policy would delete
  vit-jax checkpoint prune runs/digits --keep-latest=1 --quarantined
verify names each damaged file and leaves with 5 if there is one.  prune keeps what the run's
config.checkpoint.keep_latest, keep_every and best_metric ask for, and always the newest that is
good, which it verifies first; while the run is being trained it is refused.  Quarantined are
damaged ones, which training sets aside as STEP.corrupt.""")
  add("action", choices=["list", "verify", "prune"], metavar="list|verify|prune")
  add("workdir", metavar="RUN", help="the run's directory, or gs://BUCKET/PATH")
  add("--json", action="store_true", help="list: as JSON")
  add("--step", type=int, metavar="N", help="verify: only this one [all]")
  add("--keep-latest", type=int, metavar="N", help="prune: as if config.checkpoint.keep_latest "
      "were N [the run's]")
  add("--dry-run", action="store_true", help="prune: say what would be deleted, and delete nothing")
  add("--quarantined", action="store_true", help="prune: delete quarantined ones, too")

  add = verb("status", _status, "Say where a run stands.", """\
  vit-jax status --workdir=runs/digits""")
  add("--workdir", required=True, metavar="RUN")
  add("--json", action="store_true", help="as JSON")

  verb("doctor", _doctor, "Check this machine: packages, devices, optional parts.", """\
  vit-jax doctor""")
  return parser


def _add_processes(add):
  """Flags of several processes that train together, one on each host (on Slurm: for each GPU)."""
  add("--coordinator", metavar="HOST:PORT", help="of several processes, where process 0 listens, "
      "the same for all; not needed on Cloud TPU, on GKE's TPUs and in a Slurm step")
  add("--processes", type=int, metavar="N", help="how many there are; 1: this one alone, whatever "
      "the cluster says [what the cluster says]")
  add("--process", type=int, metavar="I", help="which of them this is, from 0")
  add("--start-timeout", type=float, default=300.0, metavar="SECONDS", help="how long to wait at "
      "the start for those that are absent, then name them and leave with 75 [300]")


def _start_processes(arguments, overrides, **options):
  """Joins the other processes, if there are any; before a backend starts."""
  import jax

  from vit_jax.parallel import processes

  own = ("run", "parser", "coordinator", "processes", "process", "start_timeout")
  given = {f"--{name}": value for name, value in vars(arguments).items() if name not in own}
  given |= {f"--config.{key}": value for key, value in overrides.items()}
  given |= {"vit_jax": __version__, "jax": jax.__version__}
  processes.start(
      coordinator=arguments.coordinator, processes=arguments.processes,
      process=arguments.process, timeout=arguments.start_timeout,
      command={name: str(value) for name, value in given.items()}, **options,
  )


def _train(arguments, overrides):
  from vit_jax import config, resume
  from vit_jax.checkpoint.run import RunDirectory

  loaded = config.load(arguments.config, overrides)
  resume.pin_cpu_threads(RunDirectory(arguments.workdir))
  _start_processes(arguments, overrides)
  from vit_jax.train import train

  with forgiving_stdout():
    train(loaded, workdir=arguments.workdir, amend=arguments.amend, strict=arguments.strict)


def _plan(arguments, overrides):
  if arguments.topology:
    from vit_jax.parallel import topology

    topology.prepare_environment()  # before jax starts
  from vit_jax.plan_verb import plan

  if arguments.json and not pathlib.Path(arguments.json).absolute().parent.is_dir():
    raise ConfigError(f"--json={arguments.json}: there is no such directory to write into")
  text, told = plan(
      arguments.config, overrides, topology=arguments.topology, examples=arguments.examples,
      classes=arguments.classes, mfu=arguments.mfu,
  )
  print(text)
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(told, indent=2) + "\n")


def _sweep(arguments, overrides):
  from vit_jax import resume
  from vit_jax.checkpoint.run import RunDirectory
  from vit_jax.sweep import members, sets_threads, sweep

  everything = members(arguments.config, overrides, arguments.workdir)
  if arguments.index is not None and not 0 <= arguments.index < len(everything):
    last = len(everything) - 1
    raise ConfigError(f"--index={arguments.index}: the sweep has the runs 0 to {last}")
  chosen = everything if arguments.index is None else [everything[arguments.index]]
  if arguments.print:
    print("\n".join(f"{member.workdir}: {member.values}" for member in chosen))
    return
  resume.pin_cpu_threads(RunDirectory(sets_threads(chosen).workdir))
  _start_processes(arguments, overrides)
  with forgiving_stdout():
    sweep(chosen, everything, workdir=arguments.workdir)


def _evaluate(arguments, overrides):
  _start_processes(arguments, overrides, notice=False)
  import jax

  from vit_jax import measures
  from vit_jax.evaluate import evaluate, output_file

  result = evaluate(
      arguments.model, config_spec=arguments.config, overrides=overrides,
      wanted=measures.parse(arguments.measures), classes=arguments.classes,
      output=arguments.output,
  )
  text = json.dumps(result, indent=2)
  print(text)
  file = output_file(arguments.model, arguments.output, result)
  if file and jax.process_index() == 0:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")
    print(f"written to {file}", file=sys.stderr)


def _predict(arguments, overrides):
  del overrides
  from vit_jax.predict import predict

  return predict(
      arguments.model, arguments.images, top=arguments.top, attention=arguments.attention
  )


def _convert(arguments, overrides):
  del overrides
  from vit_jax.convert import convert, parse_bytes, parse_image_size

  size = arguments.image_size
  convert(
      arguments.model, output=arguments.output, to=arguments.to,
      architecture=arguments.architecture, dtype=arguments.dtype,
      max_shard_bytes=parse_bytes(arguments.max_shard_size), classes=arguments.classes,
      image_size=None if size is None else parse_image_size(size),
  )


def _publish(arguments, overrides):
  del overrides
  from vit_jax.publish import publish

  publish(
      arguments.model, output=arguments.output, license=arguments.license, repo=arguments.repo,
      revision=arguments.revision, private=arguments.private, create_pr=arguments.create_pr,
      base_model=arguments.base_model, dry_run=arguments.dry_run, overwrite=arguments.overwrite,
      to=arguments.to, architecture=arguments.architecture, dtype=arguments.dtype,
  )


def _prepare(arguments, overrides):
  del overrides
  from vit_jax.data.prepare.run import prepare

  prepare(
      source=arguments.source, input=arguments.input, output=arguments.output,
      short_side=arguments.short_side, quality=arguments.quality,
      merge=arguments.merge_duplicates, workers=arguments.workers,
      shard_bytes=int(arguments.shard_size * 1e6), classes=arguments.classes,
      val_labels=arguments.val_labels,
  )


def _configs(arguments, overrides):
  del overrides
  from vit_jax import recipes

  if arguments.keys:
    print(recipes.list_keys())
  elif arguments.name:
    print(recipes.copy(arguments.name))
  else:
    print(recipes.list_recipes())


def _checkpoint(arguments, overrides):
  del overrides
  from vit_jax import checkpoint_verb

  return checkpoint_verb.run(arguments)


def _status(arguments, overrides):
  del overrides
  from vit_jax.observe.status import format_status, read_status

  status = read_status(arguments.workdir)
  print(json.dumps(status) if arguments.json else format_status(status))


def _doctor(arguments, overrides):
  del arguments, overrides
  from vit_jax.doctor import doctor

  return doctor()
