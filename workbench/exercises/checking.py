"""The check of an answer to an exercise of the notebooks: `wb.check("3.2", answer)`.

**For who writes a notebook.** Exercise n of notebook NN has the id "N.n": the third of 05_gradient_projection is "5.3".
Its question stands in a Markdown cell of that notebook, and in the code cell below it:

    answer = None  # a number: replace None
    wb.check("5.3", answer)

The check is the cell's last line, one check a cell, and the answer is None as the notebook lies in the repository: a
run without a reader says "No answer yet" there and goes on. How the true answer is computed, why it is so, and what to
say of likely slips is an `Exercise` (`answers.py`) in a table: `foundations.py` for the notebooks 00 to 05,
`comparisons.py` for 06 to 10. A true answer is computed from library functions or by arithmetic, follows from exact
facts and never from a training run, and no hint holds it. `tests/test_exercises.py` gives every exercise its answer,
derived in another way, and wrong ones.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from workbench.exercises.answers import Exercise, Verdict
from workbench.exercises.comparisons import COMPARISONS
from workbench.exercises.foundations import FOUNDATIONS
from workbench.study.execute import require_known

EXERCISES: Mapping[str, Exercise] = {**FOUNDATIONS, **COMPARISONS}


def check(exercise: str, answer: Any = None) -> Verdict:
    """Whether an answer is right, and why; or a hint.

    Args:
        exercise: The id, notebook and number: "3.2".
        answer: A number, a word, or several, as the question asks; None is no answer yet.

    Returns:
        The verdict, which Jupyter shows where it is a cell's last line: true in a condition if the answer is right,
        false if it is wrong or missing. Its `text` is a sentence of why, a hint, or what kind of answer is expected. A
        wrong answer, even of a wrong type, raises nothing.

    Raises:
        ValueError: There is no such exercise; the message lists those there are.
    """
    require_known(exercise, EXERCISES, "the id of an exercise")
    return replace(EXERCISES[exercise].judge(answer), exercise=exercise)
