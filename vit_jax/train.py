"""One run, top to bottom, in the order in which it happens.

Everything is decided and checked first (config, data, weights, mesh), then the directory is written
and the step compiled, then the loop runs.  The rooms do not know each other; this file introduces
them.
"""

import contextlib
import functools
import time

import jax

from vit_jax import config as config_lib
from vit_jax import durations
from vit_jax import fork
from vit_jax import micro_batch
from vit_jax import resume
from vit_jax import run_state
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.checkpoint.preemption import StopSignal
from vit_jax.checkpoint.processes import decided_by_first
from vit_jax.checkpoint.retention import less_is_better
from vit_jax.checkpoint.retry import Saves
from vit_jax.checkpoint.run import RunDirectory
from vit_jax.checkpoint.tiers import Tiers, directory_of
from vit_jax.data.bad_records import BadRecords
from vit_jax.data.class_weights import class_weights
from vit_jax.data.open import open_configured
from vit_jax.errors import ConfigError, Preempted
from vit_jax.evaluate import evaluation_source, evaluation_split, make_evaluator
from vit_jax.loading import load
from vit_jax.models.flops import training_flops
from vit_jax.observe.metrics import MetricsWriter
from vit_jax.observe.peaks import peak_flops
from vit_jax.observe.progress import Progress
from vit_jax.observe.sessions import Session
from vit_jax.observe.throughput import Throughput
from vit_jax.observe.watchdog import Watchdog
from vit_jax.pace import Pace, kept_every
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.parallel.chips import chip_count
from vit_jax.parallel.memory import device_bytes
from vit_jax.plan import describe, make_plan
from vit_jax.resolve import resolve
from vit_jax.sanity import Sanity
from vit_jax.train_input import train_input, train_transform
from vit_jax.warm_start import kept_head, needs_weights


def train(requested, *, workdir, amend: bool = False, strict: bool = False) -> None:
  """Trains, or continues, the run in a directory.

  Args:
    requested: a config from `config.load`.
    workdir: the run's directory; the same command again continues it.
    amend: whether recipe keys may differ from those the run was begun with.
    strict: whether a newest checkpoint that is damaged or gone is an error, rather than the one
      before it used.

  Raises:
    ConfigError, DataError, CheckpointError: what is wrong, where, and how to fix it.
    NonFiniteError: too many steps were skipped, or what was to be saved is not finite.
    Preempted: SIGTERM or Ctrl-C; the state is saved.
  """
  with contextlib.ExitStack() as stack:
    # The run: begun, continued, or complete already.
    run = RunDirectory(workdir)
    watchdog = stack.enter_context(
        Watchdog(_seconds(requested.watchdog), directory=run.path, process=jax.process_index())
    )
    continuation = resume.continue_or_begin(run, requested, amend=amend)
    config, info = continuation.config, continuation.info
    if key := needs_weights(config):
      raise ConfigError(
          f"this recipe starts from weights ({key}): name them with --config.init.checkpoint=REF, "
          "a run, or anybody's checkpoint (`vit-jax evaluate --help` says what a REF is)"
      )
    local = config.checkpoint.local and directory_of(config.checkpoint.local, run.checkpoints)
    uncopied = local and local.exists()  # a kill came in the last copies
    if info and not continuation.changed and not uncopied and resume.is_complete(run, info):
      print(f"{run.path} is complete: {info['total_steps']} steps. Nothing to do.")
      return
    # Of several processes the first holds the lock, and all leave if it cannot.  Nor does it write
    # anything before the others have come here, too, and have read what was there.
    decided_by_first(lambda: stack.enter_context(run.lock()) or 0, "the lock of the run")

    # Data.
    dataset = open_configured(config)
    split = evaluation_split(config, dataset)
    evaluated = evaluation_source(config, dataset, split)
    for note in dataset.notes:
      print(f"data: {note}")
    if "train" not in dataset.splits:
      raise ConfigError(
          f"{dataset.name} has only {', '.join(dataset.splits)}, so that nothing can be trained: "
          "name other data, or evaluate on this with `vit-jax evaluate`"
      )
    if info:
      resume.check_same_data(run.path, info, dataset)

    # Where it stands, and the weights to start from when it stands nowhere yet.
    metric = config.checkpoint.best_metric
    best = metric and f"eval/{evaluated.split}/{metric}"
    if metric == "accuracy_top5" and len(dataset.classes) <= 5:
      raise ConfigError(
          f"config.checkpoint.best_metric is {metric!r}, and {dataset.name} has only "
          f"{len(dataset.classes)} classes, of which the best five are always right: set "
          "--config.checkpoint.best_metric=accuracy or loss"
      )
    checkpoints = stack.enter_context(
        Checkpoints(
            run.checkpoints, keep_latest=config.checkpoint.keep_latest, best_metric=best,
            keep_every=kept_every(config, examples=len(dataset.splits["train"])),
            confirm_owner=run.confirm_lock,
        )
    )
    if config.checkpoint.local:
      token = info.get("local_tier") if info else None
      checkpoints = stack.enter_context(
          Tiers(
              checkpoints, config.checkpoint.local, token=token,
              retries=config.checkpoint.retries, confirm_owner=run.confirm_lock,
          )
      )
    elif info and info.get("local_tier"):
      print("resume: without config.checkpoint.local what was not copied from there is left out")
    notes, last_step = checkpoints.recover(strict=strict) if info else ([], None)
    if last_step is None:
      resume.check_not_lost(checkpoints)
    parent = fork.find_parent(config, info) if last_step is None else None
    config = fork.inherit(config, parent)
    pretrained = None
    if config.init.checkpoint and last_step is None and parent is None:
      pretrained = load(info["init"] if info else config.init.checkpoint)
      for line in pretrained.report:
        print(f"init: {line}")
      if config.init.head == "keep":
        by_order = config.evaluate.classes == "by_order"
        print(f"init: {kept_head(pretrained, dataset, by_order=by_order)}")
    config = resolve(
        config, checkpoint=None if info else pretrained, platform=jax.default_backend()
    )
    config = resume.with_possible_micro_batch(
        config, requested, devices=jax.device_count(), amend=amend
    )

    # Mesh, steps, model, optimizer.
    weights = config.objective.class_weights
    weights = weights and class_weights(weights, dataset.splits["train"])
    if info:
      resume.check_same_weights(run.path, info, weights)
    plan = make_plan(
        config,
        examples=len(dataset.splits["train"]),
        num_classes=len(dataset.classes),
        class_weights=weights,
        # Of process 0's, in MiB, so that all choose the same mesh.
        device_bytes=decided_by_first(
            lambda: device_bytes(jax.local_devices()[0]) >> 20, "the memory of a device"
        ) << 20,
    )
    config = plan.config
    if parent:
      fork.check(config, parent, dataset.fingerprint)
      print(f"fork: of {parent.ref}")
    resume.check_not_beyond(parent.step if parent else last_step, plan.total_steps)
    transform = train_transform(config)
    print(
        f"data: {len(dataset.splits['train'])} train and {len(dataset.splits[split])} {split} "
        f"images, {len(dataset.classes)} classes\n{describe(plan)}"
    )
    if best and split == "test":
      print("data: there is no validation split: the best checkpoint is chosen on test")

    # The state: new, from other weights, or restored.
    with micro_batch.advice_when_out_of_memory(micro_batch.SMALLER_STATE):
      if parent:
        with parent.checkpoints() as theirs:
          state, examples_seen = run_state.restore(plan, theirs, parent.step)
        examples_seen += plan.steps_in(config.fork.skip) * config.input.batch_size
      elif last_step is None:
        state, examples_seen = run_state.begin(plan, pretrained), 0
      else:
        state, examples_seen = run_state.restore(plan, checkpoints, last_step)

    # The directory is written from here on.
    environment = resume.environment(plan.mesh)
    before = parent.info if parent else info
    for note in notes + resume.environment_changes(before, environment):
      print(f"resume: {note}")
    checkpoints.forget_gone()  # now that it is said
    if jax.process_index() == 0:
      if changed := resume.changes_of(continuation, config):
        run.append_history(resume.history_entry(last_step or 0, changed))
      run.write_info({
          "requested": config_lib.to_json(requested),
          "resolved": config_lib.to_json(config),
          "init": before["init"] if before else pretrained and pretrained.ref,
          "fork": info.get("fork") if info else parent and {"ref": parent.ref, "step": parent.step},
          "classes": list(dataset.classes),
          "fingerprint": dataset.fingerprint,
          "class_weights": weights,
          "evaluation_split": evaluated.split,
          "best_metric": best,
          "best_is_smallest": less_is_better(best),
          "retention": checkpoints.policy.to_json(),
          "local_tier": config.checkpoint.local and checkpoints.token,
          "total_steps": plan.total_steps,
          "environment": environment,
      })
      run.write_config(config_lib.to_json(config))
      if parent and not info:
        run.append_history(
            resume.history_entry(parent.step, fork.changes(config, parent), fork=parent.ref)
        )
    if parent:  # from here on it is needed no more
      last_step = parent.step
      run_state.save(
          checkpoints, last_step, state, config, examples_seen, dataset.fingerprint, metrics={}
      )

    # The loop.
    bad = BadRecords(
        run.bad_records_path(jax.process_index()), max_fraction=config.input.max_bad_fraction
    )
    stack.callback(bad.close)
    batches = train_input(plan, dataset.splits["train"], transform, examples_seen, bad)
    stack.enter_context(
        micro_batch.advice_when_out_of_memory(micro_batch.smaller_step(config, plan.mesh))
    )
    _loop(
        plan,
        state,
        batches=stack.enter_context(batches),
        evaluator=make_evaluator(
            config, evaluated, model=plan.objective.model, mesh=plan.mesh, bad=bad
        ),
        bad=bad,
        run=run,
        checkpoints=checkpoints,
        first_step=last_step or 0,
        examples_seen=examples_seen,
        watchdog=watchdog,
        fingerprint=dataset.fingerprint,
    )


def _seconds(duration: str | None) -> float | None:
  return duration and durations.to_seconds(duration)


def _loop(
    plan, state, *, batches, evaluator, bad, run, checkpoints, first_step: int, examples_seen: int,
    fingerprint: str, watchdog,
) -> None:
  """Trains from `first_step` to the end; logs, evaluates and saves when due, in this order."""
  config, total = plan.config, plan.total_steps
  pace = functools.partial(Pace, steps_in=plan.steps_in, total_steps=total)
  log, evaluation, save = map(
      pace, (config.log_every, config.evaluate.every, config.checkpoint.every)
  )
  throughput = _throughput(plan)
  everywhere = jax.jit(lambda key: key, out_shardings=mesh_lib.replicated(plan.mesh))
  step_key = everywhere(plan.step_key)
  sanity = Sanity(
      plan, run=run, checkpoints=checkpoints, skipped=int(state.health["skipped"])
  )

  with contextlib.ExitStack() as stack:
    writer = session = None
    if jax.process_index() == 0:
      writer = stack.enter_context(MetricsWriter(run.path, resume_step=first_step))
      session = Session(
          run.path, step=first_step, chips=chip_count(list(plan.mesh.devices.flat)),
          processes=jax.process_count(),
      )
    saves = Saves(
        # What comes before a step that is saved is not written again.
        checkpoints, retries=config.checkpoint.retries, before=writer and writer.flush
    )
    quiet = jax.process_index() > 0
    progress = stack.enter_context(
        Progress(total_steps=total, start_step=first_step, quiet=quiet)
    )
    stop = stack.enter_context(
        StopSignal(grace=_seconds(config.checkpoint.grace), last_committed=checkpoints.latest)
    )
    step, stopping, evaluated = first_step, False, {}
    while step < total and not stopping:
      first = step == first_step  # of this session: workers start, the step is compiled
      watchdog.enter("the input", step, patient=first)
      asked = time.perf_counter()
      batch = next(batches)
      watchdog.enter("a step", step + 1, patient=first)
      throughput.step(waited=time.perf_counter() - asked)
      with jax.transfer_guard("disallow"):
        state, values = plan.train_step(state, batch, step_key)
      step += 1
      examples_seen += config.input.batch_size
      sanity.after(step, state, values, batch, step_key)

      stopping, trained, evaluated = stop.at(step), {}, {}
      log_due, evaluation_due = log.due(step), evaluation.due(step)
      save_due = _save_due(save, step, config, asked=log_due or evaluation_due)
      save_due = save_due or stopping or (evaluation_due and config.checkpoint.best_metric)
      saves.check()
      save_due = saves.due(save_due, last=stopping or step == total)
      if log_due:
        trained = {f"train/{name}": v.item() for name, v in jax.device_get(values).items()}
        trained["train/learning_rate"] = float(plan.schedule(step - 1))
        trained["train/unreadable_images"] = bad.count
        trained |= throughput.read()
        progress.update(step, trained)
        if news := sanity.news(step, int(trained["train/skipped"])):
          progress.message(news)
        run.check_lock()
      if evaluation_due:
        watchdog.enter("the evaluation", step, patient=True)
        advice = micro_batch.smaller_evaluation(config, plan.mesh)
        with micro_batch.advice_when_out_of_memory(advice):
          measured = evaluator.run(state.averaged)
        evaluated = {f"eval/{evaluator.name}/{k}": value for k, value in measured.items()}
        progress.message(f"step {step}: {evaluator.name} accuracy {measured['accuracy']:.2%}")
      if writer and (log_due or evaluation_due):
        writer.write(step, trained | evaluated)
        session.seen(step)
      last = stopping or step == total
      save_due = sanity.may_save(bool(save_due), step, state, step_key, last=last)
      if save_due:
        watchdog.enter("the save", step, patient=True)
        run_state.save(saves, step, state, config, examples_seen, fingerprint, metrics=evaluated)
      if evaluation_due or save_due:
        throughput.restart()
    # Nothing is done before the last checkpoint is safe; a signal meanwhile changes nothing.
    watchdog.enter("the last save", step, patient=True)
    while not saves.settled():
      watchdog.enter("the last save", step, patient=True)
      run_state.save(saves, step, state, config, examples_seen, fingerprint, metrics=evaluated)
    checkpoints.finish(
        complete=step == total,
        alive=lambda: watchdog.enter("the last copy", step, patient=True),
    )
    if session:
      session.seen(step, last=True)

  if step < total:
    raise Preempted(
        f"{stop.requested}: stopped at step {step} of {total}; the state is saved in {run.path} "
        "and the same command continues from there"
    )
  print(f"{run.path}: done, {total} steps")


def _save_due(save: Pace, step: int, config, *, asked: bool) -> bool:
  """Whether a checkpoint is due.

  Where clocks would have to agree, process 0's counts, and the others are `asked` to wait for it
  only where they wait for results anyway.
  """
  if jax.process_count() == 1 or durations.to_seconds(config.checkpoint.every) is None:
    return save.due(step)
  return asked and bool(decided_by_first(lambda: save.due(step), "whether to save"))


def _throughput(plan) -> Throughput:
  """A meter for this model on these devices."""
  peak = peak_flops(jax.devices()[0].device_kind, plan.config.model.dtype)
  return Throughput(
      batch_size=plan.config.input.batch_size,
      flops_per_image=training_flops(**plan.model_config),
      peak_flops=peak and peak * plan.mesh.size,
  )
