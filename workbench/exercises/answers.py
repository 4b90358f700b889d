"""What counts as an answer to an exercise, when two answers are the same, and what is said of one.

An exercise is data: the kind of its answer, a function that computes the true one, a sentence of why, a hint, and hints
for the slips that are likely. Nothing here knows a particular exercise.
"""

import html
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class Kind(Protocol):
    """What an answer may be."""

    @property
    def expects(self) -> str:
        """The answer in words: "a number"."""
        ...

    def read(self, answer: Any) -> Any:
        """The answer in the form that is compared; ValueError, in words for the reader, if it is of another kind."""
        ...

    def same(self, answer: Any, truth: Any) -> bool:
        """Whether an answer that was read is the true one."""
        ...


@dataclass(frozen=True)
class Number:
    """One number.

    Attributes:
        unit: What it is a number of, in words; empty where the question says it all.
        tolerance: How far it may lie from the true one, relative to that; where the true one is 0, in its unit.
    """

    unit: str = ""
    tolerance: float = 0.005

    @property
    def expects(self) -> str:
        """In words."""
        return f"a number ({self.unit})" if self.unit else "a number"

    def read(self, answer: Any) -> float:
        """As a float: of ints, floats and what NumPy and torch make of them."""
        if isinstance(answer, str | bytes | bool):
            raise ValueError(f"Expected {self.expects}, got {reprlib.repr(answer)}: write it without quotes, as 0.5.")
        try:
            number = float(answer)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"Expected {self.expects}, got {reprlib.repr(answer)}: write it as 0.5.") from None
        if math.isnan(number):
            raise ValueError(f"Expected {self.expects}, got nan: something in your computation is not defined.")
        return number

    def same(self, answer: float, truth: float) -> bool:
        """Within the tolerance."""
        return math.isclose(answer, truth, rel_tol=self.tolerance, abs_tol=self.tolerance if truth == 0 else 0)


@dataclass(frozen=True)
class Numbers:
    """Several numbers in a stated order.

    Attributes:
        parts: What each of them is, in order.
        tolerance: Of each, as in `Number`.
    """

    parts: tuple[str, ...]
    tolerance: float = 0.005

    @property
    def expects(self) -> str:
        """In words."""
        return f"{len(self.parts)} numbers in this order: ({', '.join(self.parts)})"

    def read(self, answer: Any) -> tuple[float, ...]:
        """As a tuple of floats."""
        given = _members(answer)
        if isinstance(answer, Mapping | set | frozenset) or len(given) != len(self.parts):
            raise ValueError(f"Expected {self.expects}, got {reprlib.repr(answer)}: write them as (0.5, 0.5).")
        return tuple(Number(part).read(value) for part, value in zip(self.parts, given, strict=True))

    def same(self, answer: tuple[float, ...], truth: tuple[float, ...]) -> bool:
        """Each within the tolerance."""
        number = Number(tolerance=self.tolerance)
        return all(number.same(a, t) for a, t in zip(answer, truth, strict=True))


@dataclass(frozen=True)
class Word:
    """One word or name, in any case; one of `options` where there are some."""

    options: tuple[str, ...] = ()

    @property
    def expects(self) -> str:
        """In words."""
        return f"one of {_listed(self.options)}" if self.options else "a word, in quotes"

    def read(self, answer: Any) -> str:
        """Without regard to case, hyphens and blanks around it."""
        if not isinstance(answer, str):
            raise ValueError(f"Expected {self.expects}, got {reprlib.repr(answer)}: write it in quotes.")
        word = _plain(answer)
        if self.options and word not in map(_plain, self.options):
            raise ValueError(f"Expected {self.expects}, got {reprlib.repr(answer)}.")
        return word

    def same(self, answer: str, truth: str) -> bool:
        """The same word."""
        return answer == _plain(truth)


@dataclass(frozen=True)
class Words:
    """Some of the `options`, in any order."""

    options: tuple[str, ...]

    @property
    def expects(self) -> str:
        """In words."""
        return f"a set with some of {_listed(self.options)}"

    def read(self, answer: Any) -> frozenset[str]:
        """As a set; one option alone may stand without brackets."""
        return frozenset(Word(self.options).read(name) for name in _members(answer))

    def same(self, answer: frozenset[str], truth: Iterable[str]) -> bool:
        """The same members."""
        return answer == {_plain(name) for name in truth}


@dataclass(frozen=True)
class Exercise:
    """A question whose answer can be checked. The question itself stands in the notebook.

    Attributes:
        kind: What an answer may be.
        truth: Computes the true answer; it is called when an answer is checked.
        why: Said of a right answer: the one sentence that should stay.
        hint: Said of a wrong answer, without giving the right one away.
        slips: A likely wrong answer, or a function that computes it → the hint that fits it, instead of `hint`.
    """

    kind: Kind
    truth: Callable[[], Any]
    why: str
    hint: str
    slips: tuple[tuple[Any, str], ...] = field(default=())

    def judge(self, answer: Any) -> "Verdict":
        """The verdict on an answer; None is no answer."""
        if answer is None:
            return Verdict(None, f"No answer yet. Expected is {self.kind.expects}.")
        try:
            given = self.kind.read(answer)
        except ValueError as refusal:
            return Verdict(False, f"Not yet. {refusal}")
        if self.kind.same(given, self.truth()):
            return Verdict(True, f"Right. {self.why}")
        return Verdict(False, f"Not yet. {self._hint_for(given)}")

    def _hint_for(self, given: Any) -> str:
        for slip, hint in self.slips:
            if self.kind.same(given, slip() if callable(slip) else slip):
                return hint
        return self.hint


@dataclass(frozen=True)
class Verdict:
    """What is said of an answer: true where it is right, and shown by Jupyter as escaped HTML.

    Attributes:
        right: Whether the answer is right; None without one.
        text: In plain text.
        exercise: Its id.
    """

    right: bool | None
    text: str
    exercise: str = ""

    def __bool__(self) -> bool:
        """Whether the answer is right."""
        return self.right is True

    def __str__(self) -> str:
        """One line of plain text."""
        return f"{self.exercise}  {self.text}".strip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        colour = {True: "#009E73", False: "#D55E00", None: "#808489"}[self.right]  # the words say the same
        head, _, rest = self.text.partition(". ")
        style = f"border-left: 4px solid {colour}; padding: 2px 10px; margin: 4px 0; max-width: 75ch"
        name = f"Exercise {self.exercise}: " if self.exercise else ""
        return f'<div role="status" style="{style}"><b>{html.escape(name + head)}.</b> {html.escape(rest)}</div>'


def _members(answer: Any) -> list[Any]:
    """What a collection holds; anything else alone."""
    try:
        return [answer] if isinstance(answer, str | bytes) else [*answer]
    except TypeError:  # a number, or a tensor without dimensions
        return [answer]


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("-", " ").replace("_", " ").split())


def _listed(options: Iterable[str]) -> str:
    return ", ".join(f'"{option}"' for option in options)
