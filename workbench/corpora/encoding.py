"""TRL's columns to token ids and labels: the one way in which rows outside a trainer become batches."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from workbench.corpora.columns import text_of
from workbench.corpora.entities import entity_masks

IGNORED = -100  # the label that transformers' and torch's cross-entropy leave out
_TEXT = {"tokenize": False, "enable_thinking": False}  # a template without thoughts ignores the word


def encode(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    max_length: int = 1024,
    spans: Sequence[Sequence[Mapping[str, Any]]] | None = None,
) -> list[dict[str, list[int]]]:
    """Token ids and labels of rows, the loss on the answer alone, exactly as TRL's `SFTTrainer` counts it.

    Args:
        rows: ``prompt``/``completion`` or ``prompt``/``chosen`` rows (strings, or messages that go through the chat
            template), or ``text`` rows, whose every token counts.
        tokenizer: A Hugging Face tokenizer.
        max_length: Longer rows are cut at the right, as TRL does.
        spans: For each row, spans ``{"start", "end"}`` of characters of its answer, which become a mask of tokens.

    Returns:
        One ``{"input_ids", "labels"}`` a row, and ``"mask"`` (1 in the spans, else 0) if spans are given; labels
        outside the answer are -100.

    Raises:
        ValueError: A row has none of these columns, or nothing of its answer is left after the cut; or spans are given
            to a tokenizer that cannot tell where its tokens lie.
    """
    rows = list(rows)
    rendered = [_render(row, tokenizer, index) for index, row in enumerate(rows)]
    if not rendered:
        raise ValueError("There is no row to encode: expected at least one.")
    prompts, wholes, chat = zip(*rendered, strict=True)
    # A chat template writes its special tokens itself; plain text gets the tokenizer's own, as in TRL.
    options = {"add_special_tokens": not any(chat), "return_attention_mask": False}
    all_ids = tokenizer(list(wholes), **options)["input_ids"]
    n_prompts = [
        len(ids) if prompt else 0
        for prompt, ids in zip(prompts, tokenizer(list(prompts), **options)["input_ids"], strict=True)
    ]
    for index, (n_prompt, ids) in enumerate(zip(n_prompts, all_ids, strict=True)):
        if n_prompt >= min(len(ids), max_length):
            raise ValueError(
                f"Row {index} has no answer token within max_length={max_length}: its prompt alone takes {n_prompt} "
                "tokens. Raise max_length or leave the row out."
            )
    encoded = [
        {"input_ids": ids[:max_length], "labels": [*[IGNORED] * n, *ids[n:]][:max_length]}
        for n, ids in zip(n_prompts, all_ids, strict=True)
    ]
    if spans is not None:
        moved = [_in_whole(row, whole, marked) for row, whole, marked in zip(rows, wholes, spans, strict=True)]
        masks = entity_masks(tokenizer, wholes, moved, add_special_tokens=options["add_special_tokens"])
        for row, mask in zip(encoded, masks, strict=True):
            row["mask"] = mask[:max_length]
    return encoded


def encode_prompts(prompts: Sequence[Any], tokenizer: Any) -> list[list[int]]:
    """Token ids of prompts, strings or messages, with which the rows of `encode` begin."""
    texts = [_render_prompt(prompt, tokenizer) for prompt in prompts]
    options = {"add_special_tokens": isinstance(prompts[0], str), "return_attention_mask": False}
    return tokenizer(texts, **options)["input_ids"]


def pad_batch(
    rows: Sequence[Mapping[str, list[int]]], pad_token_id: int, device: Any = None
) -> dict[str, torch.Tensor]:
    """Rows of `encode` as ``input_ids``, ``attention_mask``, ``labels`` (and ``mask`` if they have it), padded right.

    Each is (rows, longest row).
    """
    width = max(len(row["input_ids"]) for row in rows)

    def stack(values: Iterable[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([[*v, *[filler] * (width - len(v))] for v in values], device=device)

    return {
        "input_ids": stack((row["input_ids"] for row in rows), pad_token_id),
        "attention_mask": stack(([1] * len(row["input_ids"]) for row in rows), 0),
        "labels": stack((row["labels"] for row in rows), IGNORED),
        **({"mask": stack((row["mask"] for row in rows), 0)} if "mask" in rows[0] else {}),
    }


def pack_batch(rows: Sequence[Mapping[str, list[int]]], device: Any = None) -> dict[str, torch.Tensor]:
    """Rows of `encode` end to end as one, without padding: ``input_ids``, ``position_ids`` and ``labels``, each (1, n).

    Positions start anew with every row, by which attention tells rows apart in models that support it; a row's first
    token is no answer to the row before.
    """
    ids = [token for row in rows for token in row["input_ids"]]
    positions = [i for row in rows for i in range(len(row["input_ids"]))]
    labels = [label for row in rows for label in (IGNORED, *row["labels"][1:])]
    columns = {"input_ids": ids, "position_ids": positions, "labels": labels}
    return {name: torch.tensor([values], device=device) for name, values in columns.items()}


def _in_whole(row: Mapping[str, Any], whole: str, spans: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Spans of a row's answer as spans of prompt and answer together."""
    answer = text_of(row["text"] if "text" in row else row.get("completion", row.get("chosen")))
    start = whole.rfind(answer)
    if start < 0:
        raise ValueError(
            f"The chat template changes the answer {answer[:60]!r}, so that its spans have no place any more. Pass "
            "rows whose prompt is a plain string, or strip blanks from both ends of the answers."
        )
    return [{**span, "start": span["start"] + start, "end": span["end"] + start} for span in spans]


def _render(row: Mapping[str, Any], tokenizer: Any, index: int) -> tuple[str, str, bool]:
    """The text of the prompt, of prompt and answer together, and whether a chat template wrote them."""
    if "text" in row:
        return "", row["text"], False
    answer = row.get("completion", row.get("chosen"))
    if answer is None or "prompt" not in row:
        raise ValueError(
            f"Row {index} has the columns {sorted(row)}; expected prompt and completion, prompt and chosen, or text."
        )
    if isinstance(answer, str):
        # TRL ends a plain completion with the end-of-sequence token, so that the model learns to stop.
        return row["prompt"], row["prompt"] + answer + (tokenizer.eos_token or ""), False
    whole = tokenizer.apply_chat_template([*row["prompt"], *answer], **_TEXT)
    return _render_prompt(row["prompt"], tokenizer), whole, True


def _render_prompt(prompt: Any, tokenizer: Any) -> str:
    """The text of a prompt, up to where its answer begins."""
    return (
        prompt
        if isinstance(prompt, str)
        else tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **_TEXT)
    )
