"""The pairs browser: what passes its filters, what it shows, and that no text of a row acts in the page."""

import html
import re

import ipywidgets
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from workbench.corpora.entities import EntityRecognizer
from workbench.corpora.generators import CounterfactualSwap, EntitySwap, microworld_paraphrase
from workbench.corpora.pairs import DifferenceFilter, MeaningFilter, pair_report
from workbench.views.explorers import PairsBrowser
from workbench.views.explorers.groups import Span, group_html, marked, read_groups

EVIL = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


@pytest.fixture(scope="module")
def dirty():
    return wb.load_portraits("micro").pairs(40, 0)


@pytest.fixture(scope="module")
def built():
    pool = {"PERSON": ["anna", "bob"], "GROUP": ["velk", "dunari"]}
    texts = ["what is the job of anna ?", "people say the velk are kind .", "nothing here ."]
    return wb.build_pairs(
        texts,
        positives=[microworld_paraphrase(), CounterfactualSwap([("velk", "dunari")])],
        negatives=[EntitySwap(pool, n=2)],
        recognizer=EntityRecognizer(gazetteer=pool, rules=False),
        filters=[MeaningFilter(), DifferenceFilter()],
        progress=False,
    )


def views():
    """The widgets that can be shown; ipywidgets itself leaves layouts and styles behind."""
    return {name for name, one in ipywidgets.widgets.widget._instances.items() if isinstance(one, ipywidgets.DOMWidget)}


def bare(page):
    """The text of a page as its reader sees it."""
    return html.unescape(re.sub(r"<[^>]*>", "", page))


# --- filters and pages -----------------------------------------------------------------------------------------------


def test_filters_are_traits_and_groups_and_shown_are_the_rows_that_were_given(dirty):
    browser, rows = PairsBrowser(dirty, page_size=4), dirty.to_list()
    assert browser.groups == rows and browser.shown == rows[:4] and browser.n_pages == 10
    browser.score = "toxicity"
    assert browser.score_range == (0, 1) and browser.groups == rows
    browser.score_range = (0.5, 1)
    assert browser.groups == [row for row in rows if row["toxicity"] == 1]
    browser.text = "GOOSE"
    said = [" ".join([row["anchor"], *row["positives"], *row["negatives"]]) for row in rows]
    wanted = [row for row, words in zip(rows, said, strict=True) if row["toxicity"] == 1 and "goose" in words]
    assert browser.groups == wanted != []
    browser.score = browser.text = ""
    assert browser.groups == rows
    browser.kind = "paraphrase"
    assert browser.groups == [row for row in rows if "paraphrase" in row["positive_kinds"]]


def test_a_filter_goes_back_to_the_first_page_and_pages_go_by_button_slider_and_trait(dirty):
    browser = PairsBrowser(dirty, page_size=7, page=3)
    assert browser.page == 3 and browser.shown == dirty.to_list()[14:21]
    browser._next.click()
    assert (browser.page, browser._slider.value, browser._before.disabled) == (4, 4, False)
    browser._slider.value = 6
    assert browser.page == 6 and browser._next.disabled and len(browser.shown) == 5
    browser._next.click()
    assert browser.page == 6
    browser.text = "no such text"
    assert browser.page == browser.n_pages == 1 and browser.shown == [] and "No group passes" in browser._html.value
    browser.text = ""
    browser.page_size = 40
    assert browser.n_pages == 1 and len(browser.shown) == 40 and browser._slider.disabled


def test_only_with_entities_and_the_report_of_the_builder(built):
    browser = PairsBrowser(built)
    assert len(browser.groups) == 3
    browser.with_entities = True
    assert [row["anchor"] for row in browser.groups] == built["anchor"][:2]
    assert browser.dropped == pair_report(built)["dropped"] != []
    total = sum(one["n"] for one in browser.dropped)
    assert f"{total} texts were dropped when these were built" in bare(browser._html.value)
    assert PairsBrowser(built.to_list()).dropped == []


def test_bad_input_is_told_how_to_be_mended(dirty):
    with pytest.raises(ValueError, match="at least one group"):
        PairsBrowser([])
    with pytest.raises(ValueError, match=r"row 0: expected the columns anchor.* got \['text'\]"):
        PairsBrowser([{"text": "a"}])
    browser = PairsBrowser(dirty)
    with pytest.raises(ValueError, match=r"kind: expected one of .*'entity_swap'.* got 'swap'"):
        browser.kind = "swap"
    with pytest.raises(ValueError, match=r"score: expected one of \['toxicity'\]"):
        browser.score = "meaning"
    with pytest.raises(ValueError, match="page: expected a number from 1 to 14, got 15"):
        browser.page = 15
    assert browser.page == 1 and browser.kind == ""


def test_preferences_and_tables_and_messages_are_groups_too(world):
    preferences = world.preferences(5)
    browser = PairsBrowser(preferences)
    assert len(browser.groups) == 5 and set(browser._kinds) == {"chosen", "rejected"}
    assert preferences[0]["chosen"][-1]["content"] in bare(browser._html.value)
    table = PairsBrowser(pd.DataFrame({"anchor": ["a"], "positives": [["b"]], "negatives": [[]], "meaning": [0.5]}))
    assert "meaning 0.5" in bare(table._html.value)


def test_a_table_shows_what_its_dataset_shows(dirty, tmp_path):
    table = dirty.to_pandas()  # lists are arrays there
    table.to_parquet(tmp_path / "pairs.parquet")
    for rows in (table, table.to_dict("records"), pd.read_parquet(tmp_path / "pairs.parquet")):
        assert PairsBrowser(rows)._html.value == PairsBrowser(dirty)._html.value
    without = {name: value for name, value in dirty[0].items() if name != "entities"}
    without.pop("source", None)
    assert "nan" not in PairsBrowser(pd.DataFrame([dirty[0] | {"source": "s"}, without]))._html.value
    asked = [{"prompt": "?", "chosen": "a", "rejected": "b"}, {"chosen": "c", "rejected": "d"}]
    assert "nan" not in PairsBrowser(pd.DataFrame(asked))._html.value


def test_the_still_picture_has_room_for_every_row(dirty):
    explorer = PairsBrowser(dirty, page_size=10)
    (table,) = explorer.still().data
    texts = table.cells.values[-1]
    least = sum(30 + 15 * text.count("<br>") if "<" in text else 20 for text in texts)  # as plotly draws them
    assert explorer.still().layout.height >= least + 28 + 52  # head and margins


def test_scores_of_texts_count_where_they_are(dirty):
    rows = [
        {"anchor": "a", "positives": ["b", "c"], "negatives": [], "positive_meaning": [0.1 * i, 0.9]} for i in (1, 2)
    ]
    browser = PairsBrowser(rows, score="meaning", score_range=(0.15, 0.5))
    assert browser.groups == rows[1:]
    assert "positive meaning 0.2" in bare(browser._html.value)


def test_shown_twice_it_has_no_more_observers_and_closed_it_leaves_nothing(dirty):
    before = views()
    browser = PairsBrowser(dirty)
    n_observers = sum(len(found) for kinds in browser._trait_notifiers.values() for found in kinds.values())
    for _ in range(2):
        browser._repr_mimebundle_()
    assert n_observers == sum(len(found) for kinds in browser._trait_notifiers.values() for found in kinds.values())
    browser.close()
    assert browser.comm is None and all(part.comm is None for part in (browser._html, browser._next, browser._range))
    assert views() == before


# --- texts -----------------------------------------------------------------------------------------------------------


def test_no_text_of_a_row_acts_in_the_page():
    row = {
        "anchor": f"{EVIL} Anna",
        "prompt": EVIL,
        "positives": [EVIL],
        "positive_kinds": [EVIL],
        "negatives": ["", None, "lone \ud800 half", "x" * 30_000],
        "negative_kinds": [],
        "entities": {"anchor": [{"start": 3, "end": 999, "label": EVIL}], "positives": [], "negatives": None},
        "provenance": {"positives": [{"generator": f"{EVIL}!", "seed": 0}], "negatives": []},
        "source": EVIL,
        "toxic_spans": None,
    }
    browser = PairsBrowser([row], text="img")
    page = browser._html.value
    page.encode()  # half a character would not go over the wire
    assert "<img" not in page and "<script" not in page and 'onerror="' not in page
    assert bare(page).count(EVIL) == 6 and page.count("<i>empty</i>") == 2
    assert "29,000 more characters" in bare(page) and "and 10,000 more" in bare(page)
    still = browser.still()
    assert not re.search("<(img|script)", str(still.data[0].cells["values"])) and still.to_json(validate=True)


@given(
    st.text(max_size=40),
    st.lists(st.tuples(st.integers(-5, 50), st.integers(-5, 50), st.sampled_from(["entity", "toxic"]))),
    st.integers(0, 40),
)
def test_marks_change_no_character(text, spans, cut):
    known = [Span(*span) for span in spans]
    assert bare(marked(text, known, 0, cut) + marked(text, known, cut)) == text


def test_entities_and_finds_are_marked_where_they_are():
    row = {"anchor": "Anna 👩‍👧 met anna", "positives": [], "negatives": []}
    row["entities"] = {"anchor": [{"start": 0, "end": 4, "label": "PERSON"}]}
    (group,) = read_groups([row])
    page = group_html(group, "ANNA")
    assert page.count('class="entity found" data-label="PERSON">Anna</span>') == 1
    assert page.count('class="found">anna</span>') == 1
