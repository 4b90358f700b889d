"""Confidence weighting: a row pulls at the weights as strongly as the model already believes it."""

from typing import Any

import torch
from torch import Tensor

from workbench.alignment.measuring import Listening
from workbench.alignment.techniques import Technique


class ConfidenceWeighting(Listening, Technique):
    """Each row's gradient times its weight, so that rows that the model finds unlikely make no outsized updates.

    The idea of ConSFT (2605.08879): scale each sample's learning signal by the model's confidence; no references. Its
    formula was not at hand, so this one is ours, a plausible one: the confidence of a row is the geometric mean of the
    probabilities of its answer tokens, c = exp(mean log p) in (0, 1], its weight cᵞ, a number that is not
    differentiated. Token by token instead of row by row, with γ = 1, it is TRL's ``loss_type="dft"`` (2508.05629).

    Under DPO a pair counts as one row, by the confidence in its chosen answer. The logged loss is that of plain
    training, so that curves compare; ``confidence`` is the mean c. Gradient accumulation, adapters and DDP change
    nothing; the mean of weights, if they are normalised, is that of a micro-batch in one process.

    Args:
        power: γ; 0 is plain training.
        normalise: Whether weights are divided by their mean, so that the batch pulls as strongly as without. If not,
            the whole batch counts less while the model does not believe it, which Adam's scaling mostly undoes.

    Raises:
        ValueError: The power is negative; before training, if the trainer is neither TRL's for SFT nor for DPO, or
            lays rows end to end.
        RuntimeError: Rows were trained on unweighted, as another loss than TRL's own is used.
    """

    name = "confidence_weighting"
    counts_processes = True

    def __init__(self, power: float = 1.0, normalise: bool = True) -> None:
        """Check and keep the settings."""
        if power < 0:
            raise ValueError(f"power must not be negative, got {power}.")
        super().__init__()
        self.power, self.normalise = power, normalise
        self._pairs = False

    def parameters(self) -> dict[str, Any]:
        """The settings, for a record."""
        return {"power": self.power, "normalise": self.normalise}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Listen to what the trainer runs through the model."""
        from trl import DPOConfig, SFTConfig

        together = [name for name in ("packing", "padding_free") if getattr(args, name, False)]
        if not isinstance(args, (SFTConfig, DPOConfig)) or together:
            raise ValueError(
                "ConfidenceWeighting weighs the rows of TRL's SFTTrainer and DPOTrainer, which must lie apart; got "
                f"{type(args).__name__}{''.join(f' with {name}=True' for name in together)}. Train with objective "
                '"sft" or "dpo", or leave it out.'
            )
        self.close()
        self._pairs = isinstance(args, DPOConfig)
        self._hook = model.register_forward_hook(self._listen, with_kwargs=True)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the mean confidence."""
        if not self._seen:
            raise RuntimeError(
                "ConfidenceWeighting saw none of this step's rows: the trainer computes another loss than TRL's own "
                "(label smoothing, a loss function of yours, or another version of TRL)."
            )
        self.measurements.note(state.global_step + 1, {"confidence": torch.cat(self._seen).mean().item()}, [])
        self._seen = []

    def _listen(self, model: torch.nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Weigh the gradients of the token log-probabilities, of which TRL makes its losses and nothing else does."""
        log_probs = getattr(output, "log_probs", None)
        if log_probs is None or not log_probs.requires_grad:
            return  # no training batch
        likelihood = row_likelihood(log_probs.detach(), output.label_mask)
        if self._pairs:
            likelihood = likelihood.chunk(2)[0]  # the chosen answers come first
        self._seen.append(likelihood.exp())
        weights = row_weights(likelihood, self.power, self.normalise)
        weights = torch.cat([weights, weights]) if self._pairs else weights
        log_probs.register_hook(lambda gradient: gradient * weights[:, None].to(gradient))


def row_likelihood(log_probs: Tensor, mask: Tensor) -> Tensor:
    """The mean of each row's marked tokens, in nats, at most 0; (rows,).

    Args:
        log_probs: Of the tokens, (rows, tokens).
        mask: True where a token counts, (rows, tokens).
    """
    return (log_probs * mask).sum(1) / mask.sum(1).clamp(min=1)


def row_weights(likelihood: Tensor, power: float, normalise: bool) -> Tensor:
    """cᵞ of rows of confidence c = exp(likelihood), or that over its mean; (rows,)."""
    if not normalise:
        return (power * likelihood).exp()
    weights = (power * (likelihood - likelihood.max())).exp()  # none underflows but beside larger ones
    return weights / weights.mean()
