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
    stdout, for JupyterLab lays red under all that comes from stderr, as if something had gone wrong, and a bar within
    a bar is not shown: a notebook's text has no way up to the outer one, so that each move would leave a line.
    """
    from tqdm import tqdm

    if not type(sys.stdout).__module__.startswith("ipykernel."):
        return tqdm(*args, **options)
    from IPython.core.getipython import get_ipython

    cell = getattr(get_ipython(), "execution_count", None)  # a bar of an interrupted cell may live on in its traceback
    within = any(getattr(bar, "cell", None) == cell for bar in [*getattr(tqdm, "_instances", ())])
    bar = tqdm(*args, **{"file": sys.stdout, "position": 0} | options | ({"disable": True} if within else {}))
    bar.cell = cell
    return bar


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
