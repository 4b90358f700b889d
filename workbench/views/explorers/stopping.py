"""A Stop button that works while a cell blocks the kernel.

A click sends a message, which the kernel reads when it is free: when training runs in a thread, or where the messages
of widgets have a shell of their own. It also interrupts the kernel, as Ctrl-C and JupyterLab's own ■ do, which is heard
at once. While a run is watched, the first interrupt asks it to stop, and the next one interrupts at once.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import anywidget
import traitlets


class StopButton(anywidget.AnyWidget):
    """Asks what runs to stop.

    Attributes:
        running: The number of what runs now, from 1; 0 while nothing does.
        asked: The number of what the page asked to stop: a message that comes late stops nothing else.
        pressed: Whether what runs, or ran last, was asked to stop, by button, interrupt or code.
    """

    _esm = Path(__file__).with_name("stop.js")
    running = traitlets.Int(0).tag(sync=True)
    asked = traitlets.Int(0).tag(sync=True)

    def __init__(self) -> None:
        """Nothing runs yet."""
        self.pressed = False
        self._n_begun = 0
        super().__init__()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """From here to the end of the context something runs that can be stopped."""
        self.pressed, self._n_begun = False, self._n_begun + 1
        self.running = self._n_begun
        try:
            with self._interrupts():
                yield
        finally:
            self.running = 0

    @traitlets.observe("asked")
    def _hear(self, change: dict[str, Any]) -> None:
        self.pressed |= bool(self.running) and change["new"] == self.running

    @contextmanager
    def _interrupts(self) -> Iterator[None]:
        """The first interrupt asks to stop, where interrupts arrive at all: in the main thread."""
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            yield
            return
        n_heard = 0

        def hear(number: int, frame: FrameType | None) -> None:
            nonlocal n_heard
            n_heard += 1
            self.pressed = True
            if n_heard > 1:
                before(number, frame)

        signal.signal(signal.SIGINT, hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
