"""One page about many runs: self-contained HTML that asks nothing of a server and runs only its own scripts."""

import base64
import hashlib
import html
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs

from workbench.study.runs import Run, flatten
from workbench.study.tradeoff import alignment_tax

from .faithfulness_plane import toxicity_faithfulness
from .kept_geometry import geometry_figures
from .keys import MOST
from .plane import safety_utility
from .readings import RATES, completed_runs, counted, group_means, looks_of, parameters_of, told_interval
from .theme import CONFIG, FONT, GRID, INK, NEUTRAL, PAGE

HOW_TO_READ = (
    "A large mark is the mean of a technique with its 95 % interval; a small one is a single run, and a "
    "thin line is the way there from the base model, the star. Up is safer and right is more able, so what alignment "
    "cost is how far a mark lies to the left of the star, and the dotted stair joins the techniques that no other "
    "betters in both. Beside it, where measured, stands the refusal of benign look-alikes with its axis reversed: a "
    "model that refuses everything is high on the left and at the foot on the right."
)
COLUMNS = {
    "label": "Label",
    "pipeline": "Pipeline",
    "model": "Base",
    "seed": "Seed",
    "utility": "Utility",
    "safety": "Safety",
    "over_refusal": "Over-refusal",
    "tax": "Tax",
    "portraits/toxicity": "Toxicity",
    "portraits/faithfulness": "Faithfulness",
    "wall_seconds": "Wall time (s)",
    "status": "Status",
    "run_id": "Run",
}
FORMATS = {"wall_seconds": ".1f", "seed": "g"}
SPOKEN = ("portraits/toxicity", "portraits/faithfulness")
TONES = {"INK": INK, "PAGE": PAGE, "GRID": GRID}
_TONE_PAIRS = [(tone["light"], tone["dark"]) for tone in TONES.values()]
MOST_WAYS = 60  # runs whose way a figure of the page shows, for it grows with each


class Shown(NamedTuple):
    """A figure under its heading, and its twin for narrow screens."""

    heading: str
    wide: go.Figure
    narrow: go.Figure | None = None


def write_report(
    table: pd.DataFrame,
    path: str | Path,
    *,
    figures: Mapping[str, go.Figure] | None = None,
    title: str = "What safety cost",
) -> Path:
    """Write a page: the safety–utility plane, what the runs kept of the geometry, and every run with its parameters.

    The page holds plotly.js itself, follows the reader's light or dark preference, and carries a content security
    policy that admits its own two scripts by their hashes and no request at all.

    Args:
        table: One row per run, as `workbench.study.runs.load_runs` returns it.
        path: The HTML file; it appears whole or not at all.
        figures: Heading → figure, shown below the plane.
        title: The heading of the page.

    Returns:
        The path.

    Raises:
        ValueError: The table has neither label nor technique.
    """
    planes = [*_planes(table)]
    others = [Shown(*item) for item in (*(figures or {}).items(), *geometry_figures(table))]
    boxes = [_figure(number, shown) for number, shown in enumerate([*planes, *others])]
    places = {"means": "Means", **({"more": "Geometry and more"} if others else {}), "runs-of": "Runs"}
    links = " · ".join(f'<a href="#{place}">{name}</a>' for place, name in places.items())
    how = f"<p>{HOW_TO_READ}</p>" if _measured(table, RATES[:2]) else ""
    intro = f"<h1>{_safe(title)}</h1>{how}<nav>{links}</nav>"
    n = len(planes)
    more = ['<div id="more"></div>', *boxes[n:]] if others else []
    sections = [intro, *boxes[:n], _means(table), *more, _runs(table), _environment(table)]
    data = {
        "figures": [_twins(shown) for shown in (*planes, *others)],
        "parameters": _parameters(table),
        "tones": _TONE_PAIRS,
        "config": CONFIG,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(_page(title, "\n".join(sections), data), encoding="utf-8")
    os.replace(partial, path)
    return path


def _planes(table: pd.DataFrame) -> Iterator[Shown]:
    """The planes of what was measured; one for each pipeline where all together would be too many to tell apart."""
    if _measured(table, SPOKEN):
        yield Shown("Toxicity and faithfulness", *(toxicity_faithfulness(table, on=on) for on in ("page", "column")))
    if not _measured(table, RATES[:2]):
        return
    runs = completed_runs(table)
    crowd = runs["pipeline"].nunique() > 1 and len(runs[["group", "pipeline"]].drop_duplicates()) > MOST
    parts = (
        [(f"Pipeline {str(name) or 'other'}", rows) for name, rows in runs.groupby("pipeline")]
        if crowd
        else [("", table)]
    )
    for heading, rows in parts:
        wide = safety_utility(rows, trajectories=MOST_WAYS)
        yield Shown(heading, wide, safety_utility(rows, trajectories=False, on="column"))


def _measured(table: pd.DataFrame, names: Sequence[str]) -> bool:
    """Whether a completed run has all of these scores."""
    done = table[table["status"].eq("completed")] if "status" in table else table
    return {*names} <= {*table} and bool(done[[*names]].notna().all(axis=1).any())


def _page(title: str, body: str, data: Mapping[str, Any]) -> str:
    scripts = [get_plotlyjs().replace("\r\n", "\n"), _asset("report.js")]  # a browser hashes plain line ends
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    admitted = " ".join(f"'sha256-{digest}'" for digest in hashes)
    policy = (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; script-src {admitted}; "
        "style-src 'unsafe-inline'; img-src data: blob:"
    )
    style = _asset("report.css").replace("FONT", FONT).replace("NEUTRAL", NEUTRAL)
    for name, tone in TONES.items():
        style = style.replace(f"{name}_LIGHT", tone["light"]).replace(f"{name}_DARK", tone["dark"])
    packed = json.dumps(data).replace("<", "\\u003c")  # plotly does so too, but does not promise it
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_safe(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
<script type="application/json" id="data">{packed}</script>
<script>{scripts[0]}</script>
<script>{scripts[1]}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _twins(shown: Shown) -> dict[str, str | None]:
    return {"wide": _fluid(shown.wide), "narrow": _fluid(shown.narrow) if shown.narrow else None}


def _fluid(figure: go.Figure) -> str:
    """A figure as JSON in the light tones and without a width, so that it fills its box."""
    text = str(pio.to_json(go.Figure(figure, _validate=False).update_layout(width=None, autosize=True), validate=False))
    for light, dark in _TONE_PAIRS:
        text = text.replace(f'"{dark}"', f'"{light}"')
    return text


def _figure(number: int, shown: Shown) -> str:
    """A box that scrolls by itself where the screen is narrower than the figure."""
    width, height = shown.wide.layout.width or 700, shown.wide.layout.height or 450
    title = f"<h2>{_safe(shown.heading)}</h2>" if shown.heading else ""
    box = f'<div class="figure" id="figure-{number}" data-width="{width:g}" style="height:{height:g}px"></div>'
    return f'{title}<div class="scroll">{box}</div>'


def _means(table: pd.DataFrame) -> str:
    """The intervals of each label, with its colour in the plane."""
    known = _with_tax(table)
    names = [name for name in (*RATES, "tax", *SPOKEN) if _measured(known, [name])]
    if not names:
        return ""
    runs = completed_runs(known, needed=[])
    runs = runs[runs[names].notna().any(axis=1)]
    means = group_means(runs, names)
    looks = looks_of(means)
    heads = ["Technique", "Pipeline", "Runs", *(COLUMNS[name] for name in names)]
    rows = []
    for row in means.to_dict("records"):
        look = looks[row["group"]]
        inside = "" if "open" in look.fill else f";background:{look.colour}"
        swatch = f'<span class="swatch" style="border-color:{look.colour}{inside}"></span>'
        cells = [row["pipeline"], row["runs"], *(told_interval(row, name) for name in names)]
        rows.append(f"<td>{swatch}{_safe(row['group'])}</td>" + "".join(f"<td>{_safe(cell)}</td>" for cell in cells))
    return (
        f'<h2 id="means">Means and 95 % intervals over {counted(runs)}</h2>'
        + _grid("".join(f"<th>{head}</th>" for head in heads), rows)
        + "<p>Tax: the base model's utility minus the aligned model's.</p>" * ("tax" in names)
    )


def _runs(table: pd.DataFrame) -> str:
    """All runs, failed ones too: a click on a heading sorts, one on a run shows its parameters, a field searches."""
    table = _with_tax(table)
    table = table if "label" in table else table.assign(label=table["technique"])
    if "status" in table and table["status"].eq("completed").all():
        table = table.drop(columns="status")
    present = {name: head for name, head in COLUMNS.items() if name in table}
    heads = "".join(f'<th scope="col"><button type="button">{head}</button></th>' for head in present.values())
    cells = zip(*(table[name].tolist() for name in present), strict=True)
    rows = ["".join(_cell(value, name) for name, value in zip(present, row, strict=True)) for row in cells]
    body = "".join(f'<tr data-run="{number}">{row}</tr>' for number, row in enumerate(rows))
    told = 'placeholder="update projection seed=1" aria-label="Search the runs and their parameters"'
    field = f'<input id="search" type="search" {told}>'
    count = f'<output id="count" for="search" aria-live="polite">{len(table)} runs</output>'
    note = '<span class="note"><kbd>/</kbd> searches names, scores and parameters; a run opens its parameters</span>'
    grid = f'<table id="runs"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return f'<h2 id="runs-of">Runs</h2><div class="search">{field}{count}{note}</div><div class="scroll">{grid}</div>'


def _parameters(table: pd.DataFrame) -> dict[str, list]:
    """The parameters of each run as numbers of names and of values, in turn: most are shared by most of the runs."""
    first = ("label", "technique", "pipeline", "model", "seed", "status")
    names = [*(name for name in first if name in table), *parameters_of(table)]
    values: dict[str, int] = {}
    of: list[list[int]] = [[] for _ in range(len(table))]
    for number, name in enumerate(names):
        for pairs, value in zip(of, table[name].tolist(), strict=True):
            if _known(value):
                pairs += [number, values.setdefault(str(value), len(values))]
    return {"names": names, "values": [*values], "of": of}


def _environment(table: pd.DataFrame) -> str:
    """Where the runs were made, from their records: each fact with the values it took."""
    facts: dict[str, set[str]] = {}
    for folder in table.get("path", pd.Series(dtype=object)).dropna():
        with suppress(OSError, ValueError):  # a table outlives its folders
            environment = flatten(Run.load(folder).record.get("environment", {}))
            for name, value in environment.items():
                facts.setdefault(name.removeprefix("versions."), set()).add(str(value))
    line = "; ".join(f"{name} {' / '.join(sorted(values))}" for name, values in facts.items())
    return f"<footer>{_safe(line)}</footer>" if line else ""


def _grid(heads: str, rows: list[str]) -> str:
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any, column: str) -> str:
    if not _known(value):
        return '<td class="number" data-value="NaN">–</td>'
    if column == "run_id":
        return f'<td><button type="button" aria-expanded="false">{_safe(value)}</button></td>'
    if isinstance(value, float):
        return f'<td class="number" data-value="{value!r}">{value:{FORMATS.get(column, "z.3f")}}</td>'
    return f'<td class="number">{value}</td>' if isinstance(value, int) else f"<td>{_safe(value)}</td>"


def _with_tax(table: pd.DataFrame) -> pd.DataFrame:
    blank = pd.Series(index=table.index, dtype=float)
    base, own = (pd.to_numeric(table.get(name, blank)) for name in ("base.utility", "utility"))
    return table.assign(tax=alignment_tax(base, own))


def _known(value: Any) -> bool:
    return isinstance(value, list | dict | tuple | np.ndarray) or not pd.isna(value)


def _safe(value: Any) -> str:
    return html.escape(str(value))
