"""One attempt at one point of a sweep, in a process of its own: `python -m workbench.study.attempt`.

It ends when who started it does: the starter holds the other end of its standard input. An attempt that is ended so, or
by SIGINT, interrupts the notebook, which writes its own records, and leaves the partial notebook and the point's state.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from .execute import run_notebook
from .points import Point


def main(point: Path, source: Path, folder: Path, limit: int) -> None:
    """Waits until no other process works on the point, then runs its notebook unless that is done.

    Args:
        point: The point's folder.
        source: The notebook, as it was when the sweep began.
        folder: Where the kernel starts.
        limit: How many attempts there may be, those before this sweep included.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell began the sweep in the background
    threading.Thread(target=_end_with_starter, daemon=True).start()
    with Point.held(point) as held:
        if held.status != "completed" and held.n_attempts < limit:
            held.begin()
            outcome = _execute(held, source, folder)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what has ended is written down
            held.end(*outcome)


def _execute(point: Point, source: Path, folder: Path) -> tuple[str, str | None]:
    try:
        run_notebook(source, point.record["given"], point.path, output=point.output, folder=folder, progress=False)
    except KeyboardInterrupt as stop:
        return "interrupted", "\n".join(getattr(stop, "__notes__", ["interrupted"]))
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"
    return "completed", None


def _end_with_starter() -> None:
    """Ctrl-C for this process once its standard input ends; a real signal, for it must wake the main thread."""
    while os.read(sys.stdin.fileno(), 1):  # unbuffered: a reader of sys.stdin would hold its lock as Python ends
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
