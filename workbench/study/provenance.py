"""What a run was done with: versions, devices, commit, memory."""

import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("alignment-workbench", "torch", "transformers", "trl", "peft", "accelerate", "datasets")


def environment() -> dict[str, Any]:
    """What the work is done with: Python, platform, devices, versions of packages, commit of this package."""
    versions = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    torch = sys.modules.get("torch")  # importing it for its device names alone would take seconds
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "devices": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if torch else [],
        "versions": versions,
        **git_state(Path(__file__)),
    }


def git_state(file: Path) -> dict[str, Any]:
    """State of the repository that tracks a file: one that merely surrounds site-packages does not count."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(file.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", file.name)
        return {"git_sha": git("rev-parse", "HEAD"), "git_dirty": bool(git("status", "--porcelain"))}
    return {"git_sha": None, "git_dirty": None}


def peak_memory() -> dict[str, int | None]:
    """Peaks of the process so far in bytes: of the run alone only where the process ran nothing else."""
    peak, torch = None, sys.modules.get("torch")
    with suppress(ImportError):  # no such module on Windows
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    cuda = torch.cuda.max_memory_allocated() if torch and torch.cuda.is_initialized() else None
    return {"peak_memory_bytes": peak, "peak_cuda_bytes": cuda}
