"""Figures and pages: pure functions from tables and subspaces to plotly figures. Nothing here trains a model."""

from importlib import import_module
from typing import Any

from workbench.views.comparisons import ability_matrix, matched_safety_curves, paired_forest
from workbench.views.faithfulness_plane import toxicity_faithfulness
from workbench.views.figures import (
    angles_heatmap,
    block_heatmap,
    loss_slice,
    projection_frame,
    projection_trace,
    spectrum,
)
from workbench.views.images import find_browser, save_figure, save_png, show
from workbench.views.plane import safety_utility, trajectories
from workbench.views.report import write_report
from workbench.views.scaling import model_size
from workbench.views.sources import source_of
from workbench.views.texts import text_table

__all__ = [
    "ability_matrix",
    "angles_heatmap",
    "block_heatmap",
    "find_browser",
    "loss_slice",
    "matched_safety_curves",
    "model_size",
    "paired_forest",
    "projection_frame",
    "projection_trace",
    "safety_utility",
    "save_figure",
    "save_png",
    "show",
    "source_of",
    "spectrum",
    "text_table",
    "toxicity_faithfulness",
    "trajectories",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import the explorers, and the widgets that they are made of, when they are first used."""
    if name == "explorers":
        return import_module("workbench.views.explorers")
    raise AttributeError(f"module 'workbench.views' has no attribute {name!r}")
