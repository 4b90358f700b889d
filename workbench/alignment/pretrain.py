"""The base model of a micro-world: what alignment starts from."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.corpora.encoding import encode, pad_batch
from workbench.corpora.microworld import MicroWorld
from workbench.evaluation.suites import evaluate
from workbench.evaluation.worlds import suites_of
from workbench.models import build_model, fitting_threads, save_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RECIPE: dict[str, Any] = {
    "steps": 2400,
    "batch_size": 64,
    "learning_rate": 6e-3,
    "betas": [0.9, 0.98],
    "warmup_steps": 100,
    "schedule": "cosine",
}


def pretrain(
    world: MicroWorld, folder: str | Path, size: str | dict[str, Any] = "micro", seed: int = 0, **recipe: Any
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Train a base model on a world's mix and save it with a card of recipe, seconds and scores.

    Args:
        world: The world to learn.
        folder: The model folder to write.
        size: As in `workbench.models.build_model`.
        seed: Of the initial weights, the rows drawn and their order.
        recipe: Numbers other than those of `RECIPE`.
    """
    from transformers import Trainer, TrainingArguments

    unknown = sorted(set(recipe) - set(RECIPE))
    if unknown:
        raise ValueError(f"Unknown recipe entries {unknown}; known are {list(RECIPE)}.")
    recipe = {**RECIPE, **recipe}
    started = time.perf_counter()
    model, tokenizer = build_model(world, size, seed)
    rows = encode(world.pretraining(recipe["steps"] * recipe["batch_size"], seed), tokenizer)
    arguments = TrainingArguments(
        output_dir=str(Path(folder).parent),  # nothing is saved there: save_strategy is "no"
        max_steps=recipe["steps"],
        per_device_train_batch_size=recipe["batch_size"],
        learning_rate=recipe["learning_rate"],
        adam_beta1=recipe["betas"][0],
        adam_beta2=recipe["betas"][1],
        warmup_steps=recipe["warmup_steps"],
        lr_scheduler_type=recipe["schedule"],
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        seed=seed,
        remove_unused_columns=False,
        dataloader_pin_memory=model.device.type != "cpu",
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,  # to torch, a list is a map-style dataset
        data_collator=lambda batch: pad_batch(batch, tokenizer.pad_token_id),
    )
    with fitting_threads(model):
        trainer.train()
    card = {
        "world": world.parameters(),
        "size": size,
        "seed": seed,
        "parameters": model.num_parameters(),
        "recipe": recipe,
        "seconds": round(time.perf_counter() - started),
        "scores": evaluate(model, tokenizer, suites_of(world, n=None)),
    }
    save_model(model, tokenizer, folder, card)
    return model, tokenizer
