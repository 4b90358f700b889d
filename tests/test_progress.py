"""Progress bars in a kernel: where they go, and which of them are shown."""

import nbformat
from nbclient import NotebookClient

NESTED = """
from workbench.progress import progress_bar

for outer in progress_bar(range(2), desc="outer"):
    for inner in progress_bar(range(3), desc="inner"):
        pass
"""
INTERRUPTED = """
for number in progress_bar(range(4), desc="cut"):
    if number == 2:
        raise KeyboardInterrupt
"""
AFTER = "for number in progress_bar(range(5), desc='after'): pass"


def shown(*cells):
    """What each cell writes."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(made, kernel_name="python3", allow_errors=True).execute()
    streams = [[o for o in cell.outputs if o["output_type"] == "stream"] for cell in made.cells]
    assert {o["name"] for written in streams for o in written} == {"stdout"}
    return ["".join(o["text"] for o in written) for written in streams]


def test_a_bar_within_a_bar_is_not_shown_and_none_is_red():
    nested, interrupted, after = shown(NESTED, INTERRUPTED, AFTER)
    assert "outer: 100%" in nested and "inner" not in nested
    assert "cut:" in interrupted
    assert "after: 100%" in after and "\x1b[A" not in after  # the bar that was cut holds no line
