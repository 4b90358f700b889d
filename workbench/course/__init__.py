"""The course that the notebooks are: its exercises, and the check of an answer."""
