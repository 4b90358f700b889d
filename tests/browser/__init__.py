"""Tests in a real browser: see `lab.py` for what they are written with."""
