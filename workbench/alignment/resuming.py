"""What a callback keeps beside a trainer's checkpoint: tensors in safetensors, everything else in JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from workbench.geometry.sharding import world


def checkpoint_folder(args: Any, state: Any) -> Path:
    """The trainer's checkpoint of the step it is at."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def save_state(folder: Path, state: Mapping[str, Any], subspace: Any = None, name: str = "gradient_projection") -> None:
    """Write a state of nested mappings, and the basis if it holds beyond this step; each process its own."""
    from safetensors.torch import save_file

    base = folder / _own(name)
    tensors: dict[str, torch.Tensor] = {}
    plain = _pick_tensors(state, (), tensors)
    save_file(tensors, base.with_suffix(".safetensors"))
    if subspace is not None:
        subspace.save(base.with_suffix(".subspace.safetensors"))
    base.with_suffix(".json").write_text(json.dumps(plain))  # last: where it is, the rest is


def load_state(
    folder: Path,
    basis_device: Any = None,
    basis_class: Any = None,
    name: str = "gradient_projection",
    technique: str = "GradientProjection",
) -> tuple[dict[str, Any], Any]:
    """Read what `save_state` wrote: the state, on the CPU, and the basis or None.

    Raises:
        FileNotFoundError: The checkpoint has no state.
    """
    from safetensors.torch import load_file

    base = folder / _own(name)
    if not base.with_suffix(".json").exists():
        raise FileNotFoundError(
            f"Training resumes at {folder}, where {base.name}.json is missing: the checkpoint was not written with "
            f"{technique}, by as many processes, or lies outside output_dir. Resume from one in output_dir that "
            "was, or start anew."
        )
    state = json.loads(base.with_suffix(".json").read_text())
    for key, tensor in load_file(base.with_suffix(".safetensors")).items():
        _place(state, key.split("\t"), tensor)
    subspace = base.with_suffix(".subspace.safetensors")
    return state, basis_class.load(subspace, str(basis_device)) if subspace.exists() else None


def _own(name: str) -> str:
    rank, n_processes = world()
    return name if n_processes == 1 else f"{name}-{rank}-of-{n_processes}"


def _pick_tensors(value: Any, path: tuple[str, ...], tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors["\t".join(path)] = value.contiguous()
        return None
    if isinstance(value, Mapping):
        return {key: _pick_tensors(item, (*path, key), tensors) for key, item in value.items()}
    return value


def _place(state: dict[str, Any], path: list[str], tensor: torch.Tensor) -> None:
    for key in path[:-1]:
        state = state[key]
    state[path[-1]] = tensor
