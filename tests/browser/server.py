"""A JupyterLab of one's own on loopback, with settings, folders and runs apart from the user's."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

import workbench as wb

ROOT = Path(wb.__file__).parents[1]
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
}


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve copies of the notebooks and the pages that they link to, as `make lab` does, and yield the address.

    The notebooks' own `../runs` is then `folder`/checkout/runs, so that nothing is written into the checkout itself.
    """
    checkout = folder / "checkout"
    for name in ("notebooks", "docs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,  # where it is taken meanwhile, the server takes another and says which
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "ServerApp.root_dir": checkout,
        "IdentityProvider.token": token,
        "LabApp.expose_app_in_browser": True,
    }
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    with open(folder / "server.log", "w") as log:
        told = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}  # ^C is pytest's
        server = subprocess.Popen(command, cwd=checkout, env=_environment(folder), **told)
    try:
        yield f"{_address(folder, server)}lab/tree/notebooks?token={token}&reset"
    finally:
        _end(server)


def _environment(folder: Path) -> dict[str, str]:
    """Private folders for all that Jupyter keeps; the workbench of this checkout in the kernels."""
    for name, settings in SETTINGS.items():
        path = folder / "jupyter" / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    kept = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    places = {name: str(folder / "jupyter" / place) for name, place in kept.items()}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | places | quiet | {"PYTHONPATH": path}


def _address(folder: Path, server: subprocess.Popen, seconds: float = 180) -> str:
    """The address that the server announces, as soon as it answers there."""
    until = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < until:
        for announced in (folder / "jupyter" / "runtime").glob(f"jpserver-{server.pid}.json"):
            try:
                address = str(json.loads(announced.read_text())["url"])
                urllib.request.urlopen(f"{address}login", timeout=30).close()
                return address
            except (OSError, ValueError):  # half written, or not listening yet
                pass
        time.sleep(0.1)
    _end(server)
    raise RuntimeError(f"Expected a JupyterLab server to start, got:\n{(folder / 'server.log').read_text()}")


def _end(server: subprocess.Popen) -> None:
    """End the server with its kernels and what those have started, and wait until they are gone."""
    with_children = [server, *psutil.Process(server.pid).children(recursive=True)] if server.poll() is None else []
    server.terminate()
    for process in with_children:
        try:
            process.wait(timeout=10)
        except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
            process.kill()
