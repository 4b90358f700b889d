"""What a table of runs kept of the geometry: leakage and removed energy along the way, and the subspaces beside it."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.study.runs import Run

from .figures import TRACED, angles_heatmap, block_heatmap, projection_trace, spectrum
from .readings import Row, completed_runs, each_run

if TYPE_CHECKING:
    from workbench.geometry.subspace import Subspace

MOST_LINES = 8  # of one spectrum, beyond which a map is clearer
MOST_FILES = 4
LARGEST = 200e6  # bytes of a file whose bases are read for angles


def geometry_figures(table: pd.DataFrame) -> Iterator[tuple[str, go.Figure]]:
    """Headings and figures of what the runs' folders hold; none where no run had a projection.

    Every run with a projection keeps the spectrum of its last basis, of which the first run of each technique and
    pipeline is shown. Subspaces are files that `Subspace.save` wrote into a run's folder or beside it. Of both the
    first four.
    """
    runs = _with_folders(table)
    yield from _traces(runs)
    yield from islice(_spectra(runs), MOST_FILES)
    known = dict(_subspaces(table))
    for name, subspace in known.items():
        values = {block: one.singular_values.tolist() for block, one in subspace.blocks.items()}
        yield f"Spectrum of {name}", _spectrum(values)
    for one, other in combinations(known, 2):
        if max(known[name].rank * known[name].n_params for name in (one, other)) * 4 > LARGEST:
            continue
        with suppress(ValueError):  # of other blocks
            angles = known[one].principal_angles(known[other])
            width = min(map(len, angles.values()))
            cosines = [angle[:width].tolist() for angle in angles.values()]
            columns = [f"angle {number + 1}" for number in range(width)]
            yield f"Angles between {one} and {other}", angles_heatmap(cosines, [*map(_short, angles)], columns)


def _with_folders(table: pd.DataFrame) -> pd.DataFrame:
    """The completed runs whose folders the table names."""
    known = table.reindex(columns=["path", "status"]).fillna({"status": "completed"})
    done = known["path"].notna() & known["status"].eq("completed")
    return completed_runs(table[done], needed=[]) if done.any() else table[:0].assign(group="", pipeline="")


def _traces(runs: pd.DataFrame) -> Iterator[tuple[str, go.Figure]]:
    """Leakage and removed energy of every technique that logged them, pipeline by pipeline, the mean of its runs."""
    for pipeline, several in runs.groupby("pipeline"):
        traced = [steps for run in each_run(several, ["path"]) if (steps := _steps(run)) is not None]
        if not traced:
            continue
        means = pd.concat(traced).groupby(["group", "step"]).mean().reset_index()
        lines = {
            str(group): rows.drop(columns="group").dropna(axis="columns", how="all")
            for group, rows in means.groupby("group")
        }
        title = (
            f"What projections let through and took{f', pipeline {pipeline!s}' if pipeline else ''}: means over runs"
        )
        yield title, projection_trace(lines)


def _steps(run: Row) -> pd.DataFrame | None:
    """What a run logged of its projection at each step, or None if nothing."""
    with suppress(OSError, ValueError):  # a table outlives its folders
        history = Run.load(run["path"]).history
        if {*TRACED} & {*history}:
            kept = [name for name in ("step", *TRACED, "random_floor") if name in history]
            return history.loc[~history["evaluation"].astype(bool), kept].assign(group=run["group"])
    return None


def _spectra(runs: pd.DataFrame) -> Iterator[tuple[str, go.Figure]]:
    """Singular values of the last reference gradients, of the first run of each technique and pipeline."""
    first: dict[tuple[str, str], Path] = {}
    for run in each_run(runs, ["path"]):
        if (file := Path(run["path"]) / "spectrum.parquet").is_file():
            first.setdefault((run["group"], run["pipeline"]), file)
    for who, file in first.items():
        with suppress(OSError, ValueError, KeyError):  # no table, or another
            blocks = pd.read_parquet(file).groupby("block", sort=False, observed=True)["singular_value"]
            values = {str(block): rows.tolist() for block, rows in blocks}
            named = ", ".join(filter(None, who))
            yield f"Spectrum of the reference gradients at the end of {named}", _spectrum(values)


def _subspaces(table: pd.DataFrame) -> Iterator[tuple[str, "Subspace"]]:
    from safetensors import SafetensorError

    from workbench.geometry.subspace import Subspace

    folders = [Path(path) for path in table.get("path", pd.Series(dtype=object)).dropna()]
    places = dict.fromkeys([*folders, *(folder.parent for folder in folders)])
    files = sorted(file for place in places for file in place.glob("*.safetensors"))
    found = 0
    for file in files:
        if found == MOST_FILES:
            return
        with suppress(OSError, ValueError, SafetensorError):  # other tensors, or none
            yield f"{file.parent.name}/{file.name}", Subspace.load(file)
            found += 1


def _spectrum(values: dict[str, list[float]]) -> go.Figure:
    """Lines while they are few, a map of blocks × directions otherwise."""
    short = {_short(block): sigma for block, sigma in values.items()}
    if len(short) <= MOST_LINES:
        return spectrum(short)
    width = max(map(len, short.values()))
    grid = [[*sigma, *[np.nan] * (width - len(sigma))] for sigma in short.values()]
    frame = pd.DataFrame(grid, index=[*short], columns=range(1, width + 1))
    return block_heatmap(
        frame, "", "singular value of unit gradients (all 1: nothing shared)", across="Direction, by singular value"
    )


def _short(block: str) -> str:
    return block.removeprefix("model.").removesuffix(".weight")
