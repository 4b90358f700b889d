"""Refreshing: when reference gradients are taken anew, and how they are come by."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.alignment.references import Draw, ReferenceRows, share_out
from workbench.geometry.activations import ActivationSubspace
from workbench.geometry.gradients import NOT_FINITE, Loss, ReferenceGradients, model_loss, reference_gradients
from workbench.geometry.sharding import sum_gradients_, sum_over_processes_, world
from workbench.geometry.split import GradientSplit
from workbench.geometry.streaming import SlidingWindow
from workbench.geometry.subspace import Subspace

Fit = Callable[..., Subspace]  # (gradients, inplace=…) → the subspace, with the rank, scope and place that were chosen

N_PROBE = 8  # reference rows whose gradient tells how much of fresh gradients a basis still holds


class Refresh:
    """Passes of their own over fresh reference rows, every `interval` optimizer steps.

    Attributes:
        subspace: The basis that holds now, of the `basis_class`; None before the first.
        violations: L_k − L_k(θ₀) by domain in nats, where its last gradients were taken; empty if the losses before
            alignment are not known.
        loss: Whose gradients are taken, in passes of their own.
        drift: Of the step that begins; see `GradientProjection`.
        seconds: What refreshing took in it.

    Args:
        model: The trainer's model, unwrapped.
        parameters: Those to constrain, by name.
        rows: The reference rows.
        fit: Makes a subspace of gradients.
        n_rows: Rows of every domain in one fit.
        n_gradients: Gradients of every domain, on as many shares of its rows.
        batch_size: Most rows in one backward.
        interval: Optimizer steps.
        loss_scale: () → the scale of a float16 training, or 1.
    """

    basis_class: type = Subspace

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: Mapping[str, torch.nn.Parameter],
        rows: ReferenceRows,
        fit: Fit,
        n_rows: Mapping[str, int],
        n_gradients: int,
        batch_size: int,
        interval: int = 1,
        loss_scale: Callable[[], float] = lambda: 1.0,
    ) -> None:
        """Keep what is needed; nothing is computed yet."""
        self.model, self.parameters, self.rows, self.fit = model, parameters, rows, fit
        self.n_rows, self.n_gradients, self.batch_size = n_rows, n_gradients, batch_size
        self.interval, self.loss_scale = interval, loss_scale
        self.subspace: Any = None
        self.loss: Loss = model_loss
        self._device = next(model.parameters()).device
        self.violations: dict[str, float] = {}
        self.drift, self.seconds = math.nan, 0.0

    def before_step(self, step: int) -> None:
        """Refresh if it is due; gradients are empty at this moment, so nothing is disturbed."""
        started = time.perf_counter()
        self.drift = math.nan
        refreshed = self._refresh(step)
        self.seconds = time.perf_counter() - started if refreshed else 0.0

    def before_micro_batch(self) -> None:
        """Called before every micro-batch of a step but the first."""

    def after_backward(self) -> None:
        """Called when the step's gradients are complete."""

    def close(self) -> None:
        """Leave the model as it was found."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs besides the subspace and the rows' random state."""
        return {"violations": self.violations}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.violations = dict(state["violations"])

    @property
    def outlasts_step(self) -> bool:
        """Whether a basis holds for more than one step."""
        return self.interval > 1

    # --- parts ----------------------------------------------------------------------------------------------------

    def _refresh(self, step: int) -> bool:
        if self.subspace is not None and step % self.interval:
            return False
        if self.subspace is not None and self.interval > 1:
            self.drift = 1 - self._explained()
        self._fit_afresh()
        return True

    def _fit_afresh(self) -> None:
        self.subspace = None  # the old basis makes room before the new gradients come
        gradients = self._gradients(self.rows.draw(self.n_rows, self.n_gradients))
        self.subspace = self.fit(gradients, inplace=True)

    def _explained(self) -> float:
        """The share of a fresh reference gradient's energy, all domains together, that the basis holds."""
        wanted = share_out(max(N_PROBE, len(self.n_rows)), list(self.n_rows))
        n_rows = {domain: min(n, self.n_rows[domain]) for domain, n in wanted.items()}
        batches = self._batches(self.rows.draw(n_rows))
        together = [(batch, share / len(batches)) for gradients in batches.values() for batch, share in gradients[0]]
        found = reference_gradients(self.model, {"": [together]}, self.parameters, loss_scale=self.loss_scale())
        sum_gradients_(found.tensors, self.parameters)
        return self.subspace.energy({name: rows[0] for name, rows in found.tensors.items()}).share

    def _gradients(self, draw: Draw) -> ReferenceGradients:
        scale = self.loss_scale()
        while True:
            batches = self._batches(draw)
            found = reference_gradients(self.model, batches, self.parameters, self.loss, scale, require_finite=False)
            sum_gradients_(found.tensors, self.parameters)
            if broken := _not_finite(found.tensors):
                if scale <= 1:
                    raise FloatingPointError(NOT_FINITE.format(broken))
                scale /= 16  # float16 overflows where training itself would have skipped the step
                continue
            break
        assert found.losses is not None
        sum_over_processes_([found.losses])
        self._compare(found.domains, found.losses, self.rows.base_losses(draw) if self.rows.has_base else None)
        return found

    def _batches(self, draw: Draw) -> dict[str, list[Any]]:
        return self.rows.batches(draw, self.batch_size, self._device)

    def _compare(self, domains: tuple[str, ...], losses: Tensor, base: Tensor | None) -> None:
        if base is not None:
            rise = losses.cpu().double() - base
            for domain in dict.fromkeys(domains):
                self.violations[domain] = rise[[d == domain for d in domains]].mean().item()


class ActivationRefresh(Refresh):
    """The null space of the activations that fresh reference rows cause.

    Every process takes all rows, so that their covariances agree.
    """

    basis_class = ActivationSubspace

    def __init__(self, *args: Any, energy: float, **options: Any) -> None:
        """As `Refresh`, with the share of the inputs' energy to hold."""
        super().__init__(*args, **options)
        self.energy = energy

    def _refresh(self, step: int) -> bool:
        if self.subspace is not None and step % self.interval:
            return False
        batches = self.rows.all_batches(self.rows.draw(self.n_rows), self.batch_size, self._device)
        self.subspace = ActivationSubspace.fit(self.model, batches, self.parameters, self.energy)
        return True


class DriftRefresh(Refresh):
    """A probe at every step; a new fit when the basis has lost `threshold` of what it held of fresh gradients."""

    def __init__(self, *args: Any, threshold: float, **options: Any) -> None:
        """As `Refresh`, with the threshold."""
        super().__init__(*args, **options)
        self.threshold = threshold
        self.held = 0.0  # by the basis when it was new

    @property
    def outlasts_step(self) -> bool:
        """Until the next probe finds it wanting."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """The share that the basis held when it was new."""
        return {**super().state_dict(), "held": self.held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        super().load_state_dict(state)
        self.held = state["held"]

    def _refresh(self, step: int) -> bool:
        if self.subspace is not None:
            holds = self._explained()
            self.drift = 1 - holds
            if holds >= (1 - self.threshold) * self.held:
                return True
        self._fit_afresh()
        self.held = self._explained()
        return True


class RollingRefresh(Refresh):
    """Every step renews the gradients of one domain, and the basis is fitted on the latest of each.

    A window keeps those gradients, so this takes the memory of a second basis.
    """

    window: SlidingWindow | None = None

    def state_dict(self) -> dict[str, Any]:
        """The window."""
        return {**super().state_dict(), "window": self.window and self.window.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        super().load_state_dict(state)
        if state["window"]:
            rows = {name: rows.to(self.parameters[name].device) for name, rows in state["window"]["rows"].items()}
            self.window = SlidingWindow(len(self.n_rows) * self.n_gradients)
            self.window.load_state_dict({**state["window"], "rows": rows})

    def _refresh(self, step: int) -> bool:
        domains = list(self.n_rows)
        renewed = (
            domains if self.window is None else [domains[(step - 1) % len(domains)]]
        )  # whose gradients are the oldest
        if self.window is None:
            self.window = SlidingWindow(len(domains) * self.n_gradients)
        gradients = self._gradients(self.rows.draw({d: self.n_rows[d] for d in renewed}, self.n_gradients))
        for i, domain in enumerate(gradients.domains):
            self.window.update({name: rows[i] for name, rows in gradients.tensors.items()}, domain)
        self.subspace = None
        self.subspace = self.fit(self.window.gradients(), inplace=False)
        return True


class RidingRefresh(Refresh):
    """Reference rows ride in every micro-batch, and their gradients come out of its one backward."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """As `Refresh`; `n_rows` are those of one micro-batch in one process."""
        super().__init__(*args, **options)
        self.domains = tuple(d for d in self.n_rows for _ in range(self.n_gradients))
        short = {d: len(self.rows.rows[d]) for d, n in self.n_rows.items() if len(self.rows.rows[d]) < n * world()[1]}
        if short:
            raise ValueError(
                f"{world()[1]} processes take {self.n_rows} reference rows each into every batch, but there are only "
                f"{short}. Give more references, or fewer in references_in_batch."
            )
        self.split = GradientSplit(self.model, self.parameters, len(self.domains))
        self._base: list[Tensor] = []

    def before_step(self, step: int) -> None:
        """Send rows along with the first micro-batch; the old basis makes room for their gradients."""
        self.subspace, self._base, self.seconds = None, [], 0.0
        self.before_micro_batch()

    def before_micro_batch(self) -> None:
        """Send rows along."""
        rank, n_processes = world()
        drawn = self.rows.draw({d: n * n_processes for d, n in self.n_rows.items()}, n_processes)
        mine = {d: [parts[rank][i :: self.n_gradients] for i in range(self.n_gradients)] for d, parts in drawn.items()}
        self.split.ride(self.rows.whole(mine, self._device), self.loss_scale())
        if self.rows.has_base:
            self._base.append(self.rows.base_losses(mine))

    def after_backward(self) -> None:
        """Fit the basis on what came out of the backward."""
        started = time.perf_counter()
        tensors, losses = self.split.collect()
        base = torch.stack(self._base).mean(0).to(losses) if self._base else losses
        both = torch.stack([losses, base]) / world()[1]
        sum_over_processes_([both])
        sum_over_processes_(tensors.values())
        overflown = self.loss_scale() > 1 and _not_finite(tensors)
        for tensor in tensors.values():
            if overflown:
                tensor.zero_()  # no basis, for a step that float16 will probably skip
            elif world()[1] > 1:
                tensor /= world()[1]
        self._compare(self.domains, both[0], both[1].cpu().double() if self._base else None)
        self.subspace = self.fit(ReferenceGradients(self.domains, tensors, losses), inplace=True)
        self.seconds = time.perf_counter() - started

    def close(self) -> None:
        """Take the split out of the model."""
        self.split.remove()


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The parameter in whose gradients some process finds NaN or infinity; empty if none does."""
    sums = torch.stack([rows.sum(dtype=torch.float32) for rows in tensors.values()])
    sum_over_processes_([sums])
    return next((name for name, good in zip(tensors, sums.isfinite().tolist(), strict=True) if not good), "")
