"""A run's record, and two runs side by side: as plain data, and as HTML in which all text is escaped."""

import html
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.study.outcomes import same
from workbench.study.runs import Run, flatten

from ..readings import RATES, parameters_of

WHO = ("label", "technique", "pipeline", "model", "seed", "status", "error", "wall_seconds")
CLASS = "workbench-text"
STYLE = f"""<style>
.{CLASS} {{ font: 13px/1.45 var(--jp-ui-font-family, sans-serif); color: var(--jp-ui-font-color1, inherit);
  overflow-wrap: break-word; overflow-x: auto; }}
.{CLASS} table {{ border-collapse: collapse; margin: 2px 0 8px; }}
.{CLASS} th, .{CLASS} td {{ padding: 2px 10px 2px 0; text-align: left; vertical-align: top; font-weight: normal;
  border-bottom: 1px solid var(--jp-border-color2, #8886); }}
.{CLASS}-beside {{ contain: content; }}
.{CLASS}-above {{ flex-direction: column; align-items: flex-start; }}
.{CLASS}-above > select {{ flex: none; min-width: 64px; }}
.{CLASS}-above > .widget-label {{ width: auto; text-align: left; }}
.{CLASS} thead th {{ position: sticky; top: 0; background: var(--jp-layout-color0, Canvas); font-weight: 600; }}
.{CLASS} td.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
.{CLASS} tr.differs > th {{ font-weight: 600; }}
.{CLASS} small {{ display: block; color: var(--jp-ui-font-color2, inherit); }}
.{CLASS} summary {{ cursor: pointer; padding: 2px 0; }}
.{CLASS} summary:focus-visible {{ outline: 2px solid var(--jp-brand-color1, Highlight); }}
.{CLASS} details details {{ margin-left: 16px; }}
.{CLASS} pre {{ white-space: pre-wrap; margin: 2px 0 8px; color: inherit; }}
.{CLASS} svg {{ width: 14px; height: 14px; vertical-align: -2px; margin-right: 6px; }}
</style>"""


def scores_of(table: pd.DataFrame) -> list[str]:
    """The columns of a table of runs that hold scores: the three rates, and what the base model was scored by too."""
    return [str(name) for name in table if name in RATES or f"base.{name}" in table]


def comparison(table: pd.DataFrame, first: Any, second: Any) -> pd.DataFrame:
    """All that is known of two runs, side by side.

    Args:
        table: One row per run, as `workbench.study.runs.load_runs` returns it.
        first: The index of run A.
        second: That of run B.

    Returns:
        One row per column that either run has a value in: `kind` (run, score, base score or parameter), `A`, `B`,
        `differs`, and, of numbers that are scores, `difference`, B − A.
    """
    scores = scores_of(table)
    kinds = {
        **{name: "run" for name in WHO if name in table},
        **dict.fromkeys(scores, "score"),
        **dict.fromkeys((f"base.{name}" for name in scores if f"base.{name}" in table), "base score"),
        **dict.fromkeys(parameters_of(table), "parameter"),
    }
    a, b = (table.loc[run, [*kinds]].to_dict() for run in (first, second))
    rows = {
        name: {
            "kind": kind,
            "A": a[name],
            "B": b[name],
            "differs": known(a[name]) != known(b[name]) or (known(a[name]) and not same(a[name], b[name])),
            "difference": b[name] - a[name] if "score" in kind and known(a[name]) and known(b[name]) else float("nan"),
        }
        for name, kind in kinds.items()
        if known(a[name]) or known(b[name])
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["kind", "A", "B", "differs", "difference"])


def record_of(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The record of a run of a table: what its folder holds, or, where a table has outlived its folders, its row."""
    try:
        return Run.load(str(row["path"])).record
    except (OSError, ValueError, KeyError):
        return {str(name): value for name, value in row.items() if name != "trajectory" and known(value)}


def comparison_html(rows: pd.DataFrame, names: tuple[str, str]) -> str:
    """A table of `comparison`: what differs is marked by a sign and by weight, what is the same is folded away."""
    title = f"<b>A</b> {escaped(names[0])}<br><b>B</b> {escaped(names[1])}"
    apart, alike = rows[rows["differs"]], rows[~rows["differs"]]
    parts = [title, _side_by_side(apart) if len(apart) else "<p>Nothing that was recorded differs.</p>"]
    if len(alike):
        parts.append(folded(f"The same in both: {len(alike)} values", _side_by_side(alike)))
    return framed("".join(parts))


def record_html(record: Mapping[str, Any]) -> str:
    """A record, folded by its parts."""
    path = f"<br>{escaped(record['path'])}" if known(record.get("path")) else ""
    head = f"<b>{escaped(record.get('run_id', 'run'))}</b>: {escaped(record.get('status', 'completed'))}{path}"
    error = record.get("error")
    parts = [folded("Error", f"<pre>{escaped(error)}</pre>", is_open=True)] if known(error) and error else []
    nested = {name: value for name, value in record.items() if isinstance(value, Mapping) and value}
    flat = {n: v for n, v in record.items() if n not in nested and n not in ("run_id", "path", "status", "error")}
    order = [*dict.fromkeys(["scores", "base_scores", "parameters", *nested])]
    for name in order:
        if name in nested:
            title = f"{name.replace('_', ' ').capitalize()}: {len(flatten(nested[name]))}"
            parts.append(folded(title, _pairs(flatten(nested[name])), is_open=name == "scores"))
    return framed(head + "".join([*parts, folded("Further", _pairs(flat))]))


def folded(title: str, content: str, is_open: bool = False) -> str:
    """HTML that opens and closes, by keyboard too."""
    return f"<details{' open' * is_open}><summary>{escaped(title)}</summary>{content}</details>"


def framed(content: str) -> str:
    """HTML in the style of this module."""
    return f'<div class="{CLASS}">{content}</div>'


def grid(heads: Iterable[str], rows: Iterable[str]) -> str:
    """A table of rows of cells."""
    top = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def cell(value: Any) -> str:
    """A value of a record in a cell: numbers to the right, in as many digits as tell them apart."""
    if not known(value):
        return "<td>–</td>"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{escaped(value)}</td>"
    return f'<td class="number">{value:z.5g}</td>' if isinstance(value, float) else f'<td class="number">{value}</td>'


def escaped(value: Any) -> str:
    """Any value as text that is no markup."""
    return html.escape(str(value))


def known(value: Any) -> bool:
    """Whether there is a value at all."""
    return len(value) > 0 if isinstance(value, list | dict | tuple | np.ndarray) else not pd.isna(value)


def _side_by_side(rows: pd.DataFrame) -> str:
    lines = []
    for name, row in rows.iterrows():
        sign = "≠" if row["differs"] else ""
        change = f"{row['difference']:+z.4g}" if known(row["difference"]) and row["differs"] else ""
        head = f'<td>{sign}</td><th scope="row">{escaped(name)}</th>'
        mark = ' class="differs"' if row["differs"] else ""
        lines.append(f'<tr{mark}>{head}{cell(row["A"])}{cell(row["B"])}<td class="number">{change}</td></tr>')
    return grid(["", "", "A", "B", "B − A"], lines)


def _pairs(values: Mapping[str, Any]) -> str:
    rows = (f'<tr><th scope="row">{escaped(name)}</th>{cell(value)}</tr>' for name, value in values.items())
    return f"<table><tbody>{''.join(rows)}</tbody></table>"
