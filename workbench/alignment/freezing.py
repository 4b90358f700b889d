"""Freezing: parameters that training leaves as they are."""

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import torch

from workbench.alignment.techniques import Technique
from workbench.models import trained_parameters


class Freeze(Technique):
    """Leave the parameters whose names match as they are, and train the others.

    With frozen embeddings a word keeps its place among the words it is like: what is learned of the words of the
    training rows reaches words that none of them has, and nothing is learned of a word alone. Tied embeddings freeze
    the language-model head too.

    Args:
        parameters: Shell patterns of parameter names, such as ``"*embed*"`` or ``["*norm*", "*.layers.0.*"]``.

    Raises:
        ValueError: Before training, if a pattern matches no trained parameter, or nothing would be left to train.
    """

    name = "frozen"
    changes_model = True

    def __init__(self, parameters: str | Sequence[str] = "*embed*") -> None:
        """Keep the patterns."""
        self.patterns = [parameters] if isinstance(parameters, str) else list(parameters)
        self._frozen: list[torch.nn.Parameter] = []

    def parameters(self) -> dict[str, Any]:
        """The settings, for a record."""
        return {"parameters": self.patterns}

    def prepare(self, model: torch.nn.Module, seed: int) -> None:
        """Freeze what matches."""
        trained = trained_parameters(model)
        if idle := [p for p in self.patterns if not any(fnmatch(name, p) for name in trained)]:
            raise ValueError(
                f"Freeze({idle}) matches none of the {len(trained)} trained parameters, such as {list(trained)[:3]}. "
                "Patterns are those of a shell: * stands for anything."
            )
        self._frozen = [p for name, p in trained.items() if any(fnmatch(name, pattern) for pattern in self.patterns)]
        if len(self._frozen) == len(trained):
            raise ValueError(f"Freeze({self.patterns}) leaves nothing to train: name fewer parameters.")
        for parameter in self._frozen:
            parameter.requires_grad_(False)

    def release(self, model: torch.nn.Module) -> None:
        """Give back what was frozen."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []

    def report(self) -> dict[str, Any]:
        """How many parameters were frozen."""
        return {"n_frozen": sum(p.numel() for p in self._frozen)}
