"""Fewer bars: those of libraries would bury the one that matters."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """No bars of datasets, nor of TRL's passes over them: they would bury the one bar that matters."""
    import datasets

    shown, disabled = not datasets.are_progress_bars_disabled(), os.environ.get("TQDM_DISABLE")
    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"  # TRL asks for this whenever it makes a bar
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
        del os.environ["TQDM_DISABLE"]
        if disabled is not None:
            os.environ["TQDM_DISABLE"] = disabled


@contextmanager
def quiet_transformers(quiet: bool = True) -> Iterator[None]:
    """No bars over local weights, which are read in a moment; a download keeps its own."""
    from transformers.utils import logging

    # TRL asks a model by an older name at every stage; no notebook can do anything about it.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    shown = logging.is_progress_bar_enabled()
    if quiet:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
