"""The trade-off explorer in JupyterLab: by keyboard and by mouse, shown twice, and with markup for a label."""

import re

from playwright.sync_api import expect

MAKE = """
import pandas as pd
import workbench as wb

ATTACK = '<img src=x onerror="window.attacked=1">'
ways = {"plain": [(1, 0, 0), (0.8, 0.5, 0.5), (0.4, 0.9, 1)], "replay": [(1, 0, 0), (0.9, 0.95, 0.2)]}
ways[ATTACK] = [(1, 0, 0), (0.7, 1, 0.6)]
names = ["utility", "safety", "over_refusal"]
rows = []
for label, way in ways.items():
    for seed in range(3):
        trajectory = [{"step": 10 * i, **dict(zip(names, point))} for i, point in enumerate(way)]
        end = {name: value + 0.01 * seed for name, value in zip(names, way[-1])}
        who = {"run_id": f"{label}-{seed}", "status": "completed", "label": label, "technique": label, "model": "micro"}
        rows.append({**who, "pipeline": "sft", "seed": seed, "rate": 0.1 * seed, **end, "trajectory": trajectory})
rows.append({**rows[0], "run_id": "gone", "seed": 9, "status": "failed", "error": ATTACK})
"""
AS_OFTEN = (
    "() => new Set([...document.querySelectorAll('.workbench-plot')].map((plot) => plot.dataset.drawn)).size === 1"
)
SHOW = "explorer = wb.views.explorers.TradeoffExplorer(pd.DataFrame(rows))\nexplorer"


def drawn(notebook, number):
    """The live view in an output, once its plot is drawn."""
    shown = notebook.output(number)
    expect(shown.locator(".workbench-plot[data-drawn]")).to_be_visible(timeout=60_000)
    return shown


def test_all_by_keyboard(lab):
    notebook = lab.new(MAKE, SHOW).run()
    shown = drawn(notebook, 1)
    expect(shown.locator("img.workbench-still")).to_be_hidden()
    expect(shown).to_contain_text("10 of 10 runs match, 9 drawn. Not drawn: 1 failed.")
    assert notebook.slide("Equal safety", -4, shown) == "0.86"
    expect(shown).to_contain_text("At safety 0.86")
    assert notebook.value("explorer.matched_safety") == 0.86
    shown.get_by_label("Technique").focus()
    lab.page.keyboard.press("End")
    expect(shown).to_contain_text("3 of 10 runs match, 3 drawn.")
    assert notebook.value("explorer.technique") == ["replay"]
    lab.page.keyboard.press("ArrowUp")  # which would be a command of the notebook, as would be "d", twice
    lab.page.keyboard.type("dd")
    expect(shown).not_to_contain_text("3 of 10 runs match")
    assert notebook.value("explorer.technique") not in ([], ["replay"]) and notebook.cells.count() == 2
    lab.page.keyboard.press("End")
    expect(shown).to_contain_text("3 of 10 runs match, 3 drawn.")
    plot = shown.locator(".workbench-plot")
    for run in ("A", "B"):
        plot.focus()
        for key in ("ArrowRight", "Enter"):
            lab.page.keyboard.press(key)
        expect(shown.get_by_label(f"Run {run}")).not_to_have_value("–")
        expect(shown).to_contain_text(f"{run} replay-{'AB'.index(run)}" if run == "B" else "Choose two runs")
    assert notebook.value("[explorer.run_a, explorer.run_b]") == ["replay-0", "replay-1"]
    assert notebook.value("explorer.comparison.query('differs').index.tolist()") == [
        *("seed", "utility", "safety", "over_refusal", "rate")
    ]
    plot.focus()
    lab.page.keyboard.press("ArrowRight")
    told, before = plot.locator(".hoverlayer .hovertext").first, shown.get_by_label("Run A").input_value()
    place = told.get_attribute("transform")
    for _ in range(3):  # each of three comes once, though both panels show it
        lab.page.keyboard.press("ArrowRight")
    assert told.get_attribute("transform") == place
    lab.page.keyboard.press("Enter")
    expect(shown.get_by_label("Run A")).not_to_have_value(before)
    assert notebook.value("explorer.run_a") in told.text_content()
    notebook.value("explorer.set_trait('run_a', 'replay-0')")
    same = shown.get_by_text(re.compile("The same in both"))
    same.focus()
    lab.page.keyboard.press("Enter")
    expect(same.locator("xpath=..").get_by_text("pipeline")).to_be_visible()
    assert lab.complaints == [] and notebook.failures() == []


def test_a_click_opens_a_record_and_markup_stays_text(lab):
    notebook = lab.new(MAKE, SHOW).run()
    shown = drawn(notebook, 1)
    lab.click_point(shown, "runs", 6)
    expect(shown).to_contain_text("-0: completed")
    assert notebook.value("explorer.record['label']") == notebook.value("ATTACK")
    notebook.value("setattr(explorer, 'run_b', 'gone')")
    expect(shown).to_contain_text("gone: failed")
    shown.get_by_text("Runs not drawn: 1").click()
    expect(shown.get_by_text('<img src=x onerror="window.attacked=1">').first).to_be_attached()
    assert shown.locator("img[src=x]").count() == 0 and lab.page.evaluate("window.attacked") is None
    lab.pictures("tradeoff-explorer", shown.locator(".workbench-explorer"))
    assert lab.complaints == [] and notebook.failures() == []


def test_shown_twice_both_follow_and_a_cleared_one_is_gone(lab):
    notebook = lab.new(MAKE, SHOW, "explorer").run()
    one, other = drawn(notebook, 1), drawn(notebook, 2)
    notebook.slide("Equal safety", -3, other)
    for shown in (one, other):
        expect(shown).to_contain_text("At safety 0.87")
    lab.page.wait_for_function(AS_OFTEN)
    lab.page.evaluate("() => panel.content.widgets[2].model.clearExecution()")
    expect(other.locator(".workbench-plot")).to_have_count(0)
    notebook.slide("Equal safety", 1, one)
    expect(one).to_contain_text("At safety 0.88")
    assert notebook.value("explorer._plot.comm is not None") and lab.complaints == []
