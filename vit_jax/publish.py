"""Steps of a run as a published model: a directory and a branch each, one model card for all."""

import dataclasses
import math
from pathlib import Path
import re

import numpy as np

import vit_jax
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.checkpoint.run import RunDirectory
from vit_jax.convert import export_checkpoint
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.interop.hub_upload import check_token, file_size, upload
from vit_jax.interop.licenses import hub_license
from vit_jax.interop.model_card import CARD, Card, Step, is_untouched, write_card
from vit_jax.interop.targets import choose, target
from vit_jax.loading import load, split_ref
from vit_jax.provenance import (
    data_name, hub_origin, measurements, provenance, public_config, recorded,
)

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclasses.dataclass(frozen=True)
class _Planned:
  """One step to publish.

  Attributes:
    ref: names the checkpoint.
    step: its number.
    is_best: whether it was named so.
    directory: to write.
    branch: of the repository.
  """

  ref: str
  step: int
  is_best: bool
  directory: Path
  branch: str


def publish(
    model_spec: str, *, output: str, license: str, repo: str | None = None,
    revision: str = "step{step}", private: bool = False, create_pr: bool = False,
    base_model: str | None = None, dry_run: bool = False, overwrite: bool = False,
    to: str = "huggingface", architecture: str | None = None, dtype: str = "float32",
) -> None:
  """Writes, proves and uploads steps of a run; the same command again goes on where it stopped.

  Args:
    model_spec: RUN@STEP,STEP,..., each a number, "latest" or "best", with or without "+ema".
    output: directory of the directories `step{STEP}`.
    license: the Hub's or SPDX's name of it.
    repo: "USER/NAME" on the Hub; None writes the directories alone.
    revision: name of a step's branch; `main` is the last named step besides.
    private: make a private repository.
    create_pr: propose the last named step as a pull request to `main`, and touch no branch.
    base_model: the Hub's name of the model that the run started from; None takes the run's record.
    dry_run: print what would be written and sent, and do neither.
    overwrite: replace what differs on the Hub, and a model card that somebody edited.
    to: the format, "huggingface" or "timm".
    architecture, dtype: as for `vit-jax convert`.

  Raises:
    ConfigError: wrong options; steps that do not exist.
    CheckpointError: no run, a step that cannot be exported, or the Hub refuses.
  """
  license = hub_license(license)
  if not repo and (private or create_pr):
    raise ConfigError("--private and --create-pr are about a repository: add --repo=USER/NAME")
  path, which = split_ref(model_spec)
  run = RunDirectory(path)
  if not run.exists():
    raise CheckpointError(
        f"{model_spec}: {path} is no run of vit_jax. Publish one as RUN@STEP,STEP; other "
        "checkpoints are written by `vit-jax convert`"
    )
  planned = _plan(run, which or "latest", output=Path(output), revision=revision)
  if dry_run:
    _show(
        planned, repo=repo, create_pr=create_pr, dtype=dtype, to=to, architecture=architecture
    )
    return
  if repo:
    check_token(repo)
  kept = {} if overwrite else _edited_cards(planned)
  exports = []
  for item in planned:
    export = export_checkpoint(
        item.ref, item.directory, to=to, architecture=architecture, dtype=dtype
    )
    exports.append(export)
    print(f"{item.directory}: {export[0]['architecture']} in {dtype}, read back bit-equal")
  card = write_card(_card(
      run, planned, exports, to=to, license=license, repo=repo,
      name=(repo or str(Path(output).resolve())).rpartition("/")[2],
      base_model=base_model or hub_origin(run),
  ))
  for item in planned:
    (item.directory / CARD).write_text(kept.get(item, card), encoding="utf-8")
    if item in kept:
      print(f"{item.directory / CARD} was edited and stays; --overwrite replaces it")
  if repo:
    _send(planned, repo, private=private, create_pr=create_pr, overwrite=overwrite)


def _plan(run: RunDirectory, which: str, *, output: Path, revision: str) -> list[_Planned]:
  """Finds the steps, and a directory and branch for each."""
  chosen, best_metric = {}, run.read_info()["best_metric"]
  with Checkpoints(run.checkpoints, best_metric=best_metric, read_only=True) as checkpoints:
    committed = checkpoints.steps()
    named = {"latest": checkpoints.latest(), "best": checkpoints.best()}
  for text in which.split(","):
    name, plus, weights = text.strip().partition("+")
    step = named.get(name or "latest", int(name) if name.isdigit() else None)
    if step not in committed or (plus and weights != "ema"):
      have = ", ".join(map(str, committed)) or "none"
      kept = "" if best_metric else "; the run kept no best one"
      raise ConfigError(
          f"--model={run.path}@{which}: {text!r} is no checkpoint of the run{kept}. Name some of "
          f"{have}, latest or best, each with +ema to insist on averaged weights"
      )
    # Named twice, a step is published once, where it is named last.
    before = chosen.pop(step, None)
    chosen[step] = _Planned(
        ref=f"{run.path}@{step}{plus}{weights}", step=step,
        is_best=name == "best" or bool(before and before.is_best),
        directory=output / f"step{step}", branch=_branch(revision, step),
    )
  planned = list(chosen.values())
  branches = [item.branch for item in planned]
  if len(set(branches)) < len(branches):
    raise ConfigError(
        f"--revision={revision} gives several steps one branch: write it with {{step}}"
    )
  return planned


def _branch(pattern: str, step: int) -> str:
  name = pattern.replace("{step}", str(step))
  if not re.fullmatch(r"(?!refs/)[\w.+-]+(/[\w.+-]+)*", name):
    raise ConfigError(
        f"--revision={pattern} names no branch: letters, digits, '-', '_', '.', and {{step}} for "
        "the number of the step"
    )
  return name


def _show(planned: list[_Planned], *, repo, create_pr, dtype, to, architecture) -> None:
  """Prints what would happen, and raises what the format would refuse."""
  for item in planned:
    checkpoint = load(item.ref)
    choose(target(to), checkpoint.model_config, architecture)
    count = sum(np.size(leaf) for leaf in _leaves(checkpoint.params))
    state = "replaced" if item.directory.exists() else "new"
    print(
        f"{item.directory} ({state}): {count:,} parameters in {dtype}, "
        f"{file_size(count * _BYTES[dtype])} of weights; config.json, conversion.json, {CARD} and "
        "what else the format has"
    )
    if repo and not create_pr:
      print(f"  to {repo}, branch {item.branch}")
  if repo:
    how = "as a pull request to" if create_pr else "to"
    print(f"{planned[-1].directory} {how} {repo}, branch main")
  print("nothing was written or sent")


def _leaves(tree):
  for value in tree.values():
    yield from _leaves(value) if isinstance(value, dict) else (value,)


def _edited_cards(planned: list[_Planned]) -> dict[_Planned, str]:
  """Texts of the model cards that somebody edited since they were written here."""
  cards = {item: item.directory / CARD for item in planned}
  texts = {item: p.read_text(encoding="utf-8") for item, p in cards.items() if p.is_file()}
  return {item: text for item, text in texts.items() if not is_untouched(text)}


def _card(run, planned, exports, *, name, to, license, repo, base_model) -> Card:
  """Everything that was recorded about the steps and measured of the exports."""
  last, (report, _, origin) = planned[-1], exports[-1]
  config, best_metric = recorded(run, last.step)["config"], run.read_info()["best_metric"]
  steps = []
  for item, (written, proof, exported) in zip(planned, exports):
    averaged = exported.ref.endswith("+ema")
    steps.append(Step(
        name=f"{item.step} (EMA)" if averaged else str(item.step),
        path=repo or f"{item.directory.resolve().parent.name}/{item.directory.name}",
        revision=item.branch if repo else None,
        measurements=measurements(run, item.step),
        hashes={
            file: value for file, value in written["files"].items() if file.endswith(".safetensors")
        },
        chosen_on=best_metric.split("/")[1] if item.is_best else None,
        verification=proof,
    ))
  return Card(
      name=name, license=license, base_model=base_model, to=to,
      architecture=report["architecture"], dtype=report["dtype"], parameters=report["parameters"],
      model=origin.model_config, preprocessing=origin.preprocessing,
      labels=origin.labels, dataset=data_name(config), steps=tuple(steps),
      config=public_config(config),
      provenance=provenance(run, last.step) | {"verified": _verified(exports[-1][1])},
      timm=_fits_timm(origin.model_config), notes=tuple(report["notes"]),
  )


def _fits_timm(model) -> bool:
  """Whether `vit-jax convert --to=timm` can write the model."""
  try:
    target("timm").choose(model, None)
  except CheckpointError:
    return False
  return True


def _verified(proof) -> str:
  """What the export's proof measured, in a sentence."""
  text = "the files read back bit-equal"
  judged = proof.get("pytorch")
  if not judged:
    return text
  worst = max((figures["outputs"] for figures in judged.values()),
              key=lambda f: f["difference"] / (f["largest"] or math.inf))
  return (
      f"{text}; PyTorch computes outputs from them that differ from ours by at most "
      f"{worst['difference']:.2g}, where the largest is {worst['largest']:.3g}"
  )


def _send(planned: list[_Planned], repo, *, private, create_pr, overwrite) -> None:
  """Uploads every step to its branch, then the last named one to `main`."""
  targets = [(item, item.branch) for item in planned if item.branch != "main"]
  last = planned[-1]
  for item, branch in [(last, "main")] if create_pr else [*targets, (last, "main")]:
    url = upload(
        item.directory, repo_id=repo, revision=branch, private=private, create_pr=create_pr,
        overwrite=overwrite, message=f"Step {item.step}, by vit_jax {vit_jax.__version__}",
    )
    print(url)
