"""Train the shipped base model in one process or in several, for `test_distributed.py`.

Imported for one process; for two, ``torchrun --standalone --nproc-per-node 2 tests/training_processes.py '[{…}, {…}]'``
with a JSON list of cases, so that one launch serves many:

- ``trainer``: ``"trainer"`` (of transformers), ``"sft"``, ``"dpo"`` or ``"contrastive"``;
- ``parallel``: ``"none"``, ``"ddp"`` or ``"fsdp2"``;
- ``arguments``: of the trainer's configuration, beside those that `train` sets;
- ``projection``: None for plain training, or arguments of `wb.GradientProjection` beside its references;
- ``out``: a folder, where rank 0 writes ``weights.safetensors``, the whole tensors, and ``result.json``.

Cases with ``pipeline``, the name of a technique in `TECHNIQUES`, run `wb.pipeline` instead, SFT→DPO, with ``parallel``
and ``out``. With ``fails`` the judge of rank 0 raises at its call of that number, and the run is then tried again; with
``differs`` each rank has a seed of its own, and it is tried again with one for all.

An optimizer step sees the same `ROWS` rows however many processes share them.
"""

import gc
import hashlib
import json
import os
import sys
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.distributed as dist
from datasets import load_from_disk
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

import workbench as wb
from workbench.alignment.objectives import build_trainer
from workbench.corpora.encoding import encode, pad_batch

RANK, N_RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
ROWS = 8  # of an optimizer step, over all processes and accumulated batches


class Collectives(TorchDispatchMode):
    """Counts the collectives of this process by name, whichever interface they come through, while `counting`."""

    def __init__(self, counting=True):
        super().__init__()
        self.counting = counting
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(t.__name__ == "DTensor" for t in types):
            return NotImplemented  # it comes back as what it does to local tensors, its collectives included
        if self.counting and func.namespace in ("c10d", "_c10d_functional", "_dtensor"):
            name = func.__name__.partition(".")[0]
            self.counts[name] += name not in ("wait_tensor", "_wrap_tensor_autograd")
        return func(*args, **(kwargs or {}))


class Counted(wb.GradientProjection):
    """The callback, counting the collectives of each optimizer step that are its own.

    Those are all in its events, and all from its `on_pre_optimizer_step` to the end of its `on_optimizer_step`, so that
    hooks of the optimizer are included; of the trainer, only the optimizer's step lies there, which has none.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.counter = Collectives(counting=False)
        self.collectives = []  # by optimizer step

    def on_step_begin(self, *args, **kwargs):
        self.counter.counts.clear()
        self._count(super().on_step_begin, *args, **kwargs)

    def on_substep_end(self, *args, **kwargs):
        self._count(super().on_substep_end, *args, **kwargs)

    def on_pre_optimizer_step(self, *args, **kwargs):
        self.counter.counting = True
        super().on_pre_optimizer_step(*args, **kwargs)

    def on_optimizer_step(self, *args, **kwargs):
        self._count(super().on_optimizer_step, *args, **kwargs)

    def on_step_end(self, *args, **kwargs):
        self._count(super().on_step_end, *args, **kwargs)
        self.collectives.append(+self.counter.counts)

    def _count(self, event, *args, **kwargs):
        self.counter.counting = True
        event(*args, **kwargs)
        self.counter.counting = False


def main(cases):
    """Train all cases in their order."""
    if N_RANKS > 1:
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for case in cases:
        result, weights = (align if "pipeline" in case else train)(**case)
        if RANK == 0:
            out = Path(case["out"])
            save_file(weights, out / "weights.safetensors")
            (out / "result.json").write_text(json.dumps(result))
    if N_RANKS > 1:
        dist.destroy_process_group()


def train(trainer, parallel, out, arguments=None, projection=None):
    """What a training shows, and the whole weights; on every rank."""
    settings = {
        "max_steps": 4,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "bf16": False,
        "activation_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "output_dir": out,
        **(arguments or {}),
    }
    n_batches = N_RANKS * settings.get("gradient_accumulation_steps", 1)
    settings |= {"per_device_train_batch_size": ROWS // n_batches}
    if parallel == "ddp":
        settings |= {"ddp_backend": "gloo", "ddp_find_unused_parameters": False}

    torch.set_num_threads(1)
    model, tokenizer = load(parallel)
    callback = None if projection is None else Counted(world().references(16), **projection)
    built = build(trainer, model, tokenizer, [callback] if callback else [], settings)
    if callback:
        with callback.counter:
            built.train()
    else:
        built.train()

    with Collectives() as gathering:
        weights = {name: whole(p) for name, p in model.named_parameters()}
        checksums = gathered(checksum(weights))
    steps = [row for row in built.state.log_history if "loss" in row]
    result = {
        "losses": [row["loss"] for row in steps],
        "gradient_norms": [row["grad_norm"] for row in steps],
        "n_processes": built.accelerator.num_processes,
        "wrapped_in": type(built.model_wrapped).__name__,
        "checksums": checksums,
        "gathering": +gathering.counts,
    }
    if callback:
        result |= {"history": callback.history, "collectives": gathered(callback.collectives)}
    return result, weights


TECHNIQUES = {
    "projected": lambda references: [
        wb.GradientProjection(references, n_samples=16, refresh=2, restore=wb.Restore(1.0, tolerance=0.02)),
        wb.Merge(0.5),
    ],
    "kl": lambda references: [wb.Freeze("*embed*"), wb.KLToBase(references, n_rows=4)],
}
JUDGED = {"calls": 0, "fails": None}


def fragile(rows, answers):
    """The oracle's verdicts, until it fails."""
    JUDGED["calls"] += 1
    if JUDGED["calls"] == JUDGED["fails"]:
        raise OSError("the judge is out of reach")
    return wb.oracle(rows, answers)


def align(pipeline, parallel, out, fails=None, differs=False):
    """What a pipeline leaves, and the whole weights; on every rank."""
    torch.set_num_threads(1)
    how = {"batch_size": ROWS, "learning_rate": 1e-3}
    steady = {"adam_epsilon": 1e-5}  # without it Adam takes whole steps along what is mere rounding
    stages = [
        wb.Stage("sft", world().demonstrations(64), 4, **how, arguments=steady),
        wb.Stage("dpo", world().preferences(32), 3, **how, arguments={**steady, "gradient_accumulation_steps": 2}),
    ]
    suites = {
        k: replace(s, judge=fragile) for k, s in wb.suites_of(world(), 6).items() if s.axis in ("safety", "utility")
    }
    options = {"suites": suites, "eval_every": 2, "checkpoint_every": 0 if parallel == "fsdp2" else 1, "reuse": True}
    JUDGED.update(calls=0, fails=fails)
    errors = []
    for seed in ([RANK] if differs else []) + [0, 0]:
        model, tokenizer = wb.load_model("micro", device="cpu", shard=parallel == "fsdp2")
        technique = TECHNIQUES[pipeline](world().references(16))
        try:
            where = {"runs_dir": Path(out) / "runs", "save": True, "seed": seed, "progress": False}
            run = wb.pipeline(model, tokenizer, stages, technique, **options, **where)
            break
        except (OSError, RuntimeError, ValueError) as error:
            errors.append(f"{type(error).__name__}: {error}")
    weights = {name: whole(p) for name, p in model.named_parameters()}
    return {"path": str(run.path), "errors": gathered(errors), "checksums": gathered(checksum(weights))}, weights


@cache
def world():
    """Where the rows come from."""
    return wb.load_world("micro")


def load(parallel):
    """The base model, sharded if asked for, and its tokenizer."""
    return wb.load_model("micro", device="cpu", shard=parallel == "fsdp2")


def build(trainer, model, tokenizer, callbacks, settings):
    """The trainer, ready to train."""
    rows = world().preferences(64) if trainer == "dpo" else world().demonstrations(64)
    if trainer == "trainer":
        from transformers import Trainer, TrainingArguments

        return Trainer(
            model=model,
            args=TrainingArguments(**settings, remove_unused_columns=False),
            train_dataset=encode(rows, tokenizer),
            data_collator=lambda batch: pad_batch(batch, tokenizer.pad_token_id),
            processing_class=tokenizer,
            callbacks=callbacks,
        )
    if trainer == "contrastive":
        return build_trainer(trainer, model, tokenizer, wb.Portraits(world()).pairs(64), callbacks, **settings)
    return build_trainer(trainer, model, tokenizer, on_disk(rows, settings["output_dir"]), callbacks, **settings)


def on_disk(rows, folder):
    """The rows, out of files that all ranks share: through such TRL hands them DPO's reference log-probabilities."""
    if RANK == 0:
        rows.save_to_disk(folder)
    if N_RANKS > 1:
        dist.barrier()
    return load_from_disk(folder)


def whole(parameter):
    """All of a parameter, whether this rank holds that or a shard; every rank must ask."""
    return (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).detach()


def checksum(weights):
    """Of every bit."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(name.encode() + weight.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def gathered(value):
    """What each rank says."""
    values = [value] * N_RANKS
    if N_RANKS > 1:
        dist.all_gather_object(values, value)
    return values


if __name__ == "__main__":
    gc.freeze()  # trainers collect garbage at their end, and half the time would go into looking through the imports
    main(json.loads(sys.argv[1]))
