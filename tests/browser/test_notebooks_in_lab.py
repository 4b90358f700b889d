"""Every notebook, opened and run in JupyterLab: what its reader sees."""

import pytest

from .server import ROOT

TOUR, *OTHERS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def look_at_figures(lab, notebook, stem):
    """Each figure shows its still twin first, and under the pointer an interactive one with something in it."""
    assert notebook.figures()
    for number in notebook.figures():
        shown = notebook.output(number)
        still = lab.still(shown)
        assert still.is_visible() and lab.ink(still) > 0.01
        assert lab.marks(shown) > 0
        lab.picture(f"{stem}-{number}", shown)
    assert lab.complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("stem", OTHERS)
def test_a_notebook_runs_and_every_figure_is_drawn(lab, stem):
    notebook = lab.open(stem, smoke=True).run()
    look_at_figures(lab, notebook, stem)
    assert notebook.broken_links() == []


def test_the_tour_runs_and_a_point_of_its_plane_tells_run_and_parameters(lab):
    notebook = lab.open(TOUR, smoke=True).run()
    look_at_figures(lab, notebook, TOUR)
    plane = notebook.output(notebook.find("wb.views.safety_utility("))
    told = lab.hover_point(plane, "plain", 0)
    assert notebook.value("runs[0].record['run_id']") in told and "seed 0" in told and "utility" in told
    lab.pictures("tour-plane", plane)
