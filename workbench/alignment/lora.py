"""LoRA as a technique: low-rank factors are trained, and merged wherever the model is judged, merged or saved."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.alignment.techniques import Technique
from workbench.models import is_sharded, trained_parameters


class LoRA(Technique):
    """Train W + (alpha/rank)·BA with W frozen (Hu et al. 2021, 2106.09685), by peft.

    The factors are put into the model itself before the first stage, B at zero, so that nothing changes; all stages of
    a run train the same. At every evaluation and at the end they are merged: suites, `Merge` and saving see a plain
    model, whose weights can be interpolated. DPO's reference is the model at the start of its stage, factors included.
    However the run ends, the model comes back plain.

    It combines with all other techniques; what acts on trained parameters, such as `GradientProjection`, acts on the
    factors. Among several it comes first, wherever it stands.

    Args:
        rank: Of each BA.
        alpha: Scales BA as alpha/rank.
        target_modules: As in `peft.LoraConfig`: ``"all-linear"`` is every linear layer but the head.
        dropout: Of what the factors read.
        options: Further arguments of `peft.LoraConfig`, such as ``{"use_rslora": True}``.

    Raises:
        ValueError: A number is out of range; before training, if the model has adapters already or is sharded.
    """

    name = "lora"
    changes_model = True

    def __init__(
        self,
        rank: int = 8,
        alpha: int = 16,
        target_modules: str | Sequence[str] = "all-linear",
        dropout: float = 0.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Check and keep the settings."""
        if rank < 1 or alpha < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"rank and alpha must be at least 1 and dropout in [0, 1), got {rank}, {alpha} and {dropout}."
            )
        self.rank, self.alpha, self.dropout, self.options = rank, alpha, dropout, dict(options or {})
        self.target_modules = target_modules if isinstance(target_modules, str) else list(target_modules)
        self._layers: dict[str, Any] = {}  # those of peft, by name
        self._frozen: dict[str, Tensor] = {}  # each one's W while another stands in its place
        self._trained: tuple[set[str], set[str]] = (set(), set())  # of the plain model, and with the factors in it
        self._n_factors = 0

    def parameters(self) -> dict[str, Any]:
        """The settings, for a record."""
        settings = {"rank": self.rank, "alpha": self.alpha, "dropout": self.dropout}
        return settings | {"target_modules": self.target_modules, **self.options}

    def prepare(self, model: torch.nn.Module, seed: int) -> None:
        """Put the factors in; A is drawn from the run's seed, training's own random state stays as it is."""
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        if hasattr(model, "peft_config") or any(isinstance(m, LoraLayer) for m in model.modules()):
            raise ValueError(
                "LoRA puts adapters into a plain model, and this one has some already: merge them first "
                "(model.merge_and_unload()), or leave wb.LoRA out and train those."
            )
        if is_sharded(model):
            raise ValueError(
                "LoRA merges factors into whole weights, which sharded models (FSDP) have not. Train in one process or "
                "under DDP, where few parameters have gradients and states anyway."
            )
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=self.target_modules,
            lora_dropout=self.dropout,
            task_type="CAUSAL_LM",
            **self.options,
        )
        plain = set(trained_parameters(model))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model)
        del model.peft_config  # to trainers it is a plain model, of which some parameters are trained
        factors = trained_parameters(model)
        for p in factors.values():
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))  # small steps vanish in 16 bits
        self._layers = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
        self._trained, self._n_factors = (plain, set(factors)), sum(p.numel() for p in factors.values())

    def deploy(self, model: torch.nn.Module, tokenizer: Any, start: Mapping[str, Tensor]) -> None:
        """Put W + (alpha/rank)·BA in the place of each adapted layer."""
        for name, layer in self._layers.items():
            base = layer.get_base_layer()
            self._frozen[name] = base.weight.data
            layer.merge(safe_merge=True)  # into a copy
            model.set_submodule(name, base)
        _train_only(model, self._trained[0])

    def withdraw(self, model: torch.nn.Module, tokenizer: Any) -> None:
        """Put the adapted layers back as they were, bit for bit."""
        for name, layer in self._layers.items():
            layer.get_base_layer().weight.data = self._frozen.pop(name)
            layer.merged_adapters.clear()
            model.set_submodule(name, layer)
        _train_only(model, self._trained[1])

    def release(self, model: torch.nn.Module) -> None:
        """Leave a plain model, merged also where training was interrupted."""
        if not self._frozen:
            self.deploy(model, None, {})
        self._layers, self._frozen = {}, {}

    def report(self) -> dict[str, Any]:
        """How many parameters were trained."""
        return {"n_trained": self._n_factors}


def _train_only(model: torch.nn.Module, names: set[str]) -> None:
    for name, p in model.named_parameters():
        p.requires_grad_(name in names)
