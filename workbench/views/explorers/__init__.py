"""Explorers: live views with controls, over the same plain data and pure functions as the still figures."""

from .geometry import GeometryExplorer
from .monitor import TrainingMonitor
from .pairs import PairsBrowser
from .tradeoff import TradeoffExplorer

__all__ = ["GeometryExplorer", "PairsBrowser", "TradeoffExplorer", "TrainingMonitor"]
