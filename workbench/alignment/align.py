"""Align a model: one stage or several, with any technique, evaluated along the way and left behind as a record."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.alignment.course import Course
from workbench.alignment.stages import Stage, train
from workbench.alignment.team import FollowedRun, Team
from workbench.alignment.techniques import Technique, as_techniques, prepared
from workbench.alignment.watching import Monitor, Stopped
from workbench.corpora.columns import dataset_fingerprint
from workbench.evaluation.items import AFTER, BEFORE
from workbench.evaluation.suites import Suite
from workbench.models import find_card, fingerprint, require_tokenizer, save_model, trained_parameters
from workbench.progress import progress_bar
from workbench.study.checkpoints import Checkpoint, drop_checkpoints, resume_run
from workbench.study.runs import Run, find_run, parameters_hash

if TYPE_CHECKING:
    from datasets import Dataset


def align(
    model: Any,
    tokenizer: Any,
    data: "Dataset",
    objective: str = "sft",
    technique: Technique | Sequence[Technique] | None = None,
    *,
    steps: int = 30,
    batch_size: int = 16,
    learning_rate: float | None = None,
    **options: Any,
) -> Run:
    """Train a model on safety data in one stage; the model is changed in place.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer, with a pad token, and a chat template if the rows are messages.
        data: Rows in the objective's columns.
        objective: ``"sft"`` (prompt, completion), ``"dpo"`` (prompt, chosen, rejected) or ``"contrastive"`` (prompt,
            anchor, positives, negatives: see `ContrastiveConfig`).
        technique: What protects the abilities: `GradientProjection`, `Replay`, `Merge`, a list of them, or None.
        steps: Optimizer steps.
        batch_size: Rows per step, over all processes where there are several.
        learning_rate: None takes the objective's usual one for large models.
        options: Those of `pipeline` (``suites``, ``eval_every``, ``seed``, ``label``, ``runs_dir``, ``reuse``,
            ``checkpoint_every``, ``save``, ``items``, ``progress``, ``monitor``); all others go to TRL's configuration
            as they are.

    Returns:
        The finished run: ``.scores``, ``.history``, ``.record``, ``.path``.

    Raises:
        ValueError: A column, the pad token or the chat template is missing, or a setting is out of range.
    """
    own = {key: options.pop(key) for key in list(options) if key in _PIPELINE_OPTIONS}
    stage = Stage(objective, data, steps, batch_size, learning_rate, options)
    return pipeline(model, tokenizer, [stage], technique, **own)


def pipeline(
    model: Any,
    tokenizer: Any,
    stages: Sequence[Stage],
    technique: Technique | Sequence[Technique] | None = None,
    *,
    suites: Mapping[str, Suite] | None = None,
    eval_every: int = 0,
    seed: int = 0,
    label: str | None = None,
    runs_dir: str | Path = "runs",
    reuse: bool = False,
    checkpoint_every: int = 0,
    save: bool = False,
    items: bool = False,
    progress: bool = True,
    monitor: Monitor | None = None,
) -> Run:
    """Train a model in stages, such as SFT→DPO, under one technique; the model is changed in place.

    The run is evaluated before the first step, every `eval_every` steps, and at its end. An interrupt (Ctrl-C, the
    stop button) ends it with status "interrupted" and what was logged until then, and is raised again.

    Launched by ``accelerate launch`` or ``torchrun``, all processes call this alike and train one model together, as a
    copy each (DDP) or as shards (FSDP2: ``wb.load_model(..., shard=True)``); the lead writes the record, which all get.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        stages: In their order.
        technique: As in `align`.
        suites: What is evaluated; None evaluates nothing.
        eval_every: Optimizer steps between evaluations; 0 evaluates at the start and the end alone.
        seed: Of the order of rows; the model's own randomness, if it has any, follows it too.
        label: What figures call this setting; None makes it from the technique.
        runs_dir: Where the record goes.
        reuse: What has been done is not done again. If a completed run of the same model, data, stages, technique and
            seed lies in `runs_dir`, return that and leave the model untrained; if one that was killed, interrupted or
            failed has a checkpoint there, go on from that, to the same end as if nothing had happened.
        checkpoint_every: Optimizer steps between checkpoints, the last of which is kept until the run is complete; 0
            keeps none. The result does not depend on it.
        save: Whether the aligned model is written beside the record, as ``model/``.
        items: Whether what every prompt of the suites gave, and what was answered, is written beside the record, before
            and after, for `item_changes` and to be read: see `workbench.evaluation.items`.
        progress: Whether to show a progress bar.
        monitor: Watches the run and may stop it, such as `wb.views.explorers.TrainingMonitor`; the result does not
            depend on it. Several processes that train together are not watched.

    Raises:
        ValueError: A setting is out of range or contradicts another, or the processes are not about to do the same.
        Stopped: The user stopped the run at its monitor. It lies in `runs_dir` as interrupted, with a checkpoint of the
            step it had come to, from which the same call with `reuse`, and the model as it was, goes on.
    """
    if not stages:
        raise ValueError("stages is empty: expected at least one wb.Stage.")
    team = Team(model)
    monitor = monitor if team.size == 1 else None
    _require_possible(stages, team, checkpoint_every, monitor)
    require_tokenizer(tokenizer, chat=any(not isinstance(s.data[0]["prompt"], str) for s in stages))
    techniques = as_techniques(technique)
    name = "+".join(t.name for t in techniques) or "plain"
    route = "→".join(stage.objective for stage in stages)
    if len({t.name for t in techniques}) < len(techniques):
        raise ValueError(f"Each technique may come once in a run, got {[t.name for t in techniques]}.")
    if hasattr(model, "peft_config") and _deploys(techniques):
        raise ValueError(
            f"{name} interpolates weights, and half of both LoRA factors is not half of their product. Merge the "
            "adapter first (model.merge_and_unload()), or leave the technique out."
        )
    parameters = {
        "label": label or name,
        "technique": name,
        "pipeline": route,
        **_identity(model, tokenizer),
        "seed": seed,
        "eval_every": eval_every,
        "stages": {str(i): stage.parameters(team.size) for i, stage in enumerate(stages, 1)},
        "techniques": {t.name: t.parameters() | _counted(t, team) for t in techniques},
        "suites": {suite_name: suite.parameters() for suite_name, suite in (suites or {}).items()},
    }
    data = _fingerprints(stages, techniques, suites or {})
    team.require_same(parameters_hash(parameters, data), "parameters or data")
    kept = ["model"] * save + [BEFORE, AFTER] * (items and bool(suites))
    watched = monitor.watching if monitor else nullcontext
    if reuse and (finished := _finished(team, runs_dir, parameters, data, kept)):
        with watched(finished):
            return finished
    was_training, n_steps = model.training, sum(stage.steps for stage in stages)
    start = {n: p.detach().clone() for n, p in trained_parameters(model).items()} if _deploys(techniques) else {}
    with prepared(model, techniques, seed):
        run, checkpoint = _begun(team, runs_dir, parameters, data, reuse)
        every = {"eval_every": eval_every, "checkpoint_every": checkpoint_every}
        how: dict[str, Any] = {"n_steps": n_steps, "start": start, "items": items, "monitor": monitor, **every}
        course = Course(run, model, tokenizer, techniques, team, suites or {}, **how)
        shown = {"unit": "step", "disable": not (progress and team.is_lead)}
        bar = progress_bar(total=n_steps, desc=f"{route}, {parameters['label']}", **shown)
        with watched(run), run, bar as course.bar:
            run.record["environment"] |= team.environment(model)
            if checkpoint is None:
                run.record["base_scores"] = course.evaluate(0)
            n_before = 0
            for i, stage in enumerate(stages, 1):
                at = checkpoint if checkpoint and checkpoint.state["stage"] == i else None
                if not checkpoint or checkpoint.state["stage"] <= i:
                    folder = course.begin(i, n_before, at)
                    train(stage, model, tokenizer, techniques, course, seed, folder, team, at.path if at else None)
                    course.end()
                n_before += stage.steps
            course.deploy()
            course.evaluate(n_steps)
            run.record["techniques"] = {t.name: t.report() for t in techniques}
            if team.is_lead:
                for technique in techniques:
                    technique.keep(run)
            model.train(was_training)
            if save:
                save_model(model, tokenizer, run.file("model"), find_card(model.name_or_path))
            run.finish(scores=course.scores)
        if team.is_lead and (checkpoint_every or checkpoint or monitor):
            drop_checkpoints(run)  # last, so that a kill before it loses nothing
    if monitor and monitor.stopping:
        raise Stopped(f"the run was complete before it could be stopped: it lies in {run.path}")
    path = team.told(lambda: run.path)
    return run if team.is_lead else Run.load(path)


_PIPELINE_OPTIONS = set(pipeline.__kwdefaults__ or {})


def _require_possible(stages: Sequence[Stage], team: Team, checkpoint_every: int, monitor: Monitor | None) -> None:
    decides = "checkpoint_every" if checkpoint_every else "monitor" if monitor else None
    for stage in stages:
        team.share_of(stage.batch_size)
        if decides and (clash := sorted(name for name in stage.arguments if name.startswith("save_"))):
            raise ValueError(f"{decides} decides when checkpoints are kept: leave {clash} out, or it.")
    if checkpoint_every < 0:
        raise ValueError(f"checkpoint_every must be a number of steps, or 0 for none, got {checkpoint_every}.")
    if checkpoint_every and team.sharded:
        raise ValueError(
            "Sharded models (FSDP2) cannot be resumed, for the trainer writes the lead's part of the optimizer's state "
            "alone: leave checkpoint_every out, or train copies (DDP)."
        )


def _finished(team: Team, runs_dir: str | Path, parameters: Any, data: Any, kept: Sequence[str]) -> Run | None:
    """The completed run, unless it lacks a file or folder that is asked for."""

    def find() -> Path | None:
        run = find_run(runs_dir, parameters, data)
        return run.path if run and all(run.file(name).exists() for name in kept) else None

    path = team.told(find)
    return None if path is None else Run.load(path)


def _begun(team: Team, runs_dir: str | Path, parameters: Any, data: Any, reuse: bool) -> tuple[Run, Checkpoint | None]:
    """A run in progress, and where it goes on if it had been begun before."""
    slug = f"{parameters['pipeline'].replace('→', '-')}-{parameters['label']}"
    mine: list[Run] = []

    def begin() -> tuple[Path, dict[str, Any], Checkpoint | None]:
        resumed = resume_run(runs_dir, parameters, data, n_processes=team.size) if reuse else None
        run, checkpoint = resumed or (Run.start(runs_dir, parameters, slug=slug, data=data), None)
        mine.append(run)
        return run.path, run.record, checkpoint

    path, record, checkpoint = team.told(begin)
    return mine[0] if team.is_lead else FollowedRun(path, record), checkpoint


def _fingerprints(
    stages: Sequence[Stage], techniques: Sequence[Technique], suites: Mapping[str, Suite]
) -> dict[str, str]:
    sets = {f"stage/{i}": stage.data for i, stage in enumerate(stages, 1)}
    for technique in techniques:
        sets |= {f"{technique.name}/{name}": rows for name, rows in technique.data().items()}
    sets |= {f"suite/{name}": suite.data for name, suite in suites.items()}
    return {name: dataset_fingerprint(rows) for name, rows in sets.items()}


def _identity(model: Any, tokenizer: Any) -> dict[str, Any]:
    """What tells models apart that one run's settings do not: weights, what of them is trained, template, device."""

    def digest(value: Any) -> str:
        return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]

    weights, name = fingerprint(model), Path(model.name_or_path).name
    adapters = {n: {k: str(v) for k, v in c.to_dict().items() if not isinstance(v, set)} for n, c in _adapters(model)}
    return {
        "model": name if name not in ("", "model") else f"model-{weights[:6]}",
        "model_sha256": weights,
        "tokenizer_sha256": digest([tokenizer.chat_template, sorted(tokenizer.get_vocab().items())]),
        "n_parameters": model.num_parameters(),
        "trained_sha256": digest([sorted(trained_parameters(model)), adapters]),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
    }


def _counted(technique: Technique, team: Team) -> dict[str, int]:
    return {"n_processes": team.size} if technique.counts_processes and team.size > 1 else {}


def _adapters(model: Any) -> Any:
    return getattr(model, "peft_config", {}).items()


def _deploys(techniques: Sequence[Technique]) -> bool:
    return any(t.changes_weights for t in techniques)
