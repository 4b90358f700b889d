"""The time of a whole optimizer step over that of a plain one, timed within the real trainer.

Two plain steps are the measure of each setting: one on as many safety rows, and one on as many rows as its forward has,
which differ for the split alone (4 safety rows, 12 reference rows riding along). Passes of their own over references
cost the same however many safety rows there are. As published they are rare; so that arm takes its 200 rows anew at
every second step, and a step at an interval of R costs a step without a refresh and an R-th of what a refresh adds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.measuring import Row, Settings, does_not_fit, numel
from benchmarks.shapes import parameter_shapes, random_model
from benchmarks.training import DOMAINS, HAS_TRL, StepTimes, made_up_references, train
from workbench.alignment.projection import GradientProjection
from workbench.alignment.restoring import Restore

SAFETY, ALL = 4, 16  # rows
TOKENS = 64
PUBLISHED = {"SFT": 30, "DPO": 5}  # steps between two refreshes in the official code
_STEPS = 4  # in a turn; the first two warm up
_PER_DOMAIN = 50  # reference rows, of which 200 are drawn


@dataclass(frozen=True)
class Arm:
    """A training.

    Attributes:
        safety: Training rows in a step.
        rows: All rows in its forward.
        options: Those of `GradientProjection`; none train plainly.
    """

    safety: int
    rows: int
    options: Mapping[str, Any] = field(default_factory=dict)


_SPLIT = {"side": "gradient", "references_in_batch": (SAFETY, ALL - SAFETY)}
_REFRESHING = "published, a refresh"
ARMS = {
    "plain, 4 rows": Arm(SAFETY, SAFETY),
    "plain, 16 rows": Arm(ALL, ALL),
    "published, no refresh": Arm(ALL, ALL, {"side": "gradient", "refresh": 2, "n_samples": 200}),
    "64 references every step": Arm(SAFETY, SAFETY, {"side": "gradient", "refresh": 1, "n_samples": 64}),
    "split": Arm(SAFETY, ALL, _SPLIT),
    "split, update side": Arm(SAFETY, ALL, {**_SPLIT, "side": "update"}),
    "split, restoring": Arm(SAFETY, ALL, {**_SPLIT, "restore": Restore(2.0, 0.02)}),
}


def run(settings: Settings) -> Iterator[Row]:
    """One row for each size and setting."""
    for size in settings.sizes:
        d = numel(parameter_shapes(size))
        # weights, gradients, both moments, weights before the step, gradients of the domains; as much for activations
        if reason := does_not_fit(2 * 4 * d * (5 + DOMAINS), settings.device):
            yield {"size": size, "skipped": reason}
            continue
        seconds = _step_seconds(size, settings)
        plain, refresh = seconds["published, no refresh"], seconds.pop(_REFRESHING)
        rates = {f"published {stage}, every {n}": plain + (refresh - plain) / n for stage, n in PUBLISHED.items()}
        for name, step in (seconds | rates).items():
            arm = ARMS.get(name, ARMS["published, no refresh"])
            yield {
                "size": size,
                "setting": name,
                "step, s": step,
                "/ plain, equal safety rows": step / seconds[f"plain, {arm.safety} rows"],
                "/ plain, equal rows": step / seconds[f"plain, {arm.rows} rows"],
                "parameters": d,
                "trainer": "SFTTrainer" if HAS_TRL else "Trainer",
                "raw": {"refreshing step, s": refresh} if arm.options.get("n_samples") == 200 else {},
            }


def _step_seconds(size: str, settings: Settings) -> dict[str, float]:
    """The shortest step of every arm; all train the same model on, in turns."""
    model, tokenizer = random_model(size, settings.device)
    references: Any = made_up_references(tokenizer, _PER_DOMAIN, TOKENS)
    best: dict[str, float] = {}
    for _ in range(settings.repeats):
        for name, arm in ARMS.items():
            times = StepTimes(settings.device)
            projection = [GradientProjection(references, **arm.options)] if arm.options else []
            bf16 = settings.dtype == torch.bfloat16
            train(model, tokenizer, [times, *projection], rows=arm.safety, tokens=TOKENS, steps=_STEPS, bf16=bf16)
            found = {name: times.seconds[1:]}
            if arm.options.get("refresh") == 2:
                found = {_REFRESHING: times.seconds[1::2], name: times.seconds[2::2]}
            best |= {key: min(best.get(key, float("inf")), *seconds) for key, seconds in found.items()}
    return best
