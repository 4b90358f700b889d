"""Tallies: what every item gave to a score, from which come the score and its interval."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Share(NamedTuple):
    """What one item gives to a score, which is the sum of parts over the sum of wholes.

    A mean has wholes of 1; "correct of those attempted" has a whole of 0 where nothing was attempted; a rate over
    tokens or instructions has as many as the item holds.
    """

    part: float
    whole: float = 1.0


NOTHING = Share(0.0, 0.0)  # of an item that a score leaves out
Tally = Mapping[str, Sequence[Share]]
"""The shares of every item, in one order, by the name of the score."""
Measured = Mapping[str, float | Sequence[Share]]
"""Scores by name, each as the shares of its items or as a number."""


def pooled(measured: Measured) -> dict[str, float]:
    """The scores as numbers; one of which no item has any is left out."""
    scores = {name: _ratio(found) if isinstance(found, Sequence) else found for name, found in measured.items()}
    return {name: score for name, score in scores.items() if score is not None}


def shares(values: Iterable[float]) -> list[Share]:
    """Values of items as shares of their mean."""
    return [Share(float(value)) for value in values]


def tally_words(words: Sequence[Any], names: Sequence[str]) -> dict[str, list[Share]]:
    """The rate of every name among words, ``"…_rate"``; words that are no such name count in all wholes."""
    return {f"{name}_rate": shares(word == name for word in words) for name in names}


def tally_numbers(measured: Sequence[Any]) -> dict[str, list[Share]]:
    """The mean of every named number over the items that have it; a `Share` stands as it is."""
    named = [numbers if isinstance(numbers, Mapping) else {} for numbers in measured]
    return {
        name: [_share(numbers[name]) if name in numbers else NOTHING for numbers in named]
        for name in dict.fromkeys(name for numbers in named for name in numbers)
    }


def joined_draws(tally: Tally, n_rows: int) -> dict[str, list[Share]]:
    """Several draws of the same rows, one after another, as one item a row: answers to one prompt depend on it."""
    return {
        name: [
            Share(sum(s.part for s in found[i::n_rows]), sum(s.whole for s in found[i::n_rows])) for i in range(n_rows)
        ]
        for name, found in tally.items()
    }


def by_group(found: Sequence[Share], groups: Sequence[str]) -> tuple[dict[str, list[Share]], list[Share]]:
    """Shares by group, and those of the mean over groups, in which every group weighs the same.

    Items weigh 1 / (groups · items of their group), so that the sum of parts over that of wholes is the mean of the
    groups' means.
    """
    names = sorted(set(groups))
    parted = {name: [share for share, group in zip(found, groups, strict=True) if group == name] for name in names}
    weights = {name: len(names) * sum(share.whole for share in parted[name]) for name in names}
    even = [
        Share(share.part / weights[group], share.whole / weights[group])
        for share, group in zip(found, groups, strict=True)
    ]
    return parted, even


def _ratio(found: Sequence[Share]) -> float | None:
    whole = sum(share.whole for share in found)
    return sum(share.part for share in found) / whole if whole else None


def _share(value: float | Share) -> Share:
    return value if isinstance(value, Share) else Share(float(value))
