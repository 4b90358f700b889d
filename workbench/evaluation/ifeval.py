"""IFEval: whether answers follow instructions that a program can check."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.evaluation.instructions import follows
from workbench.evaluation.tallies import Share


@dataclass(frozen=True)
class IFEval:
    """The four accuracies of IFEval (Zhou et al. 2023, 2311.07911) as a judge.

    A prompt is followed if all of its instructions are; ``instruction_…`` is the share of followed instructions over
    all prompts. The loose accuracies also accept an answer without its first line, its last one or both, and any of
    these without asterisks. Rows need ``instruction_id_list`` and ``kwargs``, as of `ifeval`.

    Attributes:
        by_type: Report ``followed/…`` too, the strict share of each kind of instruction.
    """

    by_type: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[dict[str, float | Share]]:
        """``prompt_strict``, ``instruction_strict``, ``prompt_loose``, ``instruction_loose`` and ``correct_rate``.

        The last is the first, so that a suite may count as utility.
        """
        return [self._judge(row, answer) for row, answer in zip(rows, answers, strict=True)]

    def _judge(self, row: Mapping[str, Any], answer: str) -> dict[str, float | Share]:
        strict, loose = followed(row, [answer]), followed(row, loosened(answer))
        verdict: dict[str, float | Share] = {
            "prompt_strict": float(all(strict)),
            "instruction_strict": Share(sum(strict), len(strict)),
            "prompt_loose": float(all(loose)),
            "instruction_loose": Share(sum(loose), len(loose)),
            "correct_rate": float(all(strict)),
        }
        if self.by_type:
            kinds = row["instruction_id_list"]
            for kind in dict.fromkeys(kinds):
                of_kind = [ok for name, ok in zip(kinds, strict, strict=True) if name == kind]
                verdict[f"followed/{kind}"] = Share(sum(of_kind), len(of_kind))
        return verdict


def followed(row: Mapping[str, Any], versions: Sequence[str]) -> list[bool]:
    """For each instruction of a row whether any version of the answer follows it."""
    named = zip(row["instruction_id_list"], map(json.loads, row["kwargs"]), strict=True)
    return [any(follows(name, version, arguments) for version in versions) for name, arguments in named]


def loosened(answer: str) -> list[str]:
    """The eight versions of an answer by which the authors judge loosely."""
    lines = answer.split("\n")
    cut = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [version for text in cut for version in (text, text.replace("*", ""))]
