"""The time of a step under each technique over that of a plain one with as many rows: micro-world rows, `wb.align`."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import workbench as wb
from benchmarks.measuring import Row, Settings
from benchmarks.shapes import random_model
from benchmarks.training import StepTimes
from workbench.alignment.techniques import Technique

ROWS = 16  # in every step, reference rows among them
_STEPS, _WARM_UP = 20, 4
_References = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """A training: what protects abilities, given the references, and further arguments of the trainer."""

    techniques: Callable[[_References], list[Technique]] = lambda references: []
    options: Mapping[str, Any] = field(default_factory=dict)


ARMS = {
    "plain": Arm(),
    "LoRA": Arm(lambda r: [wb.LoRA(rank=8)]),
    "replay, half": Arm(lambda r: [wb.Replay(r, share=0.5)]),
    "KL to base": Arm(lambda r: [wb.KLToBase(r)]),
    "EWC": Arm(lambda r: [wb.EWC(r, n_samples=8)]),  # its Fisher information is not a part of any step
    "update projection, 16 references every step": Arm(
        lambda r: [wb.GradientProjection(r, n_samples=16, refresh=1)],
    ),
    "projected and restored, 4 + 12 rows": Arm(
        lambda r: [
            wb.GradientProjection(
                r, side="gradient", references_in_batch=(4, ROWS - 4), restore=wb.Restore(2.0, tolerance=0.02)
            )
        ],
    ),
    "attention alone, replay, noise": Arm(
        lambda r: [wb.Freeze(["*embed*", "*mlp*"]), wb.Replay(r, share=0.65)], {"neftune_noise_alpha": 4.0}
    ),
    "attention alone, mixup, replay": Arm(
        lambda r: [wb.Freeze(["*embed*", "*mlp*"]), wb.Mixup(r, noise=4.0), wb.Replay(r, share=0.8)]
    ),
}


class _Times(StepTimes, Technique):
    """Protects nothing and takes the time: it comes last, so that its step ends after those of the others."""

    name = "times"


def run(settings: Settings) -> Iterator[Row]:
    """One row for each size and technique."""
    world = wb.MicroWorld()
    data, references = world.demonstrations(), world.references(n=200)
    for size in settings.sizes:
        best: dict[str, float] = {}
        for _ in range(settings.repeats):
            for name, arm in ARMS.items():
                seconds = _step_seconds(size, settings, data, arm.techniques(references), arm.options)
                best[name] = min(best.get(name, float("inf")), seconds)
        for name, seconds in best.items():
            yield {"size": size, "technique": name, "step, s": seconds, "/ plain": seconds / best["plain"]}


def _step_seconds(
    size: str, settings: Settings, data: Any, techniques: list[Technique], options: Mapping[str, Any]
) -> float:
    """The mean over the steps of one training of a random model."""
    model, tokenizer = random_model(size, settings.device)
    times = _Times(settings.device)
    with tempfile.TemporaryDirectory() as folder:
        wb.align(
            model,
            tokenizer,
            data,
            technique=[*techniques, times],
            steps=_STEPS,
            learning_rate=1e-5,
            runs_dir=folder,
            progress=False,
            **options,
        )
    return sum(times.seconds[_WARM_UP:]) / len(times.seconds[_WARM_UP:])
