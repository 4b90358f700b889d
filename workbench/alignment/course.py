"""What happens along a run: steps are logged, the model is evaluated, checkpoints are kept."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from workbench.alignment.resuming import checkpoint_folder
from workbench.alignment.team import Team
from workbench.alignment.techniques import Technique, restored_weights
from workbench.alignment.watching import Monitor, Stopped
from workbench.evaluation.items import AFTER, BEFORE, keep_items
from workbench.evaluation.suites import Suite, read_suites, scored
from workbench.models import trained_parameters
from workbench.study.checkpoints import FOLDER, Checkpoint, keep_checkpoint
from workbench.study.runs import Run

_START = "start.safetensors"  # the trained weights when a stage begins


class Course(TrainerCallback):
    """The way of one run through its stages: each step is logged, every few steps the model is evaluated.

    Attributes:
        scores: The latest.
        n_before: Steps of the stages before the one that trains.

    Args:
        run: What is recorded.
        model: What is trained.
        tokenizer: Its tokenizer.
        techniques: What protects abilities.
        team: The processes that train.
        suites: What is evaluated.
        n_steps: Optimizer steps over all stages.
        eval_every: Optimizer steps between evaluations; 0 evaluates at the ends of stages alone.
        checkpoint_every: Optimizer steps between checkpoints; 0 keeps none.
        start: The weights before the run, if a technique deploys others than those that are trained.
        items: Whether what every item gave is written beside the record, before and after the run.
        monitor: Is told what is logged, and may stop the run.
    """

    def __init__(
        self,
        run: Run,
        model: Any,
        tokenizer: Any,
        techniques: Sequence[Technique],
        team: Team,
        suites: Mapping[str, Suite],
        n_steps: int,
        eval_every: int,
        checkpoint_every: int,
        start: Mapping[str, torch.Tensor],
        items: bool = False,
        monitor: Monitor | None = None,
    ) -> None:
        """Stand before the first step."""
        self.run, self.model, self.tokenizer, self.techniques, self.team = run, model, tokenizer, techniques, team
        self.suites, self.n_steps, self.start = suites, n_steps, start
        self.eval_every, self.checkpoint_every, self.items = eval_every, checkpoint_every, items
        self.monitor = monitor
        self.bar: Any = None
        self.stage, self.n_before = 0, 0
        self.scores: dict[str, float] = {}
        self._kept = 0  # the step of the latest checkpoint
        self._stopped = False
        self._n_tokens = self._n_tokens_before = 0  # seen in this stage, and of them before it was resumed

    # --- stages -----------------------------------------------------------------------------------------------------

    def begin(self, stage: int, n_before: int, checkpoint: Checkpoint | None = None) -> Path:
        """Enter a stage, and put the model where it stood when a stage that is resumed began.

        Returns:
            The folder of the stage.
        """
        self.stage, self.n_before, self._n_tokens, self._n_tokens_before = stage, n_before, 0, 0
        folder = self.run.file(FOLDER) / str(stage)
        if checkpoint is not None:
            self.scores, self._n_tokens_before = checkpoint.state["scores"], checkpoint.state["n_tokens"]
            self.run.record["base_scores"], self._kept = checkpoint.state["base_scores"], checkpoint.state["step"]
            self.bar.update(self._kept)
            if stage > 1:  # where the reference of DPO stands; the first begins with the model that was given
                _put(self.model, load_file(folder / _START))
        elif (self.checkpoint_every or self.monitor) and stage > 1 and self.team.is_lead:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({n: p.detach().contiguous() for n, p in trained_parameters(self.model).items()}, folder / _START)
        return folder

    def evaluate(self, step: int) -> dict[str, float]:
        """Score the model as it is, and log it.

        The lead does it for all processes. Where each holds a part of the model, all do the same at once; one that
        fails there takes the others along as it ends, for they would wait for it in a forward.
        """
        if self.suites:

            def score() -> dict[str, float]:
                readings = read_suites(self.model, self.tokenizer, self.suites)
                if self.items and self.team.is_lead and step in (0, self.n_steps):
                    keep_items(readings, self.run.file(AFTER if step else BEFORE))
                return scored(readings, self.suites)

            self.scores = score() if self.team.sharded else self.team.told(score)
            self._log({"step": step, "evaluation": True, **self.scores})
        return self.scores

    def deploy(self) -> None:
        """Turn the weights into those that would be deployed."""
        for technique in self.techniques:
            technique.deploy(self.model, self.tokenizer, self.start)

    def end(self) -> None:
        """Leave a stage.

        Raises:
            Stopped: At the user's wish, before its last step.
        """
        if self._stopped:
            raise Stopped(f"stopped by the user after step {self._kept} of {self.n_steps}")

    def _log(self, row: dict[str, Any]) -> None:
        self.run.log(row)
        if self.monitor:
            self.monitor.log(row)

    # --- the trainer's events ---------------------------------------------------------------------------------------

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Log what the trainer reports of a step, to which techniques have added what they measured."""
        if "loss" not in logs:
            return  # the trainer's summary of the whole training
        row = {"step": self.n_before + state.global_step, **logs}
        if "num_tokens" in row:
            row["num_tokens"] += self._n_tokens_before  # TRL counts anew when it is resumed
            self._n_tokens = row["num_tokens"]
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(f"The loss is {logs['loss']} at step {row['step']}. Lower the learning rate.")
        self._log(row)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the model as it would be deployed if that is due, ask for a checkpoint if one is; stop if asked to.

        Evaluation is due at the end of every stage but the last, too, and a checkpoint before the last step of each.
        Checkpoints, and with them a stop, wait for a step that is logged: the trainer forgets what it has not logged.
        """
        step = self.n_before + state.global_step
        self.bar.update()
        ends = state.global_step == state.max_steps
        due = ends or (self.eval_every and step % self.eval_every == 0)
        if self.suites and due and step < self.n_steps:  # after the last step the model is deployed and evaluated
            with _unwrapped(self.model), restored_weights(self.model) if self.start else nullcontext():
                try:
                    self.deploy()
                    self.evaluate(step)
                finally:
                    for technique in reversed(self.techniques):
                        technique.withdraw(self.model, self.tokenizer)
        if self.checkpoint_every and not ends and control.should_log:
            passed = step // self.checkpoint_every > self._kept // self.checkpoint_every
            control.should_save = passed or state.global_step == state.max_steps - 1
        if self.monitor and self.monitor.stopping and not ends and control.should_log:
            control.should_save = control.should_training_stop = self._stopped = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the trainer's checkpoint, to which techniques have added their own state, one of the run."""
        if not (self.checkpoint_every or self._stopped):
            return  # the trainer was asked for it
        self._kept = self.n_before + state.global_step
        known: dict[str, Any] = {
            "stage": self.stage,
            "step": self._kept,
            "n_processes": self.team.size,
            "n_tokens": self._n_tokens,
        }
        known |= {"scores": self.scores, "base_scores": self.run.record["base_scores"]}
        self.team.together(lambda: None)  # all have written theirs
        self.team.told(lambda: keep_checkpoint(self.run, checkpoint_folder(args, state), known))


@torch.no_grad()
def _put(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    for name, p in trained_parameters(model).items():
        p.copy_(weights[name])


@contextmanager
def _unwrapped(model: Any) -> Iterator[None]:
    """The model without the autocast that accelerate wraps around its forward: all scores have one precision."""
    wrapper = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapper is not None:
            model.forward = wrapper
