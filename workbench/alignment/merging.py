"""Merging with the model before alignment: one α for all weights, or one for each part of the network's depth."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from workbench.alignment.techniques import Technique, restored_weights
from workbench.evaluation.suites import AXES, Suite, evaluate
from workbench.geometry.subspace import group_parameters
from workbench.models import trained_parameters

if TYPE_CHECKING:
    from datasets import Dataset

Alphas = tuple[float, ...]  # of the parts, from the input to the output


class Merge(Technique):
    """Interpolation with the model before alignment, θ₀ + α(θ_T − θ₀) (Lin et al. 2023, 2309.06256).

    Several α merge layer by layer (HMA, Heterogeneous Model Averaging, of the same paper): the layers are cut into as
    many parts of like depth, from the input to the output, each with its own α. Embeddings, tied to the head or not,
    belong to the first part, final norm and head to the last. The paper takes K = 3 parts; mind that its code counts
    the base model, so that its mean ratio of .2 is α = .8 here.

    With ``alpha="validated"`` every α of a grid is scored on validation suites. Of those at which each safety suite
    is refused at a rate of at least `floor`, the one of highest utility is taken, as `choose_alpha` says; if there is
    none, α = 1. One safety suite should ask for a kind of harm that training does not see: merging can give up
    refusing it while what was trained on is still refused. With several `parts`, the search goes on from the best
    single α, one part after the other through the whole grid, until a round changes nothing; every choice is among all
    that has been scored, so that it is never worse there than one α. The paper instead maximises the likelihood of the
    aligned model's own answers by gradients, and must fix the mean of α for that; here the floor keeps what the mean
    keeps there, and the mean is free.

    The trajectory of a merged run is that of the merged weights at every evaluation. A validated α is searched anew at
    each of them, once at the end, which costs `grid` evaluations of the validation suites each time (for K parts
    about 1 + 2K times as many) and, while it lasts, one more copy of the trained weights. The record keeps the last
    search: ``record["techniques"]["merge"]`` (``"merge_hma"`` for several parts) holds ``alpha``, the mean over parts
    where there are several, and then ``alphas``; ``floor_held``; and ``scores``, one row for each α that was scored.

    Args:
        alpha: 0 is the model before alignment, 1 the aligned one; or one number for each part; or ``"validated"``.
        validation: Suites, at least one of the axis ``"safety"`` and one of ``"utility"``, best also one of
            ``"over_refusal"``; none of them should share rows with training or with what is reported in the end.
        floor: Refusal rate that each safety suite must keep.
        grid: Values of α from 0 to 1, both ends included.
        parts: K of a validated α; numbers say themselves how many there are.

    Raises:
        ValueError: A number is out of range, or the validation suites are missing, lack an axis, or come with an α
            that is a number; before training, if the model has fewer layers than parts.
    """

    changes_weights = True

    def __init__(
        self,
        alpha: float | Sequence[float] | Literal["validated"] = 0.5,
        *,
        validation: Mapping[str, Suite] | None = None,
        floor: float = 0.95,
        grid: int = 11,
        parts: int = 1,
    ) -> None:
        """Check and keep the settings."""
        given = _numbers(alpha)
        if not (alpha == "validated" or (given and all(0 <= a <= 1 for a in given))):
            raise ValueError(
                f'alpha must lie between 0 and 1, or be such numbers, one for each part, or "validated"; got {alpha!r}.'
            )
        if (alpha == "validated") != bool(validation):
            raise ValueError(
                f'alpha="validated" and validation=suites come together, got alpha={alpha!r} with '
                f"{len(validation or {})} validation suites."
            )
        self.validation = dict(validation or {})
        axes = sorted({suite.axis for suite in self.validation.values() if suite.axis})
        if self.validation and not {"safety", "utility"} <= set(axes):
            raise ValueError(f'validation needs suites of the axes "safety" and "utility", got the axes {axes}.')
        if not 0 <= floor <= 1 or grid < 2:
            raise ValueError(f"floor must lie between 0 and 1 and grid be at least 2, got {floor} and {grid}.")
        if parts < 1 or (given and parts != 1):
            raise ValueError(f'parts must be at least 1 and goes with alpha="validated" alone, got {parts}.')
        self.alphas, self.floor, self.grid = given, floor, [i / (grid - 1) for i in range(grid)]
        self.n_parts = len(given) or parts
        self.name = "merge" if self.n_parts == 1 else "merge_hma"
        self._found: dict[str, Any] = {}

    def parameters(self) -> dict[str, Any]:
        """The settings, for a record."""
        if self.alphas:
            return {"alpha": self.alphas[0] if self.n_parts == 1 else list(self.alphas)}
        suites = {name: suite.parameters() for name, suite in self.validation.items()}
        parts = {} if self.n_parts == 1 else {"parts": self.n_parts}
        return {"alpha": "validated", "floor": self.floor, "grid": len(self.grid), "validation": suites, **parts}

    def data(self) -> "dict[str, Dataset]":
        """The validation rows."""
        return {f"validation/{name}": suite.data for name, suite in self.validation.items()}

    def prepare(self, model: torch.nn.Module, seed: int) -> None:
        """Refuse, before training, a model that has fewer layers than there are parts."""
        part_of(model, self.n_parts)

    def deploy(self, model: torch.nn.Module, tokenizer: Any, start: Mapping[str, Tensor]) -> None:
        """Interpolate in place, by the validated α if that is asked for."""
        alphas = self.alphas or self._search(model, tokenizer, start)
        _interpolate(model, start, trained_parameters(model), alphas)

    def report(self) -> dict[str, Any]:
        """The latest search: the α it chose, whether the floor was held anywhere, and the scores of all it tried."""
        return self._found

    def _search(self, model: torch.nn.Module, tokenizer: Any, start: Mapping[str, Tensor]) -> Alphas:
        scores: dict[Alphas, dict[str, Any]] = {}

        def score(alphas: Alphas) -> None:
            if alphas not in scores:
                _interpolate(model, start, aligned, alphas)
                scores[alphas] = {**self._told(alphas), **evaluate(model, tokenizer, self.validation)}

        def best() -> Alphas | None:
            row = _choose(list(scores.values()), self.validation, self.floor)
            return next((alphas for alphas, scored in scores.items() if scored is row), None)

        with restored_weights(model) as aligned:
            for alpha in self.grid:
                score((alpha,) * self.n_parts)
            found, before = best(), None
            while self.n_parts > 1 and found != before:
                before = found
                for part in range(self.n_parts):
                    others = found or self._aligned
                    for alpha in self.grid:
                        score((*others[:part], alpha, *others[part + 1 :]))
                    found = best()
        chosen = found or self._aligned
        self._found = {**self._told(chosen), "floor_held": found is not None, "scores": list(scores.values())}
        return chosen

    @property
    def _aligned(self) -> Alphas:
        return (1.0,) * self.n_parts

    def _told(self, alphas: Alphas) -> dict[str, Any]:
        mean = {"alpha": sum(alphas) / len(alphas)}
        return mean if self.n_parts == 1 else {**mean, "alphas": list(alphas)}


def choose_alpha(scores: Sequence[Mapping[str, Any]], suites: Mapping[str, Suite], floor: float) -> float | None:
    """The α of highest utility among those at which every safety suite is refused at a rate of at least `floor`.

    Each safety suite counts for itself: a mean could hide a kind of harm that is complied with. Utilities that differ
    by no more than one answer, 1/n over the n utility prompts together, count as equal; then the lower over-refusal
    decides, where a suite measures it, and then the larger, safer α.

    Args:
        scores: One row for each α: ``alpha`` and the scores of `evaluate`.
        suites: What was scored.
        floor: Refusal rate in [0, 1].

    Returns:
        The α, or None if no row holds the floor.
    """
    row = _choose(scores, suites, floor)
    return None if row is None else row["alpha"]


def part_of(model: torch.nn.Module, n_parts: int) -> dict[str, int]:
    """The part, counted from 0 at the input, that each parameter of a network cut by depth belongs to.

    Of L layers the i-th, from 0, is in part ⌊iK/L⌋. Outside of the layers, embeddings (also those that are the head's
    weights, too) are in the first part and everything else in the last.

    Raises:
        ValueError: There are fewer layers than parts.
    """
    names = [name for name, _ in model.named_parameters()]
    layers = [members for block, members in group_parameters(names, "layer").items() if block not in members]
    if n_parts > max(1, len(layers)):
        raise ValueError(
            f"Merging in {n_parts} parts needs as many layers, and {type(model).__name__} has {len(layers)}. Take "
            "fewer parts, or one α for all."
        )
    inside = {name: i * n_parts // len(layers) for i, members in enumerate(layers) for name in members}
    return {name: inside.get(name, 0 if _embeds(model, name) else n_parts - 1) for name in names}


def _numbers(alpha: float | str | Sequence[float]) -> Alphas:
    if isinstance(alpha, int | float):
        return (alpha,)
    return () if isinstance(alpha, str) else tuple(alpha)


def _embeds(model: torch.nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), torch.nn.Embedding)


def _choose(scores: Sequence[Mapping[str, Any]], suites: Mapping[str, Suite], floor: float) -> Mapping[str, Any] | None:
    refusals = [f"{name}/{AXES['safety']}" for name, suite in suites.items() if suite.axis == "safety"]
    held = [row for row in scores if all(row[refusal] >= floor for refusal in refusals)]
    if not held:
        return None
    best = max(row["utility"] for row in held)
    n = sum(len(suite.data) for suite in suites.values() if suite.axis == "utility")
    equal = [row for row in held if best - row["utility"] < 1.5 / n]  # 1.5: one answer, and no rounding decides
    return min(equal, key=lambda row: (row.get("over_refusal", 0.0), -row["alpha"]))


@torch.no_grad()
def _interpolate(
    model: torch.nn.Module, start: Mapping[str, Tensor], end: Mapping[str, Tensor], alphas: Alphas
) -> None:
    """Make the trained weights start + α(end − start), with the α of the part that each belongs to."""
    parts = part_of(model, len(alphas))
    for name, p in trained_parameters(model).items():
        p.copy_(torch.lerp(start[name].to(p.device), end[name], alphas[parts[name]]))
