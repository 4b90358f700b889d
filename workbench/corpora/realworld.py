"""The real world: public datasets in the same roles as those of the micro-world."""

import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.corpora.columns import Message, as_completion, with_refusals
from workbench.corpora.public import PUBLIC_SETS, load_dataset
from workbench.corpora.quiet import quiet_datasets

if TYPE_CHECKING:
    from datasets import Dataset

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot help with this request, because it could cause serious harm.",
)
LONGEST = 900  # tokens of a prompt, as estimated; a longer one leaves no room for its answer
# What figures call the references of these sets; others go by the set's own name.
DOMAINS = {"stanford_alpaca": "instructions", "truthfulqa": "truthfulness"}


@dataclass(frozen=True)
class RealWorld:
    """Public sets to train on, to keep and to be judged by: AdvBench, Alpaca and TruthfulQA, and XSTest, or others.

    The safety set is split for training and evaluation 3:1, the reference sets for references and evaluation 1:1; the
    splits are seeded and disjoint. Where a set has a training split, that is what is split. Sets without refusals of
    their own get two plain sentences: replace them by a model's own where their style matters.

    Attributes:
        data_dir: A folder with a folder per set that holds its native files; None takes the hub.
        seed: Of the splits.
        safety_data: What is refused: requests alone (``"harmbench"``, ``"strongreject"``, ``"do_not_answer"``),
            requests with a compliant answer (``"advbench"``, ``"jailbreakbench"``) or preferences (``"pku_saferlhf"``,
            ``"hh_rlhf"``), of which the safer answers are demonstrations; only those marked as safe where the set
            marks them.
        reference_data: Sets of demonstrations or preferences whose abilities are kept, such as ``"ultrafeedback"``,
            ``"dolly"``, ``"halueval"`` or ``"gsm8k"``. Conversations and contexts of more than some 900 tokens are left
            out.
        benchmarks: Names of `workbench.benchmarks` that `suites_of` adds.
    """

    data_dir: str | Path | None = None
    seed: int = 0
    safety_data: str = "advbench"
    reference_data: tuple[str, ...] = ("stanford_alpaca", "truthfulqa")
    benchmarks: tuple[str, ...] = ("xstest",)

    def __post_init__(self) -> None:
        """Name each set by its own name, so that a world has one record."""
        object.__setattr__(self, "safety_data", own_name(self.safety_data))
        for name in ("reference_data", "benchmarks"):
            given = getattr(self, name)
            if isinstance(given, str):
                raise ValueError(f'{name}: expected several names, such as ("{given}",), got {given!r}.')
            object.__setattr__(self, name, tuple(given if name == "benchmarks" else map(own_name, given)))
        if not self.reference_data:
            raise ValueError("reference_data is empty: expected at least one set whose ability is kept.")

    def parameters(self) -> dict[str, Any]:
        """What makes this world, for a record."""
        return {"sets": [self.safety_data, *self.benchmarks, *self.reference_data], "seed": self.seed}

    def demonstrations(self, n: int | None = None, seed: int = 0) -> "Dataset":
        """Requests of the safety set, with a refusal each or with the set's own safe answer: TRL's columns."""
        rows = first_rows(self._safety[0], n)
        if "chosen" in rows.column_names:
            return _demonstrations(rows)
        with quiet_datasets():
            bare = rows.remove_columns("completion") if "completion" in rows.column_names else rows
            return bare.add_column("completion", _refusals(len(rows), seed))

    def preferences(self, n: int | None = None, seed: int = 0) -> "Dataset":
        """The same requests with the refusal or safe answer chosen, and the compliant or less safe one rejected.

        Raises:
            ValueError: The set has no answer that could be rejected.
        """
        rows = first_rows(self._safety[0], n)
        if "chosen" in rows.column_names:
            return rows
        if "completion" not in rows.column_names:
            raise ValueError(
                f"{self.safety_data} has requests alone, without an answer that could be rejected: train on "
                'demonstrations(), or choose a safety set with answers, such as "advbench" or "pku_saferlhf".'
            )
        with quiet_datasets():
            return rows.rename_column("completion", "rejected").add_column("chosen", _refusals(len(rows), seed))

    def references(self, n: int | None = 200, seed: int = 0, preferences: bool = False) -> dict[str, "Dataset"]:
        """What must not be lost, by domain: `n` demonstrations of each reference set.

        With `preferences` also as `with_refusals` makes them: the answer ``chosen``, a refusal ``rejected``.
        """
        found = self._references(0, n, seed)
        return with_refusals(found, REFUSALS, seed) if preferences else found

    def heldout_references(self, n: int | None = 100, seed: int = 0) -> dict[str, "Dataset"]:
        """The other half of the reference sets, by domain."""
        return self._references(1, n, seed)

    def heldout_requests(self, n: int | None = 100, seed: int = 0) -> "Dataset":
        """Requests of the safety set that are not trained on; if it marks answers, those that got an unsafe one."""
        return first_rows(self._safety[1].shuffle(seed), n)

    def evaluation(self, n: int | None = 100, seed: int = 0) -> dict[str, "Dataset"]:
        """Prompts to look at or to score, by suite, disjoint from what is trained on and from `references`.

        Those of XSTest are among them if it is one of the benchmarks; `suites_of` has all benchmarks.
        """
        sides = by_label(load_set("xstest", self.data_dir)) if "xstest" in self.benchmarks else {}
        return {
            "harmful_heldout": self.heldout_requests(n, seed),
            **{f"xstest_{side}": first_rows(sides[side].shuffle(seed), n) for side in ("unsafe", "safe") if sides},
            **self.heldout_references(n, seed),
        }

    @cached_property
    def _safety(self) -> tuple["Dataset", "Dataset"]:
        trained, heldout = self._split(_trained_part(self.safety_data, self.data_dir), 0.75)
        marks = ("is_chosen_safe", "is_rejected_safe")
        if not set(marks) <= set(trained.column_names):
            return trained, heldout
        safe = trained.select([i for i, mark in enumerate(trained[marks[0]]) if mark])
        unsafe = [i for i, pair in enumerate(zip(*(heldout[mark] for mark in marks), strict=True)) if not all(pair)]
        return safe, heldout.select(unsafe)

    @cached_property
    def _halves(self) -> dict[str, tuple["Dataset", "Dataset"]]:
        return {
            DOMAINS.get(name, name): self._split(_demonstrations(_trained_part(name, self.data_dir)), 0.5)
            for name in self.reference_data
        }

    def _references(self, half: int, n: int | None, seed: int) -> dict[str, "Dataset"]:
        return {name: first_rows(halves[half].shuffle(seed), n) for name, halves in self._halves.items()}

    def _split(self, rows: "Dataset", share: float) -> tuple["Dataset", "Dataset"]:
        parts = rows.train_test_split(train_size=share, seed=self.seed)
        return parts["train"], parts["test"]


def own_name(name: str) -> str:
    """The name of a public set, of which `name` may be an alias.

    Raises:
        ValueError: There is no such set.
    """
    for entry in PUBLIC_SETS.values():
        if name in (entry.name, *entry.aliases):
            return entry.name
    raise ValueError(f"Expected one of the public sets {', '.join(PUBLIC_SETS)}, got {name!r}.")


def load_set(name: str, data_dir: str | Path | None, **which: Any) -> "Dataset":
    """A public set from its folder in a data folder, or from the hub where there is none.

    The folder bears the set's name, or that of the set whose other columns it has (``truthfulqa_mc``).

    Args:
        name: As in `load_dataset`.
        data_dir: The data folder; None takes the hub.
        which: ``config``, ``split`` and ``limit``.
    """
    if data_dir is None:
        return load_dataset(name, **which)
    owner = next((e.name for e in PUBLIC_SETS.values() if name in e.variants.values()), name)
    folder = Path(data_dir).expanduser() / (name if (Path(data_dir).expanduser() / name).is_dir() else owner)
    return load_dataset(name, folder, **which)


def by_label(rows: "Dataset") -> dict[str, "Dataset"]:
    """The rows of each label."""
    labels = rows["label"]
    return {side: rows.select([i for i, label in enumerate(labels) if label == side]) for side in sorted(set(labels))}


def first_rows(rows: "Dataset", n: int | None) -> "Dataset":
    """The first `n` rows, or all."""
    return rows if n is None else rows.select(range(min(n, len(rows))))


def _trained_part(name: str, data_dir: str | Path | None) -> "Dataset":
    """The training split of a set, where it has one and the folder holds it, else the usual one."""
    if "train" in PUBLIC_SETS[name].splits:
        try:
            return load_set(name, data_dir, split="train")
        except FileNotFoundError:
            pass
    return load_set(name, data_dir)


def _demonstrations(rows: "Dataset") -> "Dataset":
    """Preferences as demonstrations of what was chosen, without long conversations; demonstrations as they are.

    Of sets whose prompts hold a context the long ones are left out, too.
    """
    if {"chosen", "context"} & set(rows.column_names):
        rows = rows.select([i for i, prompt in enumerate(rows["prompt"]) if _n_tokens(prompt) <= LONGEST])
    if "chosen" in rows.column_names:
        rows = rows.rename_column("chosen", "completion").remove_columns("rejected")
    if not {"prompt", "completion"} <= set(rows.column_names):
        raise ValueError(f"A reference set needs prompts with answers, got the columns {rows.column_names}.")
    return rows


def _n_tokens(prompt: list[Message]) -> float:
    """A careful estimate without a tokenizer: two letters of English make a token, and every byte of other scripts."""
    content = "".join(turn["content"] for turn in prompt)
    n_ascii = sum(letter.isascii() for letter in content)
    return n_ascii / 2 + len(content.encode()) - n_ascii


def _refusals(n: int, seed: int) -> list[list[Message]]:
    rng = random.Random(f"refusals:{seed}")
    return [as_completion(rng.choice(REFUSALS)) for _ in range(n)]
