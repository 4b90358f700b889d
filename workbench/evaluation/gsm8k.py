"""GSM8K: whether a worked solution ends in the right number."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
"""Where the authors look for an answer (Cobbe et al. 2021, 2110.14168)."""
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
"""Every number, as the language model evaluation harness finds them; the last one is taken."""
STOPS = ("Question:", "</s>", "<|im_end|>")
"""What ends an answer, as in the harness: a base model goes on with questions of its own."""


@dataclass(frozen=True)
class GSM8K:
    """GSM8K's exact match as a judge, of the authors and of the language model evaluation harness.

    ``strict_rate`` is the authors': the number after "#### " is the right one, compared as text without commas. An
    answer in another form is wrong, so it is a score of few-shot prompts, or of prompts that ask for that form.
    ``correct_rate`` is the harness's flexible one: the last number of the answer, without commas, dollar signs and a
    period at its end. Rows need ``answer``, the right number.

    Attributes:
        stops: An answer ends before the first of these.
    """

    stops: tuple[str, ...] = STOPS

    def __call__(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[dict[str, float]]:
        """``correct_rate`` (flexible) and ``strict_rate``, 0 or 1 each."""
        verdicts = []
        for row, answer in zip(rows, answers, strict=True):
            said = _before(answer, self.stops)
            strict, flexible = strict_answer(said), flexible_answer(said)
            verdicts.append(
                {
                    "correct_rate": float(flexible == _cleaned(row["answer"])),
                    "strict_rate": float(strict == row["answer"].strip().replace(",", "")),
                }
            )
        return verdicts


def strict_answer(text: str) -> str | None:
    """The number after the first "#### ", without commas; None where there is none."""
    found = STRICT.search(text)
    return found[1].strip().replace(",", "") if found else None


def flexible_answer(text: str) -> str | None:
    """The last number of a text, without commas, dollar signs and a period at its end; None where there is none."""
    found = FLEXIBLE.findall(text)
    return _cleaned(next(filter(None, found[-1]))) if found else None


def _cleaned(number: str) -> str:
    return re.sub(r"\.$", "", re.sub(r"[,$]", "", number.strip()))


def _before(text: str, stops: Sequence[str]) -> str:
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
