"""The constraint of a gradient subspace as a callback for any `transformers.Trainer`; it knows no objective."""

import math
import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler

from workbench.alignment.measuring import Measurements, block_measures, write_spectrum
from workbench.alignment.metric import loss_scale_of, optimizer_metric
from workbench.alignment.references import ReferenceRows, share_out
from workbench.alignment.refreshing import DriftRefresh, Refresh, RidingRefresh, RollingRefresh
from workbench.alignment.restoring import Restore, Restoring
from workbench.alignment.resuming import checkpoint_folder, load_state, save_state
from workbench.alignment.support import (
    choose_parameters,
    refuse_unsupported,
    require_rank,
    warn_of_rounding,
    why_not_in_batch,
)
from workbench.alignment.techniques import Technique
from workbench.geometry.fitting import Rank
from workbench.geometry.gradients import local_shard
from workbench.geometry.kernels import Difference
from workbench.geometry.sharding import shard_reducer
from workbench.geometry.subspace import Reading, Scope, Subspace, When
from workbench.models import trained_parameters
from workbench.study.runs import Run

if TYPE_CHECKING:
    from datasets import Dataset

Side = Literal["gradient", "update", "metric", "none"]
NAMES: dict[Side, str] = {
    "gradient": "gradient_projection",
    "update": "update_projection",
    "metric": "metric_update_projection",
    "none": "plain_measured",
}


class GradientProjection(TrainerCallback, Technique):
    """Keep training out of the subspace that reference gradients span.

    Reference gradients R are taken and their orthonormal basis U fitted, again and again as `refresh` says. Then

    - ``side="gradient"``, the published rule (OGPSA, 2602.07892): g ← g − U Uᵀg before the optimizer. Adam's momentum
      and scaling turn part of the step back into the subspace, which `leakage` shows.
    - ``side="update"``, exact: the optimizer computes its whole step δ, momentum, preconditioner and weight decay
      included; then δ ← δ − U Uᵀδ, so that Uᵀδ = 0 for any optimizer, up to the rounding of the weights (fp32: about
      10⁻⁷ of them; 16-bit weights round by more than a small step, of which a warning tells).
    - ``side="metric"``, exact too: δ ← δ − D U (UᵀDU)⁻¹ Uᵀδ, the feasible step nearest to δ in the metric D⁻¹ of the
      optimizer, D = diag(1/(√v̂ + ε)).
    - ``side="none"``: nothing is projected, the same is measured.

    ``history`` holds one dict per optimizer step: ``step``; ``leakage`` = ‖Uᵀδ‖/‖δ‖ of the realised step before any
    restoring (NaN for a step of no length, such as the first of a warm-up); the ``random_floor`` √(r/d) that a random
    step would have; ``removed_energy`` = ‖Uᵀx‖²/‖x‖² of what was projected (the gradient, or the optimizer's step; for
    ``"none"`` of the step that was left alone); ``gradient_energy``, the same of the gradient before any projection;
    ``conflict_rate``, the share of domains and blocks whose reference loss what was projected would raise; ``drift``,
    the share of fresh reference gradients' energy that the outgoing basis misses (NaN where none was measured);
    ``refresh_seconds``; and with `restore` ``restore_size`` and, for each domain, ``violation/…`` in nats. Their means
    over the steps since the last log join the trainer's own metrics. ``block_history`` holds leakage and energies of
    each block, and where the step lies in the frame of the gradient: see `block_measures`.

    Example:
        ``SFTTrainer(..., callbacks=[GradientProjection(references, rank=4, side="update", refresh=10)])``

    Args:
        references: Domain name → demonstrations in TRL's columns (``prompt``/``completion``, ``prompt``/``chosen`` or
            ``text``) of what must not be lost.
        rank: Directions per block. None keeps one mean gradient per domain, as published; a number takes the leading
            singular vectors; a share in (0, 1) as many as hold that energy; ``"floor"`` those that stand out of what
            random gradients show; 0 constrains nothing.
        scope: Blocks: ``"tensor"``, ``"layer"`` or ``"global"``, see `Subspace`.
        side: ``"gradient"``, ``"update"``, ``"metric"`` or ``"none"``.
        when: ``"always"``, or ``"conflict"``: only as far as a domain's loss would rise to first order (A-GEM for one
            domain, GEM's quadratic program for several).
        before_clipping: On the gradient side, whether the gradient is clipped after it is projected, as in the official
            code, or before.
        refresh: Optimizer steps between two fits; ``"rolling"``: every step renews one domain; ``"drift"``: fit again
            when a probe shows that the basis misses `drift_threshold` of what it held of fresh gradients. None is 10,
            or 1 with `references_in_batch`.
        drift_threshold: See `refresh`.
        restore: Undo drift after each step: ρ for a step of fixed size, or a `Restore`. The domains' losses are
            compared with those before the training began, on the same rows.
        references_in_batch: (training rows, reference rows) of every micro-batch: reference rows ride in the forward
            and backward of the training rows, and their gradients are split out of it exactly, so that every step has
            a fresh basis for the price of its rows. The first is the trainer's ``per_device_train_batch_size``.
        target_parameters: Patterns such as ``"*mlp*"`` or ``"*lora_A*"`` of the parameters to constrain; None is all
            that are trained.
        gradients_per_domain: Gradients taken of each domain, on as many shares of its rows. None takes one, or as many
            as `rank` needs, and 8 for an energy or the floor.
        basis_dtype: Of the stored basis, such as ``"bfloat16"``; None is that of the gradients, float32 or wider.
        basis_device: Where it lies, such as ``"cpu"``, or ``"disk"`` for a file mapped into memory; None is where the
            gradients are.
        n_samples: Reference rows per fit, over all domains together; fresh ones are drawn for each.
        max_length: Tokens at which a reference row is cut.
        packing: Whether reference rows are laid end to end instead of padded; refused where that is not exact. None
            packs where attention gains by it (flash attention).
        batch_size: Most rows in one backward: it bounds memory, not what is computed.
        seed: Of the drawn rows; training's own random state is never touched.

    Raises:
        ValueError: References are empty, or too few for `rank`; a setting is out of range, or contradicts another.
    """

    def __init__(
        self,
        references: "Mapping[str, Dataset]",
        *,
        rank: Rank = None,
        scope: Scope = "tensor",
        side: Side = "update",
        when: When = "always",
        before_clipping: bool = True,
        refresh: int | Literal["rolling", "drift"] | None = None,
        drift_threshold: float = 0.5,
        restore: float | Restore = 0.0,
        references_in_batch: tuple[int, int] | None = None,
        target_parameters: str | Sequence[str] | None = None,
        gradients_per_domain: int | None = None,
        basis_dtype: str | None = None,
        basis_device: str | None = None,
        n_samples: int = 64,
        max_length: int = 1024,
        packing: bool | None = None,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        """Check and keep the settings; nothing is computed before training begins."""
        sizes = {domain: len(rows) for domain, rows in references.items()}
        if not sizes or not all(sizes.values()):
            raise ValueError(f"references must map at least one domain to a non-empty dataset, got {sizes}.")
        for value, name, choices in ((side, "side", Side), (scope, "scope", Scope), (when, "when", When)):
            if value not in get_args(choices):
                raise ValueError(f"{name} must be one of {get_args(choices)}, got {value!r}.")
        if refresh is None:
            refresh = 1 if references_in_batch else 10
        if refresh not in ("rolling", "drift") and (not isinstance(refresh, int) or refresh < 1):
            raise ValueError(f'refresh must be a number of steps of at least 1, "rolling" or "drift", got {refresh!r}.')
        if min(batch_size, gradients_per_domain or 1) < 1 or n_samples < len(sizes) or not 0 < drift_threshold < 1:
            raise ValueError(
                "batch_size and gradients_per_domain must be at least 1, drift_threshold in (0, 1), and n_samples at "
                f"least one row for each of the {len(sizes)} domains, got {batch_size}, {gradients_per_domain}, "
                f"{drift_threshold} and {n_samples}."
            )
        if references_in_batch and (refresh != 1 or min(references_in_batch) < 1):
            raise ValueError(
                "references_in_batch takes two numbers of rows of at least 1, and every step has a fresh basis then: "
                f"leave refresh out. Got {references_in_batch} and refresh={refresh!r}."
            )
        self.references = references
        self.rank, self.scope, self.side, self.when = rank, scope, side, when
        self.before_clipping, self.refresh, self.drift_threshold = before_clipping, refresh, drift_threshold
        self.restore = restore if isinstance(restore, Restore) else Restore(restore)
        # In records and figures: settings that make another technique of it.
        self.name = f"gem_{side}" if when == "conflict" and side != "none" else NAMES[side]
        self.name += "_restored" if self.restore.strength else ""
        self.references_in_batch = references_in_batch
        self.target_parameters = [target_parameters] if isinstance(target_parameters, str) else target_parameters
        self.basis_dtype = getattr(torch, basis_dtype) if basis_dtype else None
        self.basis_device, self.max_length, self.batch_size, self.seed = basis_device, max_length, batch_size, seed
        self.n_samples, self.packing = n_samples, packing
        n_rows = references_in_batch[1] if references_in_batch else n_samples
        self.n_rows = {d: min(n, sizes[d]) for d, n in share_out(n_rows, list(sizes)).items()}
        self.n_gradients = gradients_per_domain or _gradients_needed(rank, len(sizes))
        require_rank(rank, self.n_gradients, self.n_rows, when == "conflict" or self.restore.strength > 0)
        self._measured = Measurements()
        # While a training runs:
        self._rows: ReferenceRows | None = None
        self._refresh: Refresh | None = None
        self._last: Any = None  # the basis of a training that is over
        self._model: Any = None  # whose losses before alignment are kept, weakly
        self._clipping: tuple[Any, float] | None = None  # the trainer's arguments and the limit they came with
        self._before: dict[str, Tensor] = {}
        self._gradient: Any = None  # the reading of this step's

    def parameters(self) -> dict[str, Any]:
        """The settings, for a record."""
        return {
            "rank": self.rank,
            "scope": self.scope,
            "side": self.side,
            "when": self.when,
            "before_clipping": self.before_clipping,
            "refresh": self.refresh,
            "drift_threshold": self.drift_threshold,
            "restore": asdict(self.restore),
            "references_in_batch": self.references_in_batch,
            "target_parameters": self.target_parameters,
            "gradients_per_domain": self.n_gradients,
            "basis_dtype": str(self.basis_dtype).removeprefix("torch.") if self.basis_dtype else None,
            "n_samples": self.n_samples,
            "packing": self.packing,
            "max_length": self.max_length,
            "batch_size": self.batch_size,
            "domains": list(self.references),
            "reference_seed": self.seed,
        }

    def data(self) -> "dict[str, Dataset]":
        """The datasets it reads, for a record."""
        return {f"reference/{domain}": rows for domain, rows in self.references.items()}

    def training_rows(self, batch_size: int) -> int:
        """How many of a batch's rows come from the training set, when reference rows ride in it."""
        if self.references_in_batch and sum(self.references_in_batch) != batch_size:
            raise ValueError(
                f"references_in_batch={self.references_in_batch} makes {sum(self.references_in_batch)} rows a batch, "
                f"got batch_size={batch_size} in a process. Make them equal."
            )
        return self.references_in_batch[0] if self.references_in_batch else batch_size

    @property
    def subspace(self) -> Any:
        """The basis that holds now, or held last: a `Subspace`."""
        return self._last if self._refresh is None else self._refresh.subspace

    @property
    def history(self) -> list[dict[str, float]]:
        """One dict per optimizer step."""
        return self._measured.history

    @property
    def block_history(self) -> list[dict[str, Any]]:
        """``step``, ``block`` and what `block_measures` names, of every block at every step."""
        return self._measured.by_block

    def keep(self, run: Run) -> None:
        """Write `block_history` as ``blocks.parquet``, and the last basis' singular values as ``spectrum.parquet``."""
        self._measured.write_blocks(run.file("blocks.parquet"))
        if isinstance(self.subspace, Subspace):  # a null space of activations has no such spectrum
            write_spectrum(self.subspace, run.file("spectrum.parquet"))

    # --- the trainer's events, in the order of one optimizer step -----------------------------------------------------

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Come before the callbacks that report, so that they see what `on_log` adds to the trainer's metrics."""
        handler = sys._getframe(1).f_locals.get("self")  # the trainer gives callbacks no other way to it
        if isinstance(handler, CallbackHandler) and self in handler.callbacks:
            handler.callbacks.remove(self)
            handler.callbacks.insert(0, self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Encode the references with the trainer's tokenizer, and refuse trainers in which the constraint fails."""
        tokenizer = kwargs.get("processing_class")
        if tokenizer is None:
            raise ValueError("GradientProjection needs the trainer's tokenizer: pass processing_class= to the trainer.")
        model = kwargs["model"]
        self.close()
        self._parameters = choose_parameters(trained_parameters(model), self.target_parameters)
        refuse_unsupported(args, self._parameters, self.side)
        if self.side in ("update", "metric"):
            warn_of_rounding(self._parameters)
        self._reduce = shard_reducer(self._parameters.values())
        rows = ReferenceRows(self.references, tokenizer, self.max_length, self.seed)
        if self._rows is not None and self._model is not None and self._model() is model:
            rows.base = self._rows.base  # a second stage is held to the losses before the first
        rows.pack_if(self.packing, model)
        self._rows, self._model = rows, weakref.ref(model)
        self._steps_before = 0 if state.global_step else self._measured.n_steps
        self._refresh = self._build_refresh(args, model, kwargs.get("optimizer"))
        self._restoring = Restoring(self.restore, self._reduce)
        if state.global_step:
            place = model.device if self.basis_device in (None, "disk") else self.basis_device
            self._resume(*load_state(checkpoint_folder(args, state), place, self._refresh.basis_class))
        elif self.restore.strength and not rows.has_base:
            rows.measure_base(model, self.batch_size)
        self._clipping = (args, args.max_grad_norm)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refresh the basis when it is due, and keep the trainer from clipping what will be projected."""
        assert self._refresh is not None
        self._refresh.before_step(state.global_step)
        if self.side == "gradient" and self.before_clipping:
            args.max_grad_norm = 0.0

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Another micro-batch of the same step follows."""
        assert self._refresh is not None
        self._refresh.before_micro_batch()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Project the gradient if that is the side, and keep the parameters as they are before the step."""
        assert self._refresh is not None
        self._unclip()
        self._refresh.after_backward()
        self._gradient = None
        if self.side == "gradient":
            gradients = self._gradients()
            (self._gradient,) = self.subspace.read(gradients)
            self._project(gradients, state.global_step)
            if self.before_clipping and args.max_grad_norm:
                self._clip(kwargs["model"], gradients, args.max_grad_norm)
        self._before = {name: local_shard(p.detach()).clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Project the step that the optimizer took if that is the side, measure what remains, and restore."""
        after = {name: local_shard(p.detach()) for name, p in self._parameters.items()}
        step = {name: Difference(after[name], self._before[name]) for name in after}
        metric = None
        if self.side == "metric":
            optimizer = kwargs["optimizer"]
            metric = optimizer_metric(getattr(optimizer, "optimizer", optimizer), self._parameters)
        if self._gradient is None:
            self._gradient, raw = self.subspace.read(self._gradients(), step, metric=metric)
        else:
            (raw,) = self.subspace.read(step)
        realised = raw
        if self.side in ("update", "metric") and self.subspace.rank:
            self.subspace.subtract_(after, self.subspace.removal(raw, self.when), metric)
            (realised,) = self.subspace.read(step)
        self._before = {}
        del step  # it would keep the copy from before
        self._note(self._steps_before + state.global_step + 1, raw, realised, self._restore(after, realised))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Add the means since the last log to the trainer's metrics."""
        self._measured.add_to(logs, state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep beside the checkpoint what a resumed training goes on with."""
        assert self._refresh is not None and self._rows is not None
        kept: dict[str, Any] = {"rows": self._rows.state_dict(), "refresh": self._refresh.state_dict()}
        kept |= {"measured": self._measured.state_dict(), "steps_before": self._steps_before}
        kept |= {"moments": self._restoring.moments, "n_restored": self._restoring.n_steps}
        subspace = self.subspace if self._refresh.outlasts_step else None
        save_state(checkpoint_folder(args, state), kept, subspace)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the model as it was found."""
        self.close()

    def close(self) -> None:
        """Leave the model as it was found, also when training was interrupted."""
        self._last = self.subspace
        if self._refresh is not None:
            self._refresh.close()
        self._unclip()
        self._refresh, self._before, self._clipping = None, {}, None

    # --- parts ----------------------------------------------------------------------------------------------------

    def _project(self, gradients: Mapping[str, Tensor], step: int) -> None:
        """Change the gradient in place; it has been read."""
        self.subspace.subtract_(gradients, self.subspace.removal(self._gradient, self.when, -1))

    def _build_refresh(self, args: Any, model: torch.nn.Module, optimizer: Any) -> Refresh:
        on_disk = self.basis_device == "disk"
        place: Any = {"dtype": self.basis_dtype, "device": None if on_disk else self.basis_device}
        place |= {"as_they_are": True, "reduce": self._reduce}
        fit: Any = partial(Subspace.fit, rank=self.rank, scope=self.scope, **place)
        build: Any
        if self.references_in_batch and not why_not_in_batch(args, model, self._parameters, self.references_in_batch):
            build = RidingRefresh
        elif self.refresh == "rolling":
            build = RollingRefresh
        elif self.refresh == "drift":
            build = partial(DriftRefresh, threshold=self.drift_threshold)
        else:
            build = partial(Refresh, interval=self.refresh)
        return build(
            model,
            self._parameters,
            self._rows,
            (lambda gradients, inplace: fit(gradients, inplace=inplace).on_disk()) if on_disk else fit,
            self.n_rows,
            self.n_gradients,
            self.batch_size,
            loss_scale=loss_scale_of(optimizer),
        )

    def _resume(self, state: Mapping[str, Any], subspace: Any) -> None:
        assert self._refresh is not None and self._rows is not None
        self._measured.load_state_dict(state["measured"])
        self._steps_before = state["steps_before"]
        self._rows.load_state_dict(state["rows"])
        self._refresh.load_state_dict(state["refresh"])
        self._restoring.moments = {n: m.to(self._parameters[n].device) for n, m in state["moments"].items()}
        self._restoring.n_steps = state["n_restored"]
        self._refresh.subspace = replace(subspace, reduce=self._reduce) if subspace and self._reduce else subspace
        if self.restore.strength and not self._rows.has_base:
            raise ValueError(
                "The checkpoint was written without restore=, so the losses before training are not known. Resume "
                "without it, or start anew."
            )

    def _unclip(self) -> None:
        """Give the trainer its limit back."""
        if self._clipping is not None:
            arguments, limit = self._clipping
            arguments.max_grad_norm = limit

    def _clip(self, model: torch.nn.Module, gradients: Mapping[str, Tensor], limit: float) -> None:
        """Clip as the trainer would have; the length of what is left is known if all of it has just been projected."""
        n_trained = sum(p.numel() for p in trained_parameters(model).values())
        if not self.subspace.rank or self.when != "always" or self.subspace.n_params < n_trained:
            torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
            return
        left = (self._gradient.total - self._gradient.energy.inside).clamp(min=0).sum().sqrt().item()
        if left > limit:
            torch._foreach_mul_(list(gradients.values()), limit / (left + 1e-6))

    def _gradients(self) -> dict[str, Tensor]:
        return {
            name: local_shard(torch.zeros_like(p) if p.grad is None else p.grad) for name, p in self._parameters.items()
        }

    def _restore(self, parameters: Mapping[str, Tensor], realised: Reading) -> dict[str, float]:
        assert self._refresh is not None
        violations = self._refresh.violations
        if not self.restore.strength or not violations:
            return {}
        rises = torch.tensor([violations[domain] for domain in self.subspace.domains], dtype=torch.float64)
        length = realised.total.sum().sqrt().item()
        size = self._restoring.step_(parameters, self.subspace, rises, length)
        return {"restore_size": size, **{f"violation/{domain}": rise for domain, rise in violations.items()}}

    def _note(self, step: int, raw: Reading, realised: Reading, restored: Mapping[str, float]) -> None:
        assert self._refresh is not None
        projected, direction = (self._gradient, -1) if self.side == "gradient" else (raw, 1)
        moved = bool(realised.total.sum() > 0)
        metrics = {
            "leakage": math.sqrt(realised.energy.share) if moved else math.nan,
            "random_floor": self.subspace.random_floor,
            "removed_energy": projected.energy.share,
            "gradient_energy": self._gradient.energy.share,
            "conflict_rate": self.subspace.conflicts(projected, direction).double().mean().item(),
            "drift": self._refresh.drift,
            "refresh_seconds": self._refresh.seconds,
            **restored,
        }
        by_block = block_measures(self.subspace, self._gradient, projected, raw, realised)
        self._measured.note(step, metrics, self.subspace.names, **by_block)


def _gradients_needed(rank: Rank, n_domains: int) -> int:
    if rank is None:
        return 1
    return max(1, math.ceil(rank / n_domains)) if isinstance(rank, int) else 8
