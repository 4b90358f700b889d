"""The exercises of the notebooks, and the check of an answer."""
