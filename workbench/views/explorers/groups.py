"""Contrastive groups as plain data, and as HTML in which every text is inert and its entities are marked."""

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

SIDES = {"positives": "positive", "negatives": "negative"}
AT_ONCE, AT_MOST = 1000, 20_000  # characters of a text that are seen, and that can be unfolded


class Span(NamedTuple):
    """Characters of a text that are marked.

    Attributes:
        start: The first.
        end: The one after the last.
        look: `"entity"`, `"toxic"` or `"found"`.
        label: What it is, if that is said.
    """

    start: int
    end: int
    look: str
    label: str = ""


@dataclass(frozen=True)
class Said:
    """One text of a group.

    Attributes:
        side: `"prompt"`, `"anchor"`, `"positive"` or `"negative"`.
        text: As it is.
        kind: Such as `"paraphrase"` or `"entity_swap"`.
        origin: What made it.
        spans: Its entities, and what in it is toxic.
        scores: What is known of it in numbers.
    """

    side: str
    text: str
    kind: str = ""
    origin: str = ""
    spans: Sequence[Span] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """One row of a dataset of groups.

    Attributes:
        number: Its place among the rows, from 0.
        row: As it was given.
        prompt: What its texts answer or go on from.
        source: Where the anchor comes from, if that is known.
        said: The anchor, if there is one, then the positives, then the negatives.
        scores: What is known of the whole group in numbers.
    """

    number: int
    row: dict[str, Any]
    prompt: str
    source: str
    said: Sequence[Said]
    scores: Mapping[str, float]

    @property
    def words(self) -> str:
        """All of its texts, for a search that minds no case."""
        return "\n".join([self.prompt, *(one.text for one in self.said)]).casefold()

    def values(self, score: str) -> list[float]:
        """All that is known under the name of a score: of the group, and of its texts."""
        return [known[score] for known in (self.scores, *(one.scores for one in self.said)) if score in known]


def read_groups(rows: Iterable[Mapping[str, Any]]) -> list[Group]:
    """Groups of rows in the columns that `build_pairs` gives, or of preferences (`prompt`, `chosen`, `rejected`).

    Beside these, numbers in a column of their own are scores of the group, and so are lists of numbers such as
    `positive_meaning` of its texts.

    Raises:
        ValueError: There is no row, or one has other columns.
    """
    groups = [replace(_group(number, _plain(row)), row=dict(row)) for number, row in enumerate(rows)]
    if not groups:
        raise ValueError("expected at least one group to look at, got none: build some with wb.build_pairs.")
    return groups


def _plain(value: Any) -> Any:
    """A row of a table as one of a dataset: arrays as lists, and what is missing as None."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(part) for part in value]
    return None if pd.api.types.is_scalar(value) and pd.isna(value) else value


def _group(number: int, row: dict[str, Any]) -> Group:
    if not {"anchor", *SIDES} <= {*row} and not {"chosen", "rejected"} <= {*row}:
        raise ValueError(
            f"row {number}: expected the columns anchor, positives and negatives, as wb.build_pairs gives them, or "
            f"chosen and rejected, got {[*row]}: rename them."
        )
    asked, source = as_text(row.get("prompt")), as_text(row.get("source"))
    if "anchor" not in row:
        pair = {"chosen": "positive", "rejected": "negative"}
        answers = [Said(side, as_text(row[column]), column) for column, side in pair.items()]
        return Group(number, row, asked, source, answers, _numbers(row))
    entities, toxic = row.get("entities") or {}, row.get("toxic_spans") or ()
    spans = [*_spans(entities.get("anchor"), "entity"), *_spans(toxic, "toxic")]
    said = [Said("anchor", as_text(row["anchor"]), spans=spans)] if row["anchor"] is not None else []
    said += [one for side in SIDES for one in _side(row, side, entities.get(side) or ())]
    return Group(number, row, asked, source, said, _numbers(row))


def _side(row: Mapping[str, Any], side: str, entities: Sequence[Any]) -> Iterator[Said]:
    name = SIDES[side]
    texts = row[side] or ()
    kinds = row.get(f"{name}_kinds") or ()
    origins = (row.get("provenance") or {}).get(side) or ()
    lists = {k.removeprefix(f"{name}_"): v for k, v in row.items() if k.startswith(f"{name}_") and k != f"{name}_kinds"}
    for i, text in enumerate(texts):
        scores = {k: v[i] for k, v in lists.items() if isinstance(v, Sequence) and i < len(v) and _is_number(v[i])}
        origin = as_text(origins[i].get("generator")) if i < len(origins) else ""
        spans = _spans(entities[i] if i < len(entities) else (), "entity")
        yield Said(name, as_text(text), as_text(kinds[i]) if i < len(kinds) else "", origin, [*spans], scores)


def _spans(given: Iterable[Mapping[str, Any]] | None, look: str) -> Iterator[Span]:
    for one in given or ():
        yield Span(int(one["start"]), int(one["end"]), look, as_text(one.get("label")))


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def as_text(value: Any) -> str:
    """A text, or the contents of messages; nothing is an empty text, and half a character a question mark."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return "\n".join(as_text(one.get("content")) if isinstance(one, Mapping) else as_text(one) for one in value)
    return str(value).encode("utf-8", "replace").decode()


def marked(text: str, spans: Iterable[Span], start: int = 0, end: int | None = None) -> str:
    """Characters `start` to `end` of a text as HTML: all of it escaped, in elements of our own where it is marked.

    Spans may overlap, and those that lie outside are passed over.
    """
    end = len(text) if end is None else min(end, len(text))
    known = [span for span in spans if max(span.start, start) < min(span.end, end)]
    edges = {start, end, *(min(max(edge, start), end) for span in known for edge in (span.start, span.end))}
    pieces = []
    for left, right in zip(ordered := sorted(edges), ordered[1:], strict=False):
        here = [span for span in known if span.start <= left and right <= span.end]
        piece = html.escape(text[left:right])
        looks = " ".join(sorted({span.look for span in here}))
        labels = ", ".join(span.label for span in here if span.label and right == min(span.end, end))
        label = f' data-label="{html.escape(labels)}"' if labels else ""
        pieces.append(f'<span class="{looks}"{label}>{piece}</span>' if here else piece)
    return "".join(pieces)


def group_html(group: Group, sought: str = "") -> str:
    """A group as HTML; where `sought` stands in it, in any case, it is marked as found."""
    origins = {one.origin for one in group.said if one.side != "anchor"}
    by_one = f"by {origins.pop()}" if len(origins) == 1 and "" not in origins else ""
    facts = [f"group {group.number}", *filter(None, [group.source]), *_scores(group.scores), *filter(None, [by_one])]
    rows = [_row(Said("prompt", group.prompt), sought)] if group.prompt else []
    rows += [_row(replace(one, origin="") if by_one else one, sought) for one in group.said]
    return f"<section><h4>{html.escape(' · '.join(facts))}</h4>{''.join(rows)}</section>"


def _row(one: Said, sought: str) -> str:
    text, spans = one.text, [*one.spans, *_found(one.text, sought)]
    shown = marked(text, spans, 0, AT_ONCE) or "<i>empty</i>"
    if len(text) > AT_ONCE:
        rest = marked(text, spans, AT_ONCE, AT_MOST)
        beyond = f" <i>… and {len(text) - AT_MOST:,} more</i>" if len(text) > AT_MOST else ""
        shown += f"<details><summary>{len(text) - AT_ONCE:,} more characters</summary>{rest}{beyond}</details>"
    about = ", ".join(filter(None, [one.kind.replace("_", " "), *_scores(one.scores)]))
    what = html.escape(one.side) + (f" <b>{html.escape(about)}</b>" if about else "")
    what += f'<span class="origin">by {html.escape(one.origin)}</span>' if one.origin not in ("", one.kind) else ""
    return f'<div class="{one.side}"><span class="what">{what}</span><div class="text" dir="auto">{shown}</div></div>'


def _found(text: str, sought: str) -> Iterator[Span]:
    """Where a text holds what is sought; not where folding the case changes its length, for places would be others."""
    folded, sought = text.casefold(), sought.casefold()
    place = folded.find(sought) if sought and len(folded) == len(text) else -1
    while place >= 0:
        yield Span(place, place + len(sought), "found")
        place = folded.find(sought, place + len(sought))


def _scores(scores: Mapping[str, float]) -> list[str]:
    return [f"{name.replace('_', ' ')} {value:.3g}" for name, value in scores.items()]


def dropped_html(dropped: Sequence[Mapping[str, Any]]) -> str:
    """What the builder dropped, by whom and why, folded; nothing where it dropped nothing."""
    if not dropped:
        return ""
    columns = ("n", "side", "generator", "reason")
    cells = ["".join(f"<td>{html.escape(as_text(one.get(name)))}</td>" for name in columns) for one in dropped]
    heads = "".join(f"<th>{name}</th>" for name in columns)
    total = sum(int(one["n"]) for one in dropped)
    table = f"<table><tr>{heads}</tr>{''.join(f'<tr>{cell}</tr>' for cell in cells)}</table>"
    return f"<details><summary>{total:,} texts were dropped when these were built</summary>{table}</details>"
