"""Answers of a model to prompts, greedy or drawn, in batches that fit."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from workbench.evaluation.likelihood import inference, rendered
from workbench.progress import tracked

CACHE = 2**32  # most bytes of keys and values that the answers of one batch may take


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    max_new_tokens: int = 64,
    batch_size: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Answers to prompts (strings, or messages that go through the chat template), special tokens removed.

    Greedy at temperature 0; otherwise drawn from the whole distribution by a seed of their own, which leaves the random
    state as it was. What is drawn for a prompt depends on the other prompts of its batch too. Fewer than `batch_size`
    prompts are answered at once where their keys and values would take more than 4 GiB.
    """
    texts, chat = rendered(prompts, tokenizer)
    decoding = _decoding(model, tokenizer, temperature)
    options = {"add_special_tokens": not chat, "return_token_type_ids": False}
    lengths = [len(ids) for ids in tokenizer(texts, **options, return_attention_mask=False)["input_ids"]]
    answers = [""] * len(texts)
    start = 0
    for chosen in tracked(_batches(texts, lengths, max_new_tokens, batch_size, model), len(texts), "answers"):
        batch = tokenizer(
            [texts[i] for i in chosen], return_tensors="pt", padding=True, padding_side="left", **options
        ).to(model.device)
        with inference(model), _seeded(f"{seed}:{start}" if temperature else None):
            ids = model.generate(**batch, max_new_tokens=max_new_tokens, **decoding)
        decoded = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, answer in zip(chosen, decoded, strict=True):
            answers[i] = answer
        start += len(chosen)
    return answers


def _batches(
    texts: Sequence[str], lengths: Sequence[int], max_new_tokens: int, batch_size: int, model: Any
) -> Iterator[list[int]]:
    """Indices of prompts by their length, so that little is spent on padding; no batch outgrows the cache."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    per_token = _cache_bytes(model)
    batch: list[int] = []
    for i in order:
        width = max(lengths[j] for j in [*batch, i]) + max_new_tokens
        if batch and (len(batch) == batch_size or (len(batch) + 1) * width * per_token > CACHE):
            yield batch
            batch = []
        batch.append(i)
    yield batch


def _cache_bytes(model: Any) -> int:
    """Bytes of keys and values that one token of one row takes at most."""
    config = model.config.get_text_config()
    n_heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    n_kept = getattr(config, "num_key_value_heads", None) or n_heads
    return 2 * config.num_hidden_layers * n_kept * head * model.dtype.itemsize


def _decoding(model: Any, tokenizer: Any, temperature: float) -> dict[str, Any]:
    """Greedy or plain sampling whatever the model's own generation_config says: no penalty, every known stop."""
    own = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    return {
        "do_sample": temperature > 0,
        "num_beams": 1,
        "temperature": temperature or None,
        "top_p": 1.0 if temperature else None,
        "top_k": 0 if temperature else None,
        "min_p": None,
        "typical_p": 1.0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "eos_token_id": sorted(stops) or None,
        "pad_token_id": tokenizer.pad_token_id,
    }


@contextmanager
def _seeded(seed: str | None) -> Iterator[None]:
    """A random state of its own on every device, by a seed; None leaves all as it is."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1)
        yield
