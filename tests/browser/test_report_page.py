"""The page for people without Jupyter, in a browser: its policy admits its own scripts; it searches and sorts."""

import subprocess
import sys

import pytest
from playwright.sync_api import expect

from workbench.study.runs import Run

ATTACK = "<img src=x onerror=\"document.title='attacked'\">"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of six runs, as the command writes it: the label of one attacks it, and the last one failed."""
    folder = tmp_path_factory.mktemp("runs")
    labels = {"plain": "plain", "replay": "replay, half", ATTACK: ATTACK}
    for seed, (technique, label) in enumerate([*labels.items(), *list(labels.items())[:2]]):
        made = Run.start(folder, {"technique": technique, "label": label, "pipeline": "sft", "seed": seed}, slug="run")
        made.log({"step": 0, "evaluation": True, "utility": 1.0, "safety": 0.0})
        scores = {"utility": 0.5 + seed / 10, "safety": 0.9}
        made.log({"step": 5, "evaluation": True, **scores})
        made.finish("completed", scores=scores, base_scores={"utility": 1.0, "safety": 0.0})
    failed = {"technique": "replay", "label": "replay, half", "pipeline": "sft", "seed": 5}
    Run.start(folder, failed, slug="run").finish("failed")
    command = [sys.executable, "-m", "workbench", "report", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "report.html"


@pytest.fixture
def page(context, report):
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda said: page.complaints.append(said.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(report.as_uri())
    yield page
    page.close()


def column(page, head):
    """What a column of the runs shows, from above."""
    heads = page.locator("#runs th").all_text_contents()
    cells = page.locator("#runs tbody tr:visible").locator(f"td:nth-child({heads.index(head) + 1})")
    return cells.all_text_contents()


def test_the_page_draws_and_nothing_is_refused_or_asked_of_a_server(page):
    expect(page.locator(".scatterlayer .point").first).to_be_visible()
    assert page.complaints == [] and page.title() != "attacked"
    expect(page.get_by_text(ATTACK).first).to_be_attached()


def test_the_field_searches_and_a_heading_sorts(page):
    assert len(column(page, "Seed")) == 6
    page.get_by_role("searchbox").fill("REPLAY")
    assert column(page, "Seed") == ["1", "4", "5"]
    page.get_by_role("button", name="Utility").click()
    assert column(page, "Utility") == ["0.600", "0.900", "–"]
    page.get_by_role("button", name="Utility").click()
    assert column(page, "Utility") == ["–", "0.900", "0.600"]
    page.get_by_role("searchbox").fill("")
    assert len(column(page, "Seed")) == 6


def test_it_follows_the_readers_theme_and_does_not_scroll_sideways(page, pictures):
    for theme in ("dark", "light"):
        page.emulate_media(color_scheme=theme)
        page.screenshot(path=pictures / f"report-{theme}.png", full_page=True)
    page.set_viewport_size({"width": 700, "height": 1000})
    page.screenshot(path=pictures / "report-narrow.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
