"""Mixup across the line: between what is refused and what is answered, the response changes half way."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.alignment.measuring import Listening
from workbench.alignment.techniques import Technique
from workbench.corpora.encoding import encode_prompts
from workbench.models import is_sharded

if TYPE_CHECKING:
    from datasets import Dataset

Prompt = tuple[int, ...]


class Mixup(Listening, Technique):
    """Embeddings of a prompt are moved towards those of a look-alike of the other kind, and the answer stays its own.

    There are two kinds of prompts: those of the references, which are answered, and all others of the training set,
    which are refused. Safety training says what to do with either and nothing of what lies between, so the line may
    fall anywhere there, and requests that are new fall on either side of it. Here a row is read as (1 − λ) e + λ e′, e
    being the embeddings of its own prompt, e′ those of a prompt of the other kind, and λ uniform in [0, `limit`] and
    drawn anew each time. As this holds for both kinds alike, the line between them lies half way.

    That is mixup (Zhang et al. 2018, 1710.09412) of embeddings, its lowest layer in manifold mixup (Verma et al. 2019,
    1806.05236), with the label of the nearer one instead of a mixed label: answers in words do not mix.

    Look-alikes are prompts of the other kind that have as many tokens and share the most of them in place, at least
    `overlap` of all; where tokens are the same nothing is mixed. Rows without one are read as they are, and so is every
    row in evaluation. Reference rows themselves come from `Replay`, which stands after it in the list, so that
    look-alikes are sought among all rows and not only those drawn. ``mixed``, the share of a step's rows that were, is
    logged. It costs one more look-up of embeddings.

    Noise on embeddings helps mixup, for it keeps a row from being told by its noun alone, but on rows that have no
    look-alike it costs ability and serves nothing. So `noise` is that of NEFTune (2310.05914, equation 1) on mixed rows
    alone: uniform in ±noise / √(tokens · width), added to what was mixed.

    Args:
        references: Domain name → rows with a ``prompt`` that is to be answered; those of `Replay`.
        limit: The largest λ, in (0, 0.5].
        overlap: The least share of tokens that look-alikes have in common, in (0, 1).
        noise: NEFTune's α for mixed rows; leave the trainer's own at None.

    Raises:
        ValueError: A setting is out of range; before training, if no prompt has a look-alike, if rows are laid end to
            end, or the model is sharded.
    """

    name = "mixup"
    counts_processes = True

    def __init__(
        self, references: "Mapping[str, Dataset]", limit: float = 0.45, overlap: float = 0.5, noise: float = 0.0
    ) -> None:
        """Check and keep the settings."""
        if not references or not all(len(rows) for rows in references.values()):
            raise ValueError("references must map at least one domain to a non-empty dataset.")
        if not 0 < limit <= 0.5 or not 0 < overlap < 1:
            raise ValueError(f"limit must lie in (0, 0.5] and overlap in (0, 1), got {limit} and {overlap}.")
        if not noise >= 0:
            raise ValueError(f"noise is NEFTune's α, 0 or more, got {noise}.")
        super().__init__()
        self.references, self.limit, self.overlap, self.noise = dict(references), limit, overlap, noise
        self.lookalikes: dict[Prompt, Tensor] = {}  # of every prompt that has some, (n, tokens)
        self._trained: list[Any] = []

    def parameters(self) -> dict[str, Any]:
        """The settings, for a record."""
        settings = {"limit": self.limit, "overlap": self.overlap, "noise": self.noise}
        return settings | {"domains": list(self.references)}

    def data(self) -> "dict[str, Dataset]":
        """The reference rows."""
        return {f"reference/{domain}": rows for domain, rows in self.references.items()}

    def mix(self, data: "Dataset", n_rows: int, seed: int) -> "Dataset":
        """The rows as they are; their prompts are remembered."""
        self._trained = list(data["prompt"])
        return data

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Find the look-alikes, and listen where the model reads its embeddings."""
        if together := [name for name in ("packing", "padding_free") if getattr(args, name, False)]:
            raise ValueError(f"Mixup finds prompts where rows begin, but {together[0]}=True lays them end to end.")
        if is_sharded(model):
            raise ValueError("Mixup reads embeddings of its own, which shards (FSDP2) do not give: train copies (DDP).")
        self.close()
        self.lookalikes = self._found(kwargs["processing_class"])
        self._lengths = sorted({len(prompt) for prompt in self.lookalikes})
        # Before NEFTune's hook, so that noise is added to what has been mixed.
        self._hook = model.get_input_embeddings().register_forward_hook(self._mixed, prepend=True)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note how many rows were mixed."""
        self.measurements.note(state.global_step + 1, {"mixed": sum(self._seen) / max(len(self._seen), 1)}, [])
        self._seen = []

    def report(self) -> dict[str, Any]:
        """How many prompts have look-alikes, for the record."""
        return {"n_with_lookalikes": len(self.lookalikes)}

    def _found(self, tokenizer: Any) -> dict[Prompt, Tensor]:
        answered = _encoded([prompt for rows in self.references.values() for prompt in rows["prompt"]], tokenizer)
        known = set(answered)
        refused = [prompt for prompt in _encoded(self._trained, tokenizer) if prompt not in known]
        found = nearest(refused, answered, self.overlap) | nearest(answered, refused, self.overlap)
        if not found:
            raise ValueError(
                f"Mixup needs look-alikes: none of {len(refused)} prompts of the training set and {len(answered)} of "
                f"the references have as many tokens and share {self.overlap:.0%} of them in place. Add references "
                "that ask alike for what is harmless, or lower overlap."
            )
        return found

    def _mixed(self, module: Any, args: Any, output: Tensor) -> Tensor:
        """What the model reads: in training, embeddings on the way to those of a look-alike."""
        if not module.training:
            return output
        ids, shares = self._drawn(args[0])
        if ids is None:
            return output
        shares = shares[:, None, None].to(output)
        mixed = output.lerp(module.forward(ids), shares)
        if not self.noise:
            return mixed
        largest = self.noise / (output.shape[1] * output.shape[2]) ** 0.5
        return mixed + torch.empty_like(output).uniform_(-largest, largest) * (shares > 0)

    def _drawn(self, ids: Tensor) -> tuple[Tensor | None, Tensor]:
        """The rows with a look-alike's prompt in place of their own, if any has one, and λ; (rows, tokens), (rows,).

        Rows of one prompt, such as both answers of a pair, are mixed alike.
        """
        found = [self._prompt_of(row) for row in ids.tolist()]
        drawn = {p: (self._one_of(self.lookalikes[p]), self.limit * torch.rand(())) for p in found if p}
        self._seen += [prompt is not None for prompt in found]
        others, shares = ids.clone(), torch.zeros(len(found))
        for i, prompt in enumerate(found):
            if prompt:
                others[i, : len(prompt)], shares[i] = drawn[prompt]
        return (others if drawn else None), shares

    def _one_of(self, prompts: Tensor) -> Tensor:
        return prompts[int(torch.randint(len(prompts), ()))]

    def _prompt_of(self, row: list[int]) -> Prompt | None:
        """The longest prompt with look-alikes that a row begins with."""
        begun = (tuple(row[:n]) for n in reversed(self._lengths) if n <= len(row))
        return next((prompt for prompt in begun if prompt in self.lookalikes), None)


def nearest(prompts: Sequence[Prompt], others: Sequence[Prompt], overlap: float) -> dict[Prompt, Tensor]:
    """Of each prompt those of the others with as many tokens that share the most of them in place; (n, tokens).

    Args:
        prompts: Token ids.
        others: Token ids.
        overlap: The least share of a prompt's tokens; a prompt that no other shares as much with is left out.
    """
    by_length: dict[int, list[Prompt]] = {}
    for other in others:
        by_length.setdefault(len(other), []).append(other)
    tables = {n: torch.tensor(rows) for n, rows in by_length.items()}
    found = {}
    for prompt in prompts:
        if (table := tables.get(len(prompt))) is not None:
            shared = (table == torch.tensor(prompt)).sum(1)
            if shared.max() >= overlap * len(prompt):
                found[prompt] = table[shared == shared.max()]
    return found


def _encoded(prompts: Sequence[Any], tokenizer: Any) -> list[Prompt]:
    """Their token ids, each once, in order."""
    return list(dict.fromkeys(tuple(ids) for ids in encode_prompts(prompts, tokenizer)))
