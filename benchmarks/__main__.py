"""What the workbench adds to a training, each figure a ratio measured in one run: ``python -m benchmarks``."""

import argparse
import importlib
from pathlib import Path

import torch

from benchmarks.measuring import Report, Settings, environment
from benchmarks.shapes import SIZES
from workbench.models import best_device

# The sizes that each measures on a CPU, and on an accelerator.
BENCHMARKS = {
    "projection_pass": (("3M", "30M", "GPT-2", "0.5B"), ("GPT-2", "0.5B", "1.5B", "7B")),
    "hook_style": (("3M", "30M", "GPT-2"), ("GPT-2", "0.5B", "1.5B", "7B")),
    "whole_training": (("micro", "3M", "30M", "124M"), ("124M", "0.5B", "1.5B", "7B")),
    "techniques": (("micro", "1M", "3M"), ("3M", "30M", "124M")),
    "peak_memory": (("3M", "30M"), ("124M", "0.5B", "1.5B", "7B")),
    "redraw": ((), ()),  # explorers, which have sizes of their own
}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run the benchmarks that were asked for, print their tables, keep their figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; all if none is given")
    parser.add_argument("--device", type=torch.device, help="the first accelerator, or else the CPU")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="bfloat16 on an accelerator")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="of models")
    parser.add_argument("--ranks", nargs="+", type=int, help="directions per block")
    parser.add_argument("--repeats", type=int, help="turns of every arm, of which the shortest counts")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the figures")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    device = options.device or best_device()
    dtype = options.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    given = {k: v for k in ("ranks", "repeats") if (v := getattr(options, k)) is not None}
    for name in options.names or BENCHMARKS:
        sizes = options.sizes or BENCHMARKS[name][device.type != "cpu"]
        settings = Settings(device, getattr(torch, dtype), tuple(sizes), **given)
        report = Report(name, environment(settings))
        module = importlib.import_module(f"benchmarks.{name}")
        for row in module.run(settings):
            report.rows.append(row)
            path = report.save(options.results)
        print(f"\n## {name}, {report.environment['device']}, {dtype}\n\n{report.table()}\n\n{path}", flush=True)


main()
