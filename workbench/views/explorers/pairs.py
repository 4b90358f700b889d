"""The pairs browser: contrastive groups a page at a time, with what was made of each anchor, by what, and what went."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
import plotly.graph_objects as go
import traitlets

from ..theme import GRID, INK, NEUTRAL, PAGE, safe, template
from .groups import Group, Said, dropped_html, group_html, read_groups
from .live import Explorer

STYLE = Path(__file__).with_name("pairs.css").read_text(encoding="utf-8")
ROW = ipywidgets.Layout(flex_flow="row wrap", align_items="center", grid_gap="2px 12px")
FILTERS = ("text", "kind", "with_entities", "score", "score_range")
EVERY = "every kind"
CUT, LINE = 150, 62  # characters of a text in the picture, and of a line of it


class PairsBrowser(Explorer):
    """Looks through contrastive groups: anchors with their positives and negatives, entities marked.

    All text is escaped; entities, hateful words and what is searched for are marked by elements of our own.

    Attributes:
        text: Only groups in which this stands, in any case.
        kind: Only groups with a text of this kind, such as `"entity_swap"`; "" for all.
        with_entities: Only groups with an entity.
        score: The score that `score_range` is about, such as `"toxicity"`; "" for none.
        score_range: Only groups with a score of at least the one and at most the other number.
        page: From 1 to `n_pages`; the first again after every change of a filter.
        page_size: Groups on a page.
        groups: The rows that pass the filters, as they were given.
        shown: The rows on the page.
        dropped: What the builder dropped: `side`, `generator`, `reason` and `n`; empty if it does not tell.
    """

    text = traitlets.Unicode("")
    kind = traitlets.Unicode("")
    with_entities = traitlets.Bool(False)
    score = traitlets.Unicode("")
    score_range = traitlets.Tuple(traitlets.Float(), traitlets.Float(), default_value=(-math.inf, math.inf))
    page = traitlets.Int(1)
    page_size = traitlets.Int(3, min=1)

    def __init__(self, groups: Iterable[Mapping[str, Any]], **traits: Any) -> None:
        """Look at groups.

        Args:
            groups: A dataset of `wb.build_pairs`, or any rows with `anchor`, `positives` and `negatives`, or with
                `chosen` and `rejected`; a table has rows too. `positive_kinds`, `negative_kinds`, `entities`,
                `provenance`, `toxic_spans` and columns of numbers are shown where they are.
            traits: The attributes above, to begin with.

        Raises:
            ValueError: There is no group, or one has other columns.
        """
        rows: Iterable[Any] = groups.to_dict("records") if isinstance(groups, pd.DataFrame) else groups
        self._all = read_groups(rows)
        self._words = [group.words for group in self._all]
        self._passed = self._all
        self.dropped: list[dict[str, Any]] = _report(groups).get("dropped", [])
        self._kinds = Counter(one.kind for group in self._all for one in group.said if one.kind)
        self._spans = _spans(self._all)
        self._build()
        begun = {name: traits.pop(name) for name in (*FILTERS, "page_size", "page") if name in traits}
        super().__init__([self._filters, self._pages, self._html], **traits)
        self._link()
        self._sift()
        for name, value in begun.items():
            setattr(self, name, value)

    @property
    def n_pages(self) -> int:
        """At least 1."""
        return max(1, math.ceil(len(self._passed) / self.page_size))

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The rows that pass the filters, as they were given."""
        return [group.row for group in self._passed]

    @property
    def shown(self) -> list[dict[str, Any]]:
        """The rows on the page."""
        return [group.row for group in self._on_page()]

    def still(self) -> go.Figure:
        """The page as a table, its texts cut."""
        lines = [(group, one) for group in self._on_page() for one in group.said]
        texts = [_cut(one) for _, one in lines]
        columns = {
            "Group": [str(group.number) for group, _ in lines],
            "Side": [one.side for _, one in lines],
            "Kind": [safe(one.kind.replace("_", " ")) for _, one in lines],
            "Text (entities in bold)": texts,
        }
        stripes = [GRID["light"] if one.side == "anchor" else PAGE["light"] for _, one in lines]
        look = {"align": "left", "font": {"color": INK["light"], "size": 12}, "line": {"color": NEUTRAL, "width": 0.3}}
        figure = go.Figure(
            go.Table(
                columnwidth=[1, 1.4, 2.4, 10],
                header={"values": [*columns], "fill": {"color": GRID["light"]}, **look},
                cells={"values": [*columns.values()], "fill": {"color": [stripes]}, "height": 20, **look},
            )
        )
        # plotly draws a row of plain text 20 pixels high; with markup in it 16 a line, and 15.
        height = 100 + sum(31 + 16 * text.count("<br>") if {"<", "&"} & {*text} else 20 for text in texts)
        where = f"{len(self._passed):,} of {len(self._all):,} groups, page {self.page} of {self.n_pages}"
        size = {"width": 940, "height": height, "margin": {"l": 8, "r": 8, "t": 44, "b": 8}}
        return figure.update_layout(template=template("light"), title_text=where, **size)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        kinds = [(EVERY, ""), *((f"{kind.replace('_', ' ')} ({n:,})", kind) for kind, n in self._kinds.most_common())]
        self._text = ipywidgets.Text(description="Search", placeholder="in any text")
        self._kind = ipywidgets.Dropdown(options=kinds, description="Kind")
        self._with = ipywidgets.Checkbox(description="Only with entities", indent=False)
        scores = [("any score", ""), *((name.replace("_", " "), name) for name in self._spans)]
        self._score = ipywidgets.Dropdown(options=scores, description="Score")
        self._range = ipywidgets.FloatRangeSlider(min=0, max=1, value=(0, 1), step=0.01, description="Between")
        self._score.layout.display = None if self._spans else "none"
        self._range.layout.display = "none"
        self._with.layout.width = "auto"
        self._filters = ipywidgets.HBox([self._text, self._kind, self._with, self._score, self._range], layout=ROW)
        self._before = ipywidgets.Button(description="Previous", icon="chevron-left")
        self._next = ipywidgets.Button(description="Next", icon="chevron-right")
        self._slider = ipywidgets.IntSlider(min=1, max=2, value=1, description="Page", readout=False)
        self._count = ipywidgets.Label()
        self._pages = ipywidgets.HBox([self._before, self._next, self._slider, self._count], layout=ROW)
        self._html = ipywidgets.HTML()

    def _link(self) -> None:
        both = {"text": self._text, "kind": self._kind, "with_entities": self._with, "score": self._score}
        for name, control in both.items():
            traitlets.link((self, name), (control, "value"))
        self._range.observe(self._slide, "value")
        self._slider.observe(self._turn, "value")
        self._before.on_click(lambda _: self._go(-1))
        self._next.on_click(lambda _: self._go(1))

    def _slide(self, change: dict[str, Any]) -> None:
        if self.score:
            self.score_range = change["new"]

    def _turn(self, change: dict[str, Any]) -> None:
        self.page = min(change["new"], self.n_pages)

    def _go(self, step: int) -> None:
        self.page = min(max(self.page + step, 1), self.n_pages)

    @traitlets.validate("kind")
    def _known_kind(self, proposal: dict[str, Any]) -> str:
        return _one_of(proposal["value"], self._kinds, "kind")

    @traitlets.validate("score")
    def _known_score(self, proposal: dict[str, Any]) -> str:
        return _one_of(proposal["value"], self._spans, "score")

    @traitlets.validate("page")
    def _known_page(self, proposal: dict[str, Any]) -> int:
        if not 1 <= proposal["value"] <= self.n_pages:
            raise ValueError(f"page: expected a number from 1 to {self.n_pages}, got {proposal['value']}.")
        return int(proposal["value"])

    @traitlets.observe("score")
    def _measure(self, change: dict[str, Any]) -> None:
        """Let the slider reach over all values of the score that is chosen."""
        low, high = self._spans.get(change["new"], (0.0, 1.0))
        high = high if high > low else low + 1
        self._range.min, self._range.max = min(low, self._range.min), max(high, self._range.max)
        self._range.min, self._range.max, self._range.step = low, high, (high - low) / 100
        self._range.value = (low, high)
        self._range.layout.display = None if change["new"] else "none"
        self.score_range = (low, high) if change["new"] else (-math.inf, math.inf)

    @traitlets.observe(*FILTERS, "page_size")
    def _sift(self, change: dict[str, Any] | None = None) -> None:
        sought = self.text.casefold()
        pairs = zip(self._all, self._words, strict=True)
        self._passed = [group for group, words in pairs if sought in words and self._passes(group)]
        if self.score:  # as far as the slider reaches
            self._range.value = tuple(min(max(end, self._range.min), self._range.max) for end in self.score_range)
        if self.page == 1:
            self._draw()
        self.page = 1

    def _passes(self, group: Group) -> bool:
        low, high = self.score_range
        return (
            (not self.kind or any(one.kind == self.kind for one in group.said))
            and (not self.with_entities or any(span.look == "entity" for one in group.said for span in one.spans))
            and (not self.score or any(low <= value <= high for value in group.values(self.score)))
        )

    @traitlets.observe("page")
    def _draw(self, change: dict[str, Any] | None = None) -> None:
        self._slider.max = max(2, self.n_pages)  # a slider needs room
        self._slider.value, self._slider.disabled = self.page, self.n_pages == 1
        self._before.disabled, self._next.disabled = self.page == 1, self.page == self.n_pages
        self._count.value = f"{self.page:,} of {self.n_pages:,} · {len(self._passed):,} of {len(self._all):,} groups"
        shown = "".join(group_html(group, self.text) for group in self._on_page())
        shown = shown or "<p>No group passes these filters.</p>"
        self._html.value = (
            f'<style>{STYLE}</style><div class="workbench-pairs">{shown}{dropped_html(self.dropped)}</div>'
        )

    def _on_page(self) -> Sequence[Group]:
        return self._passed[(self.page - 1) * self.page_size : self.page * self.page_size]


def _spans(groups: Sequence[Group]) -> dict[str, tuple[float, float]]:
    """The least and the greatest value of every score."""
    known = [scores for group in groups for scores in (group.scores, *(one.scores for one in group.said))]
    names = dict.fromkeys(name for scores in known for name in scores)
    values = {name: [value for group in groups for value in group.values(name)] for name in names}
    return {name: (min(found), max(found)) for name, found in values.items()}


def _report(groups: Any) -> dict[str, Any]:
    """What `wb.build_pairs` counted, which lies in the description of its dataset."""
    text = getattr(getattr(groups, "info", None), "description", None) or "{}"
    try:
        report = json.loads(text)
    except json.JSONDecodeError:  # another's description
        return {}
    return report if isinstance(report, dict) else {}


def _one_of(value: str, known: Iterable[str], name: str) -> str:
    if value and value not in known:
        raise ValueError(f'{name}: expected one of {sorted(known)}, or "" for all, got {value!r}.')
    return value


def _cut(one: Said) -> str:
    """The beginning of a text in lines of the picture, its entities in bold."""
    edges = {edge for span in one.spans if span.look == "entity" for edge in (span.start, span.end)}
    text = one.text[:CUT] + "…" * (len(one.text) > CUT)
    edges |= {*range(LINE, len(text), LINE), 0, len(text)}
    pieces = []
    for left, right in zip(ordered := sorted(edge for edge in edges if edge <= len(text)), ordered[1:], strict=False):
        piece = safe(text[left:right].replace("\n", " "))
        bold = any(span.start <= left and right <= span.end for span in one.spans if span.look == "entity")
        pieces += ["<br>"] * (left > 0 and left % LINE == 0) + [f"<b>{piece}</b>" if bold else piece]
    return "".join(pieces) or "(empty)"
