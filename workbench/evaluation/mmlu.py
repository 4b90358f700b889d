"""MMLU: which of four choices a model finds likeliest, after worked examples of the same subject."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from workbench.corpora.columns import Message, as_completion, as_prompt, require_columns
from workbench.evaluation.likelihood import choice_logps, position_limit, rendered
from workbench.evaluation.tallies import Measured, by_group, pooled, shares
from workbench.evaluation.truth import best_per_character, lettered, likeliest

if TYPE_CHECKING:
    from datasets import Dataset

Row = Mapping[str, Any]


@dataclass(frozen=True)
class MMLU:
    """Accuracy on MMLU (Hendrycks et al. 2021, 2009.03300) as a suite's scorer, over questions and over subjects.

    The likeliest letter is taken, with the examples in ``shots`` before the question; of a row that is too long for the
    model examples are left out until it fits, as the authors do.

    Attributes:
        form: ``"chat"`` asks through the chat template, the examples as turns. ``"plain"`` is the authors' text without
            a template, for base models. Scores of the two forms are not comparable.
        by: ``"letters"`` lists lettered choices and compares the letters. ``"choices"`` compares the texts of choices
            that are not listed, by their total log-probability and, as ``correct_rate_norm``, per character.
        by_subject: Report ``correct_rate/SUBJECT`` and ``n/SUBJECT`` too.
        batch_size: Choices at once at most.
    """

    form: Literal["chat", "plain"] = "chat"
    by: Literal["letters", "choices"] = "letters"
    by_subject: bool = False
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.form not in ("chat", "plain") or self.by not in ("letters", "choices"):
            raise ValueError(
                f'Expected form="chat" or "plain" and by="letters" or "choices", got {self.form!r} and {self.by!r}.'
            )

    def __call__(self, model: Any, tokenizer: Any, data: "Dataset") -> dict[str, float]:
        """The scores of `items`, as numbers."""
        return pooled(self.items(model, tokenizer, data))

    def items(self, model: Any, tokenizer: Any, data: "Dataset") -> Measured:
        """``correct_rate`` over questions and ``macro_correct_rate``, the mean of the subjects' rates.

        Args:
            model: A causal language model.
            tokenizer: Its tokenizer.
            data: ``question``, ``choices``, ``label`` (the index of the right one), ``category`` (the subject), and
                ``shots`` where there are examples: a list of ``question``, ``choices`` and ``label``.
        """
        require_columns(data, ("question", "choices", "label", "category"), "MMLU")
        rows = list(data)
        choices = [lettered(row["choices"]) if self.by == "letters" else row["choices"] for row in rows]
        prompts = [self._fitting(row, texts, model, tokenizer) for row, texts in zip(rows, choices, strict=True)]
        found = choice_logps(model, tokenizer, prompts, choices, self.batch_size)
        correct = shares(likeliest(logps) == row["label"] for logps, row in zip(found, rows, strict=True))
        groups, even = by_group(correct, [row["category"] for row in rows])
        tally: dict[str, Any] = {"correct_rate": correct, "macro_correct_rate": even}
        if self.by == "choices":
            best = [best_per_character(logps, texts) for logps, texts in zip(found, choices, strict=True)]
            tally["correct_rate_norm"] = shares(pick == row["label"] for pick, row in zip(best, rows, strict=True))
        for name, of_group in groups.items() if self.by_subject else ():
            tally |= {f"correct_rate/{name}": of_group, f"n/{name}": len(of_group)}
        return tally

    def prompt(self, row: Row, n_shots: int) -> str | list[Message]:
        """What is asked of a row, with the first `n_shots` of its examples."""
        examples = (row.get("shots") or [])[:n_shots]
        asked = [self._question(one) for one in [*examples, row]]
        answers = [self._answer(one) for one in examples]
        subject = row["category"].replace("_", " ")
        listed = "multiple choice questions" if self.by == "letters" else "questions"
        head = f"The following are {listed} (with answers) about {subject}."
        if self.form == "plain":
            return f"{head}\n\n" + "".join(
                text if answer is None else f"{text} {answer}\n\n"
                for text, answer in zip(asked, [*answers, None], strict=True)
            )
        if self.by == "letters":
            head += " Answer each with the letter of the right choice alone."
        asked[0] = f"{head}\n\n{asked[0]}"
        turns = [turn for pair in zip(asked, answers, strict=False) for turn in _turns(*pair)]
        return [*turns, *as_prompt(asked[-1])]

    def _question(self, row: Row) -> str:
        listed = [f"{letter}. {text}" for letter, text in zip(lettered(row["choices"]), row["choices"], strict=True)]
        lines = [row["question"].strip(), *(listed if self.by == "letters" else [])]
        if self.form == "plain" and self.by == "choices":
            lines[0] = f"Question: {lines[0]}"
        return "\n".join([*lines, *(["Answer:"] if self.form == "plain" else [])])

    def _answer(self, row: Row) -> str:
        return (lettered(row["choices"]) if self.by == "letters" else row["choices"])[row["label"]]

    def _fitting(self, row: Row, choices: Sequence[str], model: Any, tokenizer: Any) -> str | list[Message]:
        """The prompt with as many examples as the model reads at once."""
        limit, longest = position_limit(model), max(choices, key=len)
        for n_shots in range(len(row.get("shots") or []), 0, -1):
            prompt = self.prompt(row, n_shots)
            (text,), chat = rendered([prompt], tokenizer)
            ids = tokenizer(f"{text} {longest}", add_special_tokens=not chat, return_attention_mask=False)["input_ids"]
            if limit is None or len(ids) <= limit:
                return prompt
        return self.prompt(row, 0)


def _turns(question: str, answer: str) -> Iterator[Message]:
    yield from (*as_prompt(question), *as_completion(answer))
