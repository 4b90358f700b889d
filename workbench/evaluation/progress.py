"""Progress of long evaluations: one bar over suites, and below it one over the rows of the suite at work."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
_SHOWN: ContextVar[bool] = ContextVar("shown", default=False)


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
    from tqdm import tqdm  # not tqdm.auto: its widget stays at 0 % in a notebook that papermill saves

    with tqdm(total=n_rows, desc=what, unit="row", disable=not _SHOWN.get(), leave=False) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))
