"""Explorers: live views with controls, over the same plain data and pure functions as the still figures."""
