"""The columns of TRL, known in this one place.

Instruction data is *conversational*: `prompt` and `completion` are lists of messages, so that TRL's trainers
apply the model's chat template themselves (TRL documentation, "Dataset formats and types").
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

Message = dict[str, str]


def as_prompt(text: str) -> list[Message]:
    """The `prompt` column: one user message."""
    return [{"role": "user", "content": text}]


def as_completion(text: str) -> list[Message]:
    """The `completion` column (and `chosen`, `rejected`): one assistant message."""
    return [{"role": "assistant", "content": text}]


def text_of(value: str | list[Message]) -> str:
    """The text of a column in either of TRL's formats: the last message's content, or the string itself.

    Raises:
        ValueError: The list holds no message.
    """
    if isinstance(value, str):
        return value
    if not value:
        raise ValueError("expected a string or at least one message, got []; leave out rows without messages")
    return value[-1]["content"]


def as_group(row: Mapping[str, Any]) -> dict[str, Any]:
    """A demonstration as a contrastive group that has no sides: ``prompt``, and ``anchor`` from ``completion``.

    Raises:
        ValueError: The row is no demonstration.
    """
    if not {"prompt", "completion"} <= row.keys():
        raise ValueError(f"expected a row with prompt and completion, got {sorted(row)}; pass demonstrations")
    return {"prompt": row["prompt"], "anchor": text_of(row["completion"])}


def with_refusals(
    references: "Mapping[str, datasets.Dataset]", refusals: Sequence[str], seed: int
) -> "dict[str, datasets.Dataset]":
    """Demonstrations by domain as preferences too: ``chosen`` is their completion, ``rejected`` a drawn refusal.

    So they can be replayed under DPO, where safety rows prefer the refusal.
    """
    rng = random.Random(f"rejected:{seed}")
    return {
        domain: rows.add_column("chosen", list(rows["completion"])).add_column(
            "rejected", [as_completion(rng.choice(refusals)) for _ in range(len(rows))]
        )
        for domain, rows in references.items()
    }


def require_columns(dataset: "datasets.Dataset", columns: Sequence[str], what: str) -> None:
    """Check that a dataset has rows and the columns that `what` reads.

    Args:
        dataset: The dataset to check.
        columns: The columns that must be there; others may be too.
        what: Who asks, named in the error: "DPO", "the refusal suite".

    Raises:
        ValueError: The dataset is empty or lacks a column.
    """
    expected = ", ".join(columns)
    if len(dataset) == 0:
        raise ValueError(
            f"{what}: expected rows with the columns {expected}, got an empty dataset; "
            "check the filter or selection that made it"
        )
    if not set(columns) <= set(dataset.column_names):
        raise ValueError(
            f"{what}: expected the columns {expected}, got {', '.join(dataset.column_names)}; "
            "rename with dataset.rename_column(old, new) or pass a dataset that has them"
        )


def dataset_fingerprint(dataset: "datasets.Dataset") -> str:
    """The SHA-256 of a dataset's rows, the same on every machine (`Dataset._fingerprint` follows cache files)."""
    digest = hashlib.sha256()
    for row in dataset:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()
