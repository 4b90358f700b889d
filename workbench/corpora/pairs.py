"""Contrastive groups: texts with positives and negatives, the entities in all of them, and where they came from.

Building them with large models takes hours, so whatever a generator has made is on disk before the next batch begins:
an interrupted build goes on where it stopped, and a finished one is read again at once.
"""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from workbench.corpora.entities import Entity, EntityRecognizer, mentions, merged, trimmed
from workbench.corpora.filters import DifferenceFilter, Filter, MeaningFilter
from workbench.corpora.rewriting import Generator, batches
from workbench.corpora.swapping import entity_names
from workbench.progress import progress_bar

if TYPE_CHECKING:
    from datasets import Dataset, Features

__all__ = [
    "GROUP_COLUMNS",
    "DifferenceFilter",
    "Filter",
    "MeaningFilter",
    "build_pairs",
    "group_features",
    "mark_entities",
    "pair_report",
    "show_pairs",
]

GROUP_COLUMNS = (
    "prompt",
    "anchor",
    "positives",
    "positive_kinds",
    "negatives",
    "negative_kinds",
    "entities",
    "provenance",
)
SIDES = {"positives": "positive_kinds", "negatives": "negative_kinds"}

log = logging.getLogger(__name__)


def group_features(messages: bool = False, source: bool = False) -> "Features":
    """The types of `GROUP_COLUMNS`, which hold where lists are empty too.

    Args:
        messages: ``prompt`` is a list of messages instead of a string.
        source: There is a column ``source``.
    """
    from datasets import Features, List, Value

    text = Value("string")
    entities = List({"start": Value("int64"), "end": Value("int64"), "label": text})
    origin = List({"generator": text, "seed": Value("int64")})
    columns: dict[str, Any] = {"prompt": List({"role": text, "content": text}) if messages else text, "anchor": text}
    for side, kinds in SIDES.items():
        columns |= {side: List(text), kinds: List(text)}
    columns["entities"] = {"anchor": entities, "positives": List(entities), "negatives": List(entities)}
    columns["provenance"] = dict.fromkeys(SIDES, origin)
    return Features(columns | ({"source": text} if source else {}))


def build_pairs(
    rows: "Dataset | Iterable[str | Mapping[str, Any]]",
    positives: Sequence[Generator] = (),
    negatives: Sequence[Generator] = (),
    *,
    recognizer: EntityRecognizer | None = None,
    filters: Sequence[Filter] = (),
    require: Sequence[str] = (),
    seed: int = 0,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> "Dataset":
    """Contrastive groups of texts, in the columns `GROUP_COLUMNS` (and ``source`` where the rows have it).

    The generators work one after the other, so one model (two for back-translation) is held at a time. Copies of the
    anchor, blank texts and repetitions are dropped, then what the filters refuse; `pair_report` says how many and why.

    Args:
        rows: Texts, or rows with ``anchor`` (or ``text``) and, if they like, ``prompt``, ``source`` and ``entities``.
        positives: What makes texts that say the same.
        negatives: What makes texts that must not be said.
        recognizer: What finds entities; None takes the embedded `EntityRecognizer`. Rows that bring entities keep them.
        filters: Applied in their order, after all generators.
        require: ``"positives"``, ``"negatives"`` or both: groups without them are left out. By default they stay, with
            empty lists.
        seed: Of everything that is drawn.
        cache_dir: Where candidates are kept, one file of JSON lines for each generator with its parameters, appended to
            after every batch; one build at a time. None keeps nothing.
        progress: Show a bar for each generator that has something to make.

    Raises:
        ValueError: A row has no text, or rows mix prompts of both forms.
        RuntimeError: A generator failed; says which, and on which row. What was made before is in the cache.
    """
    from datasets import Dataset

    if unknown := set(require) - set(SIDES):
        raise ValueError(f"require: expected some of {list(SIDES)}, got {sorted(unknown)}.")
    recognizer = recognizer or EntityRecognizer()
    folder = None if cache_dir is None else Path(cache_dir)
    groups = _read(rows)
    bare = [group for group in groups if group["entities"] is None]
    for group, entities in zip(bare, _recognised([g["anchor"] for g in bare], recognizer, folder), strict=True):
        group["entities"] = entities
    made: list[dict[str, Any]] = []
    known: dict[tuple[str, str], list[Entity]] = {}
    dropped: Counter[tuple[str, str, str]] = Counter()
    for side, generators in (("positives", positives), ("negatives", negatives)):
        for whole in generators:
            for generator in whole.parts():
                generator = generator.prepared(groups)
                candidates, fresh = _made(generator, groups, seed, folder, progress)
                made.append({"side": side, "generator": generator.name, **generator.parameters(), "rows_made": fresh})
                _add(groups, candidates, side, generator, seed, dropped)
                pairs = [(group, text) for group, texts in zip(groups, candidates, strict=True) for text in texts]
                found = ((group["anchor"], text, generator.entities_in(group, text)) for group, text in pairs)
                known |= {(anchor, text): entities for anchor, text, entities in found if entities is not None}
    for check in filters:
        _apply(check, groups, dropped)
    kept = [group for group in groups if all(group[side] for side in require)]
    report = {
        "rows": len(groups),
        "groups": len(kept),
        "without": {side: sum(not group[side] for group in kept) for side in SIDES},
        "left_out": {"without " + " or ".join(require): len(groups) - len(kept)} if require else {},
        "dropped": [{"side": s, "generator": g, "reason": r, "n": n} for (s, g, r), n in sorted((+dropped).items())],
        "generators": made,
        "filters": [check.parameters() for check in filters],
        "recognizer": recognizer.parameters(),
        "seed": seed,
    }
    log.info("contrastive groups: %s", json.dumps({k: report[k] for k in ("rows", "groups", "without", "dropped")}))
    features = group_features(any(isinstance(g["prompt"], list) for g in groups), any("source" in g for g in groups))
    finished = _finished(kept, known, recognizer, folder)
    # By columns, for a list of no rows has none.
    dataset = Dataset.from_dict({name: [group.get(name) for group in finished] for name in features}, features=features)
    dataset.info.description = json.dumps(report)
    return dataset


def pair_report(dataset: "Dataset") -> dict[str, Any]:
    """What `build_pairs` counted and used: rows, groups without a side, what was dropped by whom and why, parameters.

    It lies in ``dataset.info.description`` and stays with the dataset through selecting, mapping and saving.
    """
    try:
        return json.loads(dataset.info.description)
    except json.JSONDecodeError as error:
        raise ValueError("Expected a dataset that build_pairs made, got one without its report.") from error


def show_pairs(dataset: "Dataset | Sequence[Mapping[str, Any]]", n: int = 5) -> list[dict[str, Any]]:
    """The first groups as one plain row for each text, entities marked as ``[Anna PERSON]``.

    Texts are as they are: `workbench.views.text_table` shows them, and escapes what is markup.
    """
    shown = []
    for i, group in zip(range(n), dataset, strict=False):
        marked = mark_entities(group["anchor"], group["entities"]["anchor"])
        shown.append({"group": i, "side": "anchor", "kind": "", "text": marked, "generator": group.get("source") or ""})
        for side, kinds in SIDES.items():
            texts, spans, origins = group[side], group["entities"][side], group["provenance"][side]
            shown += [
                {"group": i, "side": side[:-1], "kind": kind, "text": mark_entities(*pair), "generator": o["generator"]}
                for kind, o, *pair in zip(group[kinds], origins, texts, spans, strict=True)
            ]
    return shown


def mark_entities(text: str, entities: Sequence[Entity]) -> str:
    """A text with its entities in brackets, each with its label."""
    for entity in sorted(entities, key=lambda entity: -entity["start"]):
        start, end = entity["start"], entity["end"]
        text = f"{text[:start]}[{text[start:end]} {entity['label']}]{text[end:]}"
    return text


def _read(rows: Iterable[str | Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = []
    for i, row in enumerate([rows] if isinstance(rows, str) else rows):
        given: dict[str, Any] = {"anchor": row} if isinstance(row, str) else dict(row)
        anchor = given.get("anchor", given.get("text"))
        if not isinstance(anchor, str) or not anchor.strip():
            raise ValueError(
                f"Row {i}: expected a text in the column anchor or text, got {anchor!r} among {sorted(given)}; leave "
                "rows without text out, or rename the column."
            )
        entities = given.get("entities")
        entities = entities["anchor"] if isinstance(entities, Mapping) else entities  # a group that was built before
        for entity in entities or ():
            trimmed(anchor, entity)
        group = {"anchor": anchor, "prompt": given.get("prompt") or "", "entities": entities}
        group |= {side: [] for side in SIDES} | {kinds: [] for kinds in SIDES.values()}
        group["provenance"] = {side: [] for side in SIDES}
        groups.append(group | ({"source": given["source"]} if "source" in given else {}))
    if not groups:
        raise ValueError("Expected at least one text to build groups of, got none.")
    if len({type(group["prompt"]) for group in groups}) > 1:
        raise ValueError("Expected prompts of one form, got strings and messages; give every row a list of messages.")
    return groups


def _recognised(texts: Sequence[str], recognizer: EntityRecognizer, folder: Path | None) -> list[list[Entity]]:
    with _Store(folder, recognizer.parameters()) as store:
        for batch in batches([text for text in dict.fromkeys(texts) if _hash(text) not in store], 256):
            store.add({_hash(text): found for text, found in zip(batch, recognizer(batch), strict=True)})
        return [store[_hash(text)] for text in texts]


def _made(
    generator: Generator, rows: Sequence[dict[str, Any]], seed: int, folder: Path | None, progress: bool
) -> tuple[list[list[str]], int]:
    """The candidates for each row, from the cache or made now, and for how many rows they were made."""
    keys = [_hash([seed, *(row[column] for column in generator.reads)]) for row in rows]
    with _Store(folder, generator.parameters()) as store:
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in store}
        shown = {"desc": generator.name, "unit": "row", "disable": not (progress and missing)}
        try:
            with progress_bar(total=len(missing), **shown) as bar:
                for batch in batches(list(missing), generator.batch_size):
                    texts = _asked(generator, [missing[key] for key in batch], seed)
                    store.add(dict(zip(batch, texts, strict=True)))
                    bar.update(len(batch))
        finally:
            generator.release()
        return [store[key] for key in keys], len(missing)


def _asked(generator: Generator, rows: Sequence[dict[str, Any]], seed: int) -> list[list[str]]:
    first = f"{generator.name} failed on {len(rows)} rows, of which the first is {rows[0]['anchor'][:80]!r}"
    try:
        texts = generator(rows, seed)
    except Exception as error:
        raise RuntimeError(
            f"{first}: {type(error).__name__}: {error}. With a cache_dir, what was made before is kept."
        ) from error
    if len(texts) != len(rows) or any(isinstance(one, str) for one in texts):
        raise RuntimeError(f"{first}: expected a list of texts for each row, got {len(texts)} results.")
    return [list(one) for one in texts]


def _add(
    groups: Sequence[dict[str, Any]],
    candidates: Sequence[Sequence[str]],
    side: str,
    generator: Generator,
    seed: int,
    dropped: Counter[tuple[str, str, str]],
) -> None:
    for group, texts in zip(groups, candidates, strict=True):
        for text in texts:
            blank, copy = not text.strip(), text.strip() == group["anchor"].strip()
            if blank or copy or text in group[side]:
                reason = "nothing came back" if blank else "copy of the anchor" if copy else "repetition"
                dropped[side, generator.name, reason] += 1
                continue
            group[side].append(text)
            group[SIDES[side]].append(generator.kind)
            group["provenance"][side].append({"generator": generator.name, "seed": seed})


def _apply(check: Filter, groups: Sequence[dict[str, Any]], dropped: Counter[tuple[str, str, str]]) -> None:
    for group, stays in zip(groups, check(groups), strict=True):
        columns = (group, check.side), (group, SIDES[check.side]), (group["provenance"], check.side)
        for origin, stay in zip(group["provenance"][check.side], stays, strict=True):
            dropped[check.side, origin["generator"], check.reason] += not stay
        for holder, name in columns:
            holder[name] = [value for value, stay in zip(holder[name], stays, strict=True) if stay]


def _finished(
    groups: Sequence[dict[str, Any]],
    known: Mapping[tuple[str, str], list[Entity]],
    recognizer: EntityRecognizer,
    folder: Path | None,
) -> list[dict[str, Any]]:
    """Groups with the entities of every text: as its generator knows them, or as they are recognised."""
    texts = [text for group in groups for side in SIDES for text in group[side]]
    found = dict(zip(texts, _recognised(texts, recognizer, folder), strict=True))

    def entities(group: Mapping[str, Any], text: str) -> list[Entity]:
        own = known.get((group["anchor"], text))
        # What is an entity of the anchor is one elsewhere, too, even where a recogniser fails to see it.
        return merged(found[text], mentions(text, entity_names(group))) if own is None else own

    marked = [{side: [entities(group, text) for text in group[side]] for side in SIDES} for group in groups]
    return [g | {"entities": {"anchor": g["entities"], **sides}} for g, sides in zip(groups, marked, strict=True)]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class _Store:
    """What was made, by key, in a file of JSON lines that grows batch by batch and may be cut off at any moment."""

    def __init__(self, folder: Path | None, parameters: Mapping[str, Any]) -> None:
        self.found: dict[str, Any] = {}
        self.file: IO[str] | None = None
        self.path = folder / f"{_hash(parameters)[:16]}.jsonl" if folder else None
        self.parameters = parameters
        if self.path and self.path.is_file():
            self._read(self.path)

    def __enter__(self) -> "_Store":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()

    def __contains__(self, key: str) -> bool:
        return key in self.found

    def __getitem__(self, key: str) -> Any:
        return self.found[key]

    def add(self, made: Mapping[str, Any]) -> None:
        """Keep these, on disk before this returns."""
        self.found |= made
        if self.path is None:
            return
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a", encoding="utf-8")
            if self.file.tell() == 0:
                self.file.write(json.dumps({"parameters": self.parameters}) + "\n")
        self.file.writelines(json.dumps({"key": key, "made": one}) + "\n" for key, one in made.items())
        self.file.flush()
        os.fsync(self.file.fileno())

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # killed in the middle of a line, which the next one must not continue
            os.truncate(path, len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                if "key" in row:
                    self.found[row["key"]] = row["made"]
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: expected a JSON line with key and made, got {line[:60]!r}; delete the "
                    "line, and its row is made anew."
                ) from error
