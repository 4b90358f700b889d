"""The fixture `lab`: a page of JupyterLab in headless Chromium. What it can do stands in `lab.py`."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from needs import BROWSER, NO_BROWSER
from playwright.sync_api import Error

from .lab import Lab, chromium
from .server import ROOT, serving


@pytest.fixture(scope="package")
def context():
    """A headless Chromium, the one that draws pictures; its pages share a cache."""
    with chromium(BROWSER or pytest.skip(NO_BROWSER)) as context:
        yield context


@pytest.fixture(scope="package")
def served(tmp_path_factory):
    """A copy of the folder of notebooks, and the address at which JupyterLab serves it."""
    folder = tmp_path_factory.mktemp("lab")
    with serving(folder) as address:
        yield folder / "checkout" / "notebooks", address


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where pictures of the page are kept: the folder WORKBENCH_PICTURES, else runs/browser."""
    return Path(os.environ.get("WORKBENCH_PICTURES") or ROOT / "runs" / "browser")


@pytest.fixture
def lab(context, served, pictures):
    """A fresh page of JupyterLab; its kernels end with the test."""
    folder, address = served
    page = context.new_page()
    yield Lab(page, folder, pictures).load(address)
    page.evaluate("() => jupyterapp.serviceManager.sessions.shutdownAll()")
    page.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Keep a picture of the page on which a test failed."""
    report = yield
    if report.failed and report.when == "call" and "lab" in item.funcargs:
        with suppress(Error):  # of a page that is gone
            item.funcargs["lab"].picture(f"failed-{item.name}")
    return report
