"""What a projection adds to the peak memory of a training, over what it says it adds.

It says: rank × trained parameters × bytes of the basis, and one copy of the parameters, from which the step is measured
and projected. The peak of a plain training on as many rows is taken off that of a projected one, whose basis is fitted
anew at every step. On a CPU every allocation of torch's counts, those within its kernels included; on an accelerator
its allocator keeps the books. The trainer is that of transformers: TRL's metrics would hide what is looked for.
"""

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch

from benchmarks.measuring import Row, Settings, does_not_fit, numel
from benchmarks.shapes import parameter_shapes, random_model
from benchmarks.training import DOMAINS, made_up_references, train
from workbench.alignment.projection import GradientProjection
from workbench.alignment.restoring import Restore

SAFETY, REFERENCES, TOKENS, STEPS = 4, 12, 32, 3  # few rows, so that activations hide nothing
_SEPARATE = {"refresh": 1, "n_samples": REFERENCES, "batch_size": REFERENCES // DOMAINS}
_SPLIT = {"references_in_batch": (SAFETY, REFERENCES)}
ARMS: dict[str, dict[str, Any]] = {
    "gradient": {"side": "gradient", **_SEPARATE},
    "update": {"side": "update", **_SEPARATE},
    "metric": {"side": "metric", **_SEPARATE},
    "gradient, bfloat16 basis": {"side": "gradient", "basis_dtype": "bfloat16", **_SEPARATE},
    "split, gradient": {"side": "gradient", **_SPLIT},
    "split, update": {"side": "update", **_SPLIT},
    "split, restoring": {"side": "gradient", "restore": Restore(2.0, 0.02), **_SPLIT},
}


def run(settings: Settings) -> Iterator[Row]:
    """One row for each size and setting."""
    for size in settings.sizes:
        d = numel(parameter_shapes(size))
        # weights, gradients, both moments, weights before the step, basis and old basis; a part for activations
        if reason := does_not_fit(1.25 * 4 * d * (5 + 2 * DOMAINS), settings.device):
            yield {"size": size, "skipped": reason}
            continue
        plain = {rows: _peak(size, rows, {}, settings) for rows in (SAFETY, SAFETY + REFERENCES)}
        for name, options in ARMS.items():
            projected = _peak(size, SAFETY, options, settings)
            added = projected - plain[SAFETY + REFERENCES if "references_in_batch" in options else SAFETY]
            basis_bytes = getattr(torch, options.get("basis_dtype", "float32")).itemsize
            contract = d * (DOMAINS * basis_bytes + 4)
            yield {
                "size": size,
                "setting": name,
                "rank": DOMAINS,
                "plain, MiB": (projected - added) / 2**20,
                "added, MiB": added / 2**20,
                "contract, MiB": contract / 2**20,
                "added / contract": added / contract,
                "parameters": d,
            }


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most memory that tensors took at any time while something was done, over what they took before."""
    gc.collect()
    if device.type != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ["KINETO_LOG_LEVEL"] = "99"  # or else it tells of every start and stop
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


def _peak(size: str, rows: int, options: Mapping[str, Any], settings: Settings) -> int:
    def work() -> None:
        model, tokenizer = random_model(size, settings.device)
        references: Any = made_up_references(tokenizer, REFERENCES, TOKENS)
        projection = [GradientProjection(references, **options)] if options else []
        bf16 = settings.dtype == torch.bfloat16
        train(model, tokenizer, projection, rows=rows, tokens=TOKENS, steps=STEPS, bf16=bf16, trl=False)

    return peak_bytes(work, settings.device)
