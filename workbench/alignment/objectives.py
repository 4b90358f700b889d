"""Objectives: which loss a stage minimises, and the trainer that does it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from workbench.models import fingerprint, is_sharded, reshard

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer, TrainerCallback


@dataclass(frozen=True)
class Objective:
    """A loss by name.

    Attributes:
        columns: Columns that its rows must have.
        learning_rate: Used when none is given, a usual one for models of 0.5 B parameters and more.
        classes: () → (the trainer, its configuration); imported when asked for.
        options: Arguments of the configuration that this objective sets.
        counts_processes: Whether its loss over a step's rows depends on how many processes share them.
    """

    columns: tuple[str, ...]
    learning_rate: float
    classes: Callable[[], tuple[Any, Any]]
    options: dict[str, Any]
    counts_processes: bool = False


def _sft() -> tuple[Any, Any]:
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer, SFTConfig


def _dpo() -> tuple[Any, Any]:
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer, DPOConfig


def _contrastive() -> tuple[Any, Any]:
    from workbench.alignment.contrastive import ContrastiveConfig, ContrastiveTrainer

    return ContrastiveTrainer, ContrastiveConfig


OBJECTIVES = {
    # Cross-entropy on the completion alone.
    "sft": Objective(("prompt", "completion"), 2e-5, _sft, {}),
    # Rafailov et al. 2023 (2305.18290), β = 0.1. The reference model is the model at the start of the stage; its
    # log-probabilities are computed once before training, so no second model is kept.
    "dpo": Objective(("prompt", "chosen", "rejected"), 1e-6, _dpo, {"precompute_ref_log_probs": True}),
    # Cross-entropy on the anchors beside a contrastive loss over groups (2505.19327): see ContrastiveConfig. Each
    # process takes means over tokens, and contrasts groups, of its own rows.
    "contrastive": Objective(("prompt", "anchor", "positives", "negatives"), 2e-5, _contrastive, {}, True),
}


def find_objective(name: str) -> Objective:
    """The objective of that name.

    Raises:
        ValueError: There is none; the known ones are listed.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective must be one of {list(OBJECTIVES)}, got {name!r}.")
    return OBJECTIVES[name]


def build_trainer(
    objective: str,
    model: Any,
    tokenizer: Any,
    data: "Dataset",
    callbacks: "Sequence[TrainerCallback]",
    **arguments: Any,
) -> "Trainer":
    """The trainer for an objective, with `arguments` for its configuration."""
    chosen = find_objective(objective)
    trainer, config = chosen.classes()
    settings = config(**{**chosen.options, **arguments})
    if settings.n_gpu > 1:
        settings._n_gpu = 1  # DataParallel would multiply the batch by the number of devices
    with _hashing_shards(model):
        built = trainer(
            model=model,
            args=settings,
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
    reshard(model)  # before the optimizer takes what it finds; TRL has run the model for DPO's reference
    return built


@contextmanager
def _hashing_shards(model: Any) -> Iterator[None]:
    """TRL names precomputed log-probabilities by a hash of the model, which its own function cannot take of shards."""
    if not is_sharded(model):
        yield
        return
    import trl.trainer.dpo_trainer as home

    with patch.object(home, "hash_module", fingerprint):
        yield
