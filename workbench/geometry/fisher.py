"""The diagonal of the Fisher information: how much each parameter matters to what a model says."""

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from workbench.geometry.gradients import Batch, gradient, wide

_IGNORED = -100


def fisher_diagonal(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    parameters: Mapping[str, torch.nn.Parameter],
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """The mean over rows of gᵢ², with g the gradient of one row.

    - With a generator: the Fisher information of the answers y to x, Σ_t E_{y_t ~ p_θ} (∂ log p(y_t|x, y_<t)/∂θᵢ)²
      after the row's own beginnings, the curvature of KL(p_θ ‖ p_θ′) at θ′ = θ. The expectation is estimated without
      bias by one backward a batch, from `random_errors` in the place of drawn answers: where a model is sure, what
      matters are answers so rare that they would hardly be drawn. The errors of several rows in a batch are
      independent, so that their products vanish on average: larger batches are cheaper, and noisier.
    - Without: the *empirical* Fisher, g = ∂ log p(y|x)/∂θ at the row's own answer. It is no such curvature (Kunstner et
      al. 2019, 1905.12558), and small wherever the model knows its answers.

    Args:
        model: A Hugging Face causal language model; it is left as it was.
        batches: ``input_ids``, ``labels`` and perhaps ``attention_mask``, each (rows, tokens). Processes that share a
            sharded model must all take the same.
        parameters: By name.
        generator: Of the signs, on the CPU.

    Returns:
        By parameter name, in fp32 or wider; of the local shards.

    Raises:
        ValueError: There is no row; or a batch holds several, and there is no generator.
    """
    loss = _row_loss if generator is None else partial(_random_loss, generator)
    total: dict[str, Tensor] = {}
    n_rows = 0
    for batch in batches:
        size = len(batch["input_ids"])
        if generator is None and size != 1:
            raise ValueError(f"The empirical Fisher squares each row by itself: expected batches of one, got {size}.")
        for name, g in gradient(model, batch, parameters, loss).items():
            total[name] = g.square_() if name not in total else total[name].addcmul_(g, g)
        n_rows += size
    if not n_rows:
        raise ValueError("There is no row: expected at least one.")
    return {name: squares.div_(n_rows) for name, squares in total.items()}


def random_errors(logits: Tensor, signs: Tensor) -> Tensor:
    """v = (diag(√p) − p√pᵀ)ε for the probabilities p that logits mean, with E[vvᵀ] = diag(p) − ppᵀ over signs ε.

    That is also the covariance of p − e_y, the gradient of −log p(y) by the logits, over answers y drawn from p.

    Args:
        logits: (tokens, vocabulary).
        signs: ε, each ±1 with equal chances, independent of one another; (tokens, vocabulary).
    """
    p = logits.to(wide(logits)).softmax(-1)
    scaled = p.sqrt() * signs
    return scaled - p * scaled.sum(-1, keepdim=True)


def _row_loss(model: torch.nn.Module, batch: Batch) -> Tensor:
    """−log p(y|x), of all answer tokens together."""
    logits, answers = _predicted(model, batch)
    return torch.nn.functional.cross_entropy(logits.to(wide(logits)), answers, reduction="sum")


def _random_loss(generator: torch.Generator, model: torch.nn.Module, batch: Batch) -> Tensor:
    """A loss whose gradient by the logits is `random_errors`."""
    logits, _ = _predicted(model, batch)
    signs = 2.0 * torch.randint(2, logits.shape, generator=generator).to(logits) - 1
    return (logits * random_errors(logits.detach(), signs)).sum()


def _predicted(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits of all answer tokens, (tokens, vocabulary), and these."""
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    answers = batch["labels"][:, 1:]
    counted = answers != _IGNORED
    return model(**inputs, use_cache=False).logits[:, :-1][counted], answers[counted]
