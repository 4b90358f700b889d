"""One training stage: what is minimised on which rows, and the trainer that does it."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback

from workbench.alignment.objectives import build_trainer, find_objective
from workbench.alignment.team import Team
from workbench.alignment.techniques import Technique
from workbench.corpora.columns import require_columns
from workbench.corpora.quiet import quiet_datasets, quiet_transformers
from workbench.models import fitting_threads

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainerCallback

_OWN = {"max_steps", "num_train_epochs", "per_device_train_batch_size", "seed", "output_dir"}


@dataclass(frozen=True)
class Stage:
    """One training stage.

    Attributes:
        objective: ``"sft"``, ``"dpo"`` or ``"contrastive"``.
        data: Rows in the objective's columns.
        steps: Optimizer steps.
        batch_size: Rows per step, over all processes where there are several.
        learning_rate: None takes the objective's usual one for large models.
        arguments: Further arguments of TRL's `SFTConfig` or `DPOConfig`, or of `ContrastiveConfig`, such as
            ``gradient_accumulation_steps``, ``beta`` or ``contrast``. Unless they say otherwise, the learning rate
            rises over the first tenth of the steps, from 0 at the first, and falls linearly after that.
    """

    objective: str
    data: "Dataset"
    steps: int = 30
    batch_size: int = 16
    learning_rate: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the numbers and the rows."""
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}.")
        require_columns(self.data, find_objective(self.objective).columns, f"objective {self.objective!r}")
        if clash := sorted(_OWN & set(self.arguments)):
            raise ValueError(
                f"Say steps, batch_size and the run's seed instead of {clash}, so that the record is true."
            )

    @property
    def n_rows(self) -> int:
        """Rows drawn over the whole stage."""
        return self.steps * self.batch_size * self.arguments.get("gradient_accumulation_steps", 1)

    def parameters(self, n_processes: int = 1) -> dict[str, Any]:
        """The settings, for a record; how many processes train is one where the objective is not the same for any."""
        counted = find_objective(self.objective).counts_processes and n_processes > 1
        return {
            "objective": self.objective,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "learning_rate": self._learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": self.steps // 10,
            **self.arguments,
            **({"n_processes": n_processes} if counted else {}),
        }

    def trainer_arguments(self, model: torch.nn.Module, seed: int, output_dir: Path) -> dict[str, Any]:
        """Everything TRL's configuration is given; what `arguments` says wins."""
        gpu = next(model.parameters()).device.type != "cpu"
        settings = self.parameters()
        return {
            "output_dir": str(output_dir),
            "max_steps": settings.pop("steps"),
            "per_device_train_batch_size": settings.pop("batch_size"),
            "seed": seed,
            "use_cpu": not gpu,
            "dataloader_pin_memory": gpu,
            "bf16": gpu,
            "activation_checkpointing": False,
            "ddp_find_unused_parameters": False,
            "save_strategy": "no",
            "report_to": "none",
            "logging_steps": 1,
            "logging_nan_inf_filter": False,  # it would log a diverged loss as 0
            "disable_tqdm": True,
            **{name: value for name, value in settings.items() if name != "objective"},
        }

    @property
    def _learning_rate(self) -> float:
        return find_objective(self.objective).learning_rate if self.learning_rate is None else self.learning_rate


def train(
    stage: Stage,
    model: Any,
    tokenizer: Any,
    techniques: Sequence[Technique],
    course: "TrainerCallback",
    seed: int,
    folder: Path,
    team: Team,
    checkpoint: Path | None = None,
) -> None:
    """Run the trainer of a stage.

    Args:
        stage: What to train.
        model: Changed in place.
        tokenizer: Its tokenizer.
        techniques: What protects abilities.
        course: Called along with them, after them.
        seed: Of the order of rows.
        folder: What the trainer writes in.
        team: The processes that train.
        checkpoint: Where to go on from.
    """
    data, n_training = stage.data, team.share_of(stage.batch_size)
    for technique in techniques:
        data, n_training = technique.mix(data, stage.n_rows, seed), technique.training_rows(n_training)
    callbacks = [callback for technique in techniques for callback in technique.callbacks()]
    arguments = stage.trainer_arguments(model, seed, folder) | {"per_device_train_batch_size": n_training}
    adapters = set(getattr(model, "peft_config", {}))
    with quiet_datasets(), quiet_transformers(), team.on_disk(data, folder / "data") as data:
        trainer = build_trainer(stage.objective, model, tokenizer, data, [*callbacks, course], **arguments)
        trainer.remove_callback(PrinterCallback)
        try:
            with fitting_threads(model), _quiet_about_ties(model):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            for technique in techniques:
                technique.close()
            trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
            for adapter in set(getattr(model, "peft_config", {})) - adapters:
                model.delete_adapter(adapter)  # DPO's reference, a copy of the adapter that is trained
    if team.is_lead:
        with suppress(OSError):  # keeps checkpoints, goes where none were asked for
            folder.rmdir()
            folder.parent.rmdir()


@contextmanager
def _quiet_about_ties(model: Any) -> Iterator[None]:
    """No warning that a checkpoint lacks weights which are another name of weights that it has."""
    tied = [*(getattr(model, "_tied_weights_keys", None) or ())]
    known = f"There were missing keys in the checkpoint model loaded: {tied}."
    log = logging.getLogger("transformers.trainer")

    def tells_more(record: logging.LogRecord) -> bool:
        return record.getMessage() != known

    log.addFilter(tells_more)
    try:
        yield
    finally:
        log.removeFilter(tells_more)
