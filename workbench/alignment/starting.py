"""The model before the run: a copy of its trained parameters, which is run beside the one that trains."""

from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call

from workbench.alignment.resuming import checkpoint_folder
from workbench.alignment.support import under_deepspeed
from workbench.geometry.gradients import Batch
from workbench.models import trained_parameters


class StartingWeights:
    """One copy of the trained parameters, from before the first stage of a run to its end.

    Attributes:
        tensors: By parameter name; empty before `keep`.

    Args:
        technique: Whose it is, for what is said to its user.
        file: Where it lies beside a checkpoint.
    """

    def __init__(self, technique: str, file: str) -> None:
        """Nothing is kept yet."""
        self.technique, self.file = technique, file
        self.tensors: dict[str, Tensor] = {}

    def keep(self, args: Any, state: Any, model: torch.nn.Module) -> None:
        """Copy the parameters when training begins, once for all stages; a resumed training reads its copy.

        Raises:
            ValueError: The parameters are sharded, or DeepSpeed keeps the gradients to itself.
            FileNotFoundError: The checkpoint that training resumes from has no copy.
        """
        sharded = any(hasattr(p, "to_local") or hasattr(p, "_is_flat_param") for p in model.parameters())
        if sharded or under_deepspeed(args):
            raise ValueError(
                f"{self.technique} runs the model with its earlier parameters in place of its own, which sharded "
                "models (FSDP, DeepSpeed) do not allow. Train in one process or under DDP, or hold abilities with "
                "wb.Replay."
            )
        if self.tensors:
            return
        parameters = trained_parameters(model)
        self.tensors = {name: p.detach().clone() for name, p in parameters.items()}
        if state.global_step:
            path = checkpoint_folder(args, state) / self.file
            if not path.exists():
                raise FileNotFoundError(
                    f"Training resumes at {path.parent}, where {path.name} is missing: the checkpoint was written "
                    f"without {self.technique}, so the model before training is not known. Resume from one with it, or "
                    "start anew."
                )
            self.tensors = {name: tensor.to(parameters[name]) for name, tensor in load_file(path).items()}

    def save(self, args: Any, state: Any) -> None:
        """Write the copy beside the checkpoint."""
        if state.is_world_process_zero:
            path = checkpoint_folder(args, state) / self.file
            partial = path.with_name(path.name + ".partial")
            save_file(self.tensors, partial)
            partial.rename(path)

    @torch.no_grad()
    def logits(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """What the model before the run says, (rows, tokens, vocabulary)."""
        return functional_call(model, self.tensors, kwargs={**batch, "use_cache": False}).logits
