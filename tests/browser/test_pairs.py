"""The pairs browser: by keyboard alone, and with rows that would like to act in the page."""

from playwright.sync_api import expect

BROWSE = """
import workbench as wb
evil = "<img src=x onerror='window.acted = 1'><script>window.acted = 2</script>"
rows = wb.load_portraits("micro").pairs(20, 0).to_list()
rows[0] = {**rows[0], "anchor": evil, "positives": [evil], "positive_kinds": [evil], "source": evil}
rows[0]["entities"]["anchor"] = [{"start": 0, "end": 9, "label": evil}]
browser = wb.views.explorers.PairsBrowser(rows, page_size=2)
browser
"""


def test_pages_and_filters_go_by_keyboard_and_rows_do_nothing(lab):
    notebook = lab.new(BROWSE, name="pairs").run()
    shown = notebook.output(0)
    groups = shown.locator(".workbench-pairs section")
    expect(groups).to_have_count(2)
    expect(groups.first).to_contain_text("<img src=x onerror='window.acted = 1'>")
    assert lab.page.evaluate("window.acted") is None and shown.locator(".workbench-pairs img").count() == 0
    notebook.slide("Page", 2, shown)
    expect(groups.first).to_contain_text("group 4")
    shown.get_by_role("button", name="Next").press("Enter")
    expect(groups.first).to_contain_text("group 6")
    assert notebook.value("[browser.page, len(browser.shown)]") == [4, 2]
    shown.get_by_label("Search").fill("no such words")
    expect(shown).to_contain_text("No group passes these filters.")
    shown.get_by_label("Search").fill("HAS")
    expect(shown.locator(".found").first).to_have_text("has")
    lab.page.keyboard.press("Tab")
    lab.page.keyboard.press("End")  # the last kind, which one row has
    expect(shown).to_contain_text("· 1 of 20 groups")
    assert notebook.value("browser.kind").startswith("<img") and lab.page.evaluate("window.acted") is None
    lab.pictures("pairs-browser", shown)
    assert not lab.complaints
