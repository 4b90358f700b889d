"""Progress of long work: one bar, the same wherever it is shown, and what counts the rows below it."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")
_SHOWN: ContextVar[bool] = ContextVar("shown", default=False)


def progress_bar(*args: Any, **options: Any) -> "tqdm[Any]":
    """A bar of `tqdm.tqdm`, with its arguments: `for seed in progress_bar(range(5), unit="run"): ...`.

    It is text, for the widget of `tqdm.auto` stays at 0 % in a notebook that papermill saves. In a notebook it goes to
    stdout, for JupyterLab lays red under all that comes from stderr, as if something had gone wrong.
    """
    from tqdm import tqdm

    in_kernel = type(sys.stdout).__module__.startswith("ipykernel.")
    return tqdm(*args, **{"file": sys.stdout if in_kernel else None} | options)


@contextmanager
def progress_shown(shown: bool) -> Iterator[None]:
    """Whether `tracked` shows what goes through it; not, unless somebody says so."""
    token = _SHOWN.set(shown)
    try:
        yield
    finally:
        _SHOWN.reset(token)


def tracked(batches: Iterable[Sequence[Item]], n_rows: int, what: str) -> Iterator[Sequence[Item]]:
    """Batches as they come, counted by their rows."""
    with progress_bar(total=n_rows, desc=what, unit="row", disable=not _SHOWN.get(), leave=False) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))
