"""From a table of runs to what a figure or a page says of it: means, intervals, trajectories, texts."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.study.statistics import intervals

from .palette import FAMILIES, Style, family_of, family_or, styles
from .theme import safe

Row = Mapping[Any, Any]  # as DataFrame.to_dict("records") types it
RATES = ("utility", "safety", "over_refusal")
WORDS = {rate: rate.replace("_", "-") for rate in RATES}  # as hovers call them
BY = ("group", "pipeline")  # what a mean is of
# Columns that say what a run is or what came of it; the others without a `base.` twin are its parameters.
NOT_PARAMETERS = {
    *("run_id", "path", "status", "started", "finished", "wall_seconds", "error", "trajectory"),
    *("label", "technique", "pipeline", "model", "seed", "group", "settings", *RATES),
}


def completed_runs(
    table: pd.DataFrame, group: str = "label", needed: Sequence[str] = ("utility", "safety")
) -> pd.DataFrame:
    """The completed runs with all needed numbers.

    Filled in are `group`, `technique` (the label instead, where the technique is plain and the label names a family),
    `pipeline`, `model`, the rates, `settings` (the parameters in which the runs differ, as escaped lines) and
    `trajectory` (a list, in the order of the steps).

    Raises:
        ValueError: A needed column is missing, or no run is left.
    """
    group = group if group in table else "technique"
    missing = [name for name in (*needed, group) if name not in table]
    if missing:
        raise ValueError(
            f"expected a table of runs with columns {', '.join(needed)} and label or technique, got one without "
            f"{', '.join(missing)}: load it with workbench.study.runs.load_runs."
        )
    done = table[table["status"].eq("completed")] if "status" in table else table
    done = done.dropna(subset=[*needed])
    if done.empty:
        raise ValueError(
            f"expected a completed run with {' and '.join(needed)}, got none among {len(table)} rows: "
            "evaluate a run to its end first, and look at the column status."
        )
    blank = pd.Series(index=done.index, dtype=object)
    technique = done.get("technique", blank).fillna(done[group]).astype(str)
    texts = {name: done.get(name, blank).fillna("").astype(str) for name in ("pipeline", "model")}
    rates = {name: pd.to_numeric(done.get(name, blank)) for name in (*RATES, *needed)}
    names = done[group].fillna(technique).astype(str)
    shaped = [family_or(*pair) for pair in zip(technique, names, strict=True)]
    ways = done.get("trajectory", blank).map(_trajectory)
    named: dict[str, Any] = {"group": names, "technique": shaped, "trajectory": ways}
    return done.assign(**named, **texts, **rates, settings=_settings(done))


def group_means(runs: pd.DataFrame, metrics: Sequence[str] = RATES) -> pd.DataFrame:
    """Mean and 95 % interval of each metric for each group and pipeline; families side by side.

    Runs on one base are more alike than runs on different bases, so where there are several bases each counts once,
    as the mean of its runs, and the interval is over bases; with one base it is over runs.

    Columns are `group`, `technique`, `pipeline`, `runs`, `bases`, and for each metric `utility`,
    `utility.low`, `utility.high` and `utility.n`.
    """
    members: dict[tuple[Any, ...], list[tuple[Any, Any]]] = {}
    for *pair, technique, model in zip(*(runs[name] for name in (*BY, "technique", "model")), strict=True):
        members.setdefault((*pair,), []).append((technique, model))
    rows = []
    for (group, pipeline), measured in intervals(runs, metrics, BY).items():
        techniques, models = zip(*members[group, pipeline], strict=True)
        who = {"group": group, "technique": min(techniques), "pipeline": pipeline}
        rows.append(who | {"runs": len(models), "bases": len({*models})} | measured)
    families = {row["technique"]: family_of(row["technique"]) for row in rows}
    place = [*reversed(FAMILIES), *families.values()]  # plain first, the yardstick
    rows.sort(key=lambda row: (place.index(families[row["technique"]]), *(row[name] for name in ("technique", *BY))))
    return pd.DataFrame(rows)


def told_apart(runs: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Tables of `completed_runs` in which groups are named with their pipeline where they have several."""
    pairs = pd.concat([table[["group", "pipeline"]] for table in runs.values()]).drop_duplicates()
    several = {*pairs["group"][pairs["group"].duplicated()]}
    named = {
        suite: table["group"].where(~table["group"].isin(several), table["group"] + ", " + table["pipeline"])
        for suite, table in runs.items()
    }
    return {suite: table.assign(group=named[suite]) for suite, table in runs.items()}


def counted(runs: pd.DataFrame) -> str:
    """What the intervals of `group_means` are over."""
    return "bases" if runs["model"].nunique() > 1 else "runs"


def looks_of(means: pd.DataFrame) -> dict[str, Style]:
    """How each group of `group_means` is drawn."""
    return styles(dict(zip(means["group"], means["technique"], strict=True)))


def evaluations(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per evaluated step of every completed run, by run and step; `run` numbers the runs."""
    names = ("group", "pipeline", "model")
    rows = [
        {**dict.fromkeys(RATES), **point, **{name: run[name] for name in names}}
        | {"run": number, "hover": hover(run, point)}
        for number, run in enumerate(each_run(runs))
        for point in run["trajectory"]
    ]
    points = pd.DataFrame(rows, columns=None if rows else ["step", *RATES, *names, "run", "hover"])
    return points.astype(dict.fromkeys(("step", *RATES), float))


def each_run(runs: pd.DataFrame, columns: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The runs of `completed_runs` one by one: who they are, for `hover`, and the columns that are asked for.

    Tables hold hundreds of columns, and going through all of them takes longer than drawing.
    """
    named = ("group", "pipeline", "model", "run_id", "seed", "settings", "trajectory")
    names = [name for name in dict.fromkeys([*named, *columns]) if name in runs]
    return [dict(zip(names, row, strict=True)) for row in zip(*(runs[name].tolist() for name in names), strict=True)]


def base_scores(runs: pd.DataFrame, points: pd.DataFrame, rates: Sequence[str] = RATES) -> pd.DataFrame:
    """The rates of each base model: its scores in the records, else those of its runs at step 0."""
    columns = [f"base.{rate}" for rate in rates if f"base.{rate}" in runs]
    recorded = runs.groupby("model")[columns].mean().rename(columns=lambda name: name.removeprefix("base."))
    known = [rate for rate in rates if rate in points]
    begun = points[points["step"] == 0].groupby("model")[known].mean()
    return recorded.combine_first(begun).reindex(columns=[*rates])


def parameters_of(table: pd.DataFrame) -> list[str]:
    """The columns of a table of runs that hold parameters, neither names nor scores."""
    names = [str(name) for name in table]
    base = {name for name in names if name.startswith("base.")}
    others = NOT_PARAMETERS | base | {name.removeprefix("base.") for name in base}
    return [name for name in names if name not in others]


def hover(run: Row, point: Row, words: Mapping[str, str] = WORDS) -> str:
    """Escaped text about a run at one of its points; at its end, where the point has no step, its settings too."""
    seed = [] if pd.isna(run.get("seed")) else [f"seed {run['seed']:g}"]
    model = [f"base {run['model']}"] if run["model"] else []
    step, settings = (f"step {point['step']:g}", []) if "step" in point else ("end", [run["settings"]])
    lines = [run.get("run_id", ""), ", ".join([*seed, *model, step]), told(point, words)]
    return "<br>".join([f"<b>{safe(run['group'])}</b>", *map(safe, lines), *settings])


def told(values: Row, words: Mapping[str, str] = WORDS) -> str:
    """The rates that are known, in words."""
    known = {word: values.get(rate) for rate, word in words.items()}
    return ", ".join(f"{name} {value:.3f}" for name, value in known.items() if not pd.isna(value))


def told_interval(row: Row, name: str) -> str:
    """Mean and interval of a row of `group_means` in words, the mean alone where there is one run."""
    ends = f" [{row[f'{name}.low']:z.3f}, {row[f'{name}.high']:z.3f}]" if row[f"{name}.n"] > 1 else ""
    return f"{row[name]:z.3f}{ends}" if row[f"{name}.n"] else "–"


def _settings(runs: pd.DataFrame) -> list[str]:
    """For each run the parameters in which the runs differ, six at most, as lines for a hover."""
    texts = ((name, ["" if value is None else str(value) for value in runs[name]]) for name in parameters_of(runs))
    matter = itertools.islice(((name, column) for name, column in texts if len({*column}) > 1), 6)
    lines = ([f"{safe(name)} = {safe(text)}" for text in column] for name, column in matter)
    return ["<br>".join(line) for line in zip(*lines, strict=True)] or [""] * len(runs)


def _trajectory(points: Any) -> list[dict[str, Any]]:
    known = isinstance(points, list | tuple | np.ndarray)  # parquet gives arrays, a missing one is None or nan
    return sorted(points, key=lambda point: point["step"]) if known else []
