"""Figures and pages: pure functions from tables and subspaces to plotly figures. Nothing here trains a model."""

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
from workbench.views.images import find_browser, save_png, show
from workbench.views.plane import safety_utility, trajectories
from workbench.views.report import write_report
from workbench.views.scaling import model_size

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
    "save_png",
    "show",
    "spectrum",
    "toxicity_faithfulness",
    "trajectories",
    "write_report",
]
