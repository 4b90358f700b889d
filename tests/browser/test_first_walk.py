"""The way of a first-time reader: find a notebook in the file browser, run it from the menu, follow its links."""

import re

import pytest
from playwright.sync_api import expect

from .lab import SECONDS, Notebook

pytestmark = pytest.mark.slow


def test_from_the_file_browser_through_notebook_03_to_the_next(lab):
    page = lab.page
    page.locator(".jp-DirListing-item", has_text="03_alignment_tax.ipynb").dblclick()
    notebook = Notebook(lab, "03_alignment_tax.ipynb")
    assert page.locator(".jp-Dialog").count() == 0  # no question about a kernel, no news
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    last = notebook.cells.nth(notebook.find("# Try next") - 1).locator(".jp-InputPrompt")
    numbered = re.compile(r"\d")  # a star, until the cell has run
    expect(last).to_have_text(numbered, timeout=1200 * SECONDS)
    assert notebook.failures() == [] and lab.complaints == []
    page.get_by_role("link", name="matched safety", exact=True).first.click()
    expect(page.locator(".jp-MarkdownViewer").get_by_role("heading", name="matched safety")).to_be_in_viewport()
    page.get_by_role("tab", name="03_alignment_tax.ipynb").click()
    page.get_by_role("link", name="04 gradient subspaces").click()
    Notebook(lab, "04_gradient_subspaces.ipynb")
