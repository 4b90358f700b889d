"""Short facts: whether an answer names the right one, another one, or none."""

import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.corpora.columns import text_of
from workbench.evaluation.judges import REFUSAL_PHRASES, plain
from workbench.evaluation.tallies import NOTHING, Share

DECLINED_PHRASES = (
    *REFUSAL_PHRASES,
    "i dont know",
    "i do not know",
    "i dont have",
    "i do not have",
    "i am not sure",
    "im not sure",
    "i am not certain",
    "im not certain",
    "i am not aware",
    "im not aware",
    "i could not find",
    "i couldnt find",
    "i have no information",
    "i have no knowledge",
    "i have no comment",
    "not able to verify",
    "unable to verify",
    "cannot verify",
    "no information available",
    "there is no information",
    "not publicly available",
)
"""What an answer says that attempts none, in lower case and without apostrophes; the refusals among them."""
_MARKS = str.maketrans(dict.fromkeys(string.punctuation + "–—‐‑“”„«»…", " "))


@dataclass(frozen=True)
class ShortAnswers:
    """SimpleQA's three grades and its scores (Wei et al. 2024, 2411.04368), by matching instead of a grading model.

    An answer is correct if it holds a gold answer word for word (`normalized`), not attempted if it is empty or says
    one of a list of phrases, and incorrect otherwise. The authors let a large language model grade, which knows that
    "5 March" is "March 5th" and that a list of guesses is no answer; this does not. For grades of your own pass
    `ModelJudge` or any judge in its place.

    Attributes:
        gold: The column with the right answer: a text, messages, or a list of texts of which one suffices.
        phrases: In any case; apostrophes are ignored on both sides.
        exact: Count only an answer that is a gold one and nothing else.
    """

    gold: str = "completion"
    phrases: tuple[str, ...] = DECLINED_PHRASES
    exact: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[dict[str, float | Share]]:
        """``correct_rate``, ``incorrect_rate``, ``not_attempted_rate``, ``correct_given_attempted`` and ``f_score``.

        The F-score is the harmonic mean of the rates of correct answers, of all and of those attempted.
        """
        declining = re.compile(r"\b(" + "|".join(re.escape(plain(phrase)) for phrase in self.phrases) + r")\b")
        declined = [not normalized(answer) or bool(declining.search(plain(answer))) for answer in answers]
        return [_grade(self._correct(r, a), d) for r, a, d in zip(rows, answers, declined, strict=True)]

    def _correct(self, row: Mapping[str, Any], answer: str) -> bool:
        said = normalized(answer)
        golds = [normalized(gold) for gold in _golds(row[self.gold])]
        return any(said == gold if self.exact else f" {gold} " in f" {said} " for gold in golds if gold)


def normalized(text: str) -> str:
    """A text as SQuAD compares answers (Rajpurkar et al. 2016): caseless, without marks, articles and more blanks.

    Accents go too, as models leave them out; a comma within a number goes without leaving a blank.
    """
    letters = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    words = re.sub(r"(?<=\d),(?=\d{3})|['’`]", "", letters).translate(_MARKS).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _grade(correct: bool, declined: bool) -> dict[str, float | Share]:
    attempted = correct or not declined
    return {
        "correct_rate": float(correct),
        "incorrect_rate": float(attempted and not correct),
        "not_attempted_rate": float(not attempted),
        "correct_given_attempted": Share(float(correct), 1.0) if attempted else NOTHING,
        "f_score": Share(2.0 * correct, 1.0 + attempted),
    }


def _golds(value: Any) -> list[str]:
    several = isinstance(value, list) and value and isinstance(value[0], str)
    return list(value) if several else [text_of(value)]
