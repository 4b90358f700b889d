"""Log-probabilities that a model gives to texts: the one place where scores read logits."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, NamedTuple

import torch

from workbench.corpora.columns import Message
from workbench.corpora.encoding import IGNORED, pad_batch
from workbench.models import fitting_threads, is_sharded, require_tokenizer, reshard
from workbench.progress import tracked

Rows = Sequence[Mapping[str, list[int]]]
LOGITS = 2**28  # most logits of one batch, a GiB in float32
SOFTMAX = 2**26  # most logits of which the normalizer is taken at once


class LogProb(NamedTuple):
    """What a model gives to a text: natural logarithms of probabilities.

    Attributes:
        total: Log-probability of the whole, in nats.
        n_tokens: How many tokens that is.
        tokens: Log-probability of each token given all before it.
    """

    total: float
    n_tokens: int
    tokens: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Log-probability per token, in nats."""
        return self.total / self.n_tokens


def continuation_logps(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | list[Message]],
    continuations: Sequence[str],
    batch_size: int = 64,
) -> list[LogProb]:
    """The log-probability of each continuation given its prompt.

    Prompt and continuation are tokenized together, and every token from the first that differs from those of the prompt
    alone belongs to the continuation: a token that reaches across the border counts whole, and so does a blank that the
    prompt ends with and the tokenizer draws to the next word. No end token is added, so that a text is not charged for
    ending there (`encode` counts one, as trainers do). A text without anything before it is conditioned on the
    tokenizer's opening token (``bos``, else ``eos``).

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompts: Strings, to which continuations are appended as they are, blanks included; or messages, that go through
            the chat template as in `generate`. ``""`` scores a text by itself.
        continuations: One a prompt.
        batch_size: Rows at once at most; fewer where their logits would take more than a GiB.

    Returns:
        One `LogProb` a continuation, in order.

    Raises:
        ValueError: The model is a masked one, the lists differ in length, a continuation is empty, or a row is longer
            than the model reads.
    """
    if "MaskedLM" in type(model).__name__:
        raise ValueError(f"Expected a causal language model, got {type(model).__name__}: use a pseudo-likelihood.")
    rows = _encode(prompts, continuations, tokenizer, position_limit(model))
    with fitting_threads(model), inference(model):
        if all(row["labels"][-2] == IGNORED for row in rows):
            return [_logprob([logp]) for logp in _last_logps(model, rows, tokenizer.pad_token_id, batch_size)]
        found = answer_logps(model, rows, tokenizer.pad_token_id, batch_size)
    return [_logprob(logps.tolist()) for logps, _ in found]


def choice_logps(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | list[Message]],
    choices: Sequence[Sequence[str]],
    batch_size: int = 64,
) -> list[list[LogProb]]:
    """The log-probability of every choice given its prompt; a plain prompt and a choice are parted by one blank.

    Choices of one token each, such as letters, are read from a single pass over their prompt.
    """
    flat = [(p, _after(p, choice)) for p, row in zip(prompts, choices, strict=True) for choice in row]
    found = iter(continuation_logps(model, tokenizer, [p for p, _ in flat], [c for _, c in flat], batch_size))
    return [[next(found) for _ in row] for row in choices]


def pseudo_logps(
    model: Any, tokenizer: Any, rows: Sequence[tuple[list[int], Sequence[int]]], batch_size: int = 64
) -> list[LogProb]:
    """Pseudo-log-likelihoods by a masked language model (Salazar et al. 2020, 1910.14659).

    Args:
        model: A masked language model.
        tokenizer: With a mask token.
        rows: Token ids of a text, special tokens included, and the positions to score: each is masked alone and scored
            given all the others.
        batch_size: Masked copies at once at most.

    Raises:
        ValueError: The model is no masked one, or its tokenizer has no mask token.
    """
    mask = tokenizer.mask_token_id
    if mask is None or "MaskedLM" not in type(model).__name__:
        raise ValueError(
            f"Expected a masked language model and its tokenizer, got {type(model).__name__} and the mask token "
            f"{tokenizer.mask_token!r}. Load it with AutoModelForMaskedLM, or use a score for causal models."
        )
    masked = [
        {
            "input_ids": [*ids[:at], mask, *ids[at + 1 :]],
            "labels": [*[IGNORED] * at, ids[at], *[IGNORED] * (len(ids) - at - 1)],
        }
        for ids, positions in rows
        for at in positions
    ]
    with fitting_threads(model), inference(model):
        found = iter(answer_logps(model, masked, tokenizer.pad_token_id, batch_size, shift=0))
    return [_logprob([next(found)[0].item() for _ in positions]) for _, positions in rows]


def answer_logps(
    model: Any, rows: Rows, pad_token_id: int, batch_size: int, shift: int = 1
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Log-probabilities of the labels that count, and whether each is the model's first choice.

    Args:
        model: In evaluation mode and without gradients (`inference`).
        rows: ``input_ids`` and ``labels`` as `encode` gives them; labels of -100 are not scored.
        pad_token_id: What fills short rows, at the right.
        batch_size: Rows at once at most; fewer where their logits would take more than a GiB.
        shift: 1 where logits at t speak of token t + 1 (causal models), 0 where they speak of t (masked ones).

    Returns:
        Two tensors a row on the CPU, (scored tokens,) each, in the order of the rows: float32 (float64 from a model in
        float64) and boolean.
    """
    vocabulary = model.config.get_text_config().vocab_size
    options = {"use_cache": False} if shift else {}
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    batches = _batches([len(row["input_ids"]) for row in rows], batch_size, vocabulary)
    for chosen in tracked(batches, len(rows), "likelihoods"):
        batch = pad_batch([rows[i] for i in chosen], pad_token_id, model.device)
        labels = batch.pop("labels")[:, shift:]
        kept = labels != IGNORED
        logits = model(**batch, **options).logits[:, : labels.shape[1]]
        logps, first = _normalized(logits[kept], labels[kept])
        sizes = kept.sum(1).tolist()
        found |= dict(zip(chosen, zip(logps.split(sizes), first.split(sizes), strict=True), strict=True))
    return [found[i] for i in range(len(rows))]


def _last_logps(model: Any, rows: Rows, pad_token_id: int, batch_size: int) -> list[float]:
    """The log-probability of each row's last token, by one pass for all rows that are the same before it."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        alike.setdefault(tuple(row["input_ids"][:-1]), []).append(index)
    heads, found = [list(head) for head in alike], [0.0] * len(rows)
    members = list(alike.values())
    batches = _batches([len(head) for head in heads], batch_size, model.config.get_text_config().vocab_size)
    for chosen in tracked(batches, len(heads), "likelihoods"):
        batch = pad_batch([{"input_ids": heads[i], "labels": heads[i]} for i in chosen], pad_token_id, model.device)
        del batch["labels"]
        last = batch["attention_mask"].sum(1) - 1
        logits = model(**batch, use_cache=False).logits[torch.arange(len(chosen), device=last.device), last]
        logps = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1).cpu()
        for row, head in zip(logps, chosen, strict=True):
            for index in members[head]:
                found[index] = row[rows[index]["input_ids"][-1]].item()
    return found


def position_limit(model: Any) -> int | None:
    """The most tokens that a model reads at once, None if its configuration names no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients, and everything as before afterwards."""
    modes, cache = {module: module.training for module in model.modules()}, getattr(model.config, "use_cache", None)
    model.eval()
    model.config.use_cache = True
    try:
        # FSDP2 gathers weights into memory that it writes to again in training, which inference mode forbids.
        with torch.no_grad() if is_sharded(model) else torch.inference_mode():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        model.config.use_cache = cache
        reshard(model)


def rendered(prompts: Sequence[str | list[Message]], tokenizer: Any) -> tuple[list[str], bool]:
    """The texts that a model reads of prompts, and whether they are messages, written by the chat template.

    A template writes its special tokens itself; plain texts get the tokenizer's own.
    """
    prompts = list(prompts)
    chat = not isinstance(prompts[0], str)
    require_tokenizer(tokenizer, chat=chat)
    # Templates of thinking models open a thought unless told not to; others ignore the word.
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    texts: Any = tokenizer.apply_chat_template(prompts, **options) if chat else prompts
    return texts, chat


def _encode(
    prompts: Sequence[str | list[Message]], continuations: Sequence[str], tokenizer: Any, limit: int | None
) -> list[dict[str, list[int]]]:
    prompts, continuations = list(prompts), list(continuations)
    if len(prompts) != len(continuations) or not prompts:
        raise ValueError(
            f"Expected as many prompts as continuations and at least one, got {len(prompts)} and {len(continuations)}."
        )
    heads, chat = rendered(prompts, tokenizer)
    options = {"add_special_tokens": not chat, "return_attention_mask": False}
    before = tokenizer(heads, **options)["input_ids"]
    wholes = tokenizer([a + b for a, b in zip(heads, continuations, strict=True)], **options)["input_ids"]
    rows = []
    for index, (head, whole) in enumerate(zip(before, wholes, strict=True)):
        start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(head, whole, strict=False)))
        if start == 0:
            whole, start = [_opening(tokenizer), *whole], 1
        if not continuations[index] or start == len(whole):
            raise ValueError(f"Row {index} has no token to score: expected a text, got {continuations[index]!r}.")
        if limit and len(whole) > limit:
            raise ValueError(
                f"Row {index} has {len(whole)} tokens, the model reads {limit}: shorten the row or leave it out."
            )
        rows.append({"input_ids": whole, "labels": [*[IGNORED] * start, *whole[start:]]})
    return rows


def _opening(tokenizer: Any) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError(
        "The tokenizer has neither a bos nor an eos token to open a text with: set tokenizer.bos_token or give prompts."
    )


def _after(prompt: str | list[Message], choice: str) -> str:
    parted = not isinstance(prompt, str) or not prompt or prompt[-1].isspace() or choice[:1].isspace()
    return choice if parted else " " + choice


def _batches(lengths: Sequence[int], batch_size: int, vocabulary: int) -> Iterator[list[int]]:
    """Indices of rows, the longest first, so that little is spent on padding and a lack of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        fitting = LOGITS // (vocabulary * lengths[order[start]])
        size = max(1, min(batch_size, fitting))
        yield order[start : start + size]
        start += size


def _normalized(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each label and whether it is the likeliest, from (tokens, vocabulary) logits, in parts."""
    size = max(1, SOFTMAX // logits.shape[-1])
    logps, first = [], []
    for part, targets in zip(logits.split(size), labels.split(size), strict=True):
        values = part if part.dtype == torch.float64 else part.float()
        logps.append(-torch.nn.functional.cross_entropy(values, targets, reduction="none"))
        first.append(values.argmax(-1) == targets)
    return torch.cat(logps).cpu(), torch.cat(first).cpu()


def _logprob(logps: Sequence[float]) -> LogProb:
    return LogProb(sum(logps), len(logps), tuple(logps))
