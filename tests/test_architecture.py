"""The house: which room may use which, what the package shows, and what it must not carry."""

import ast
import json
import sys
from pathlib import Path

import pytest

import workbench as wb

PACKAGE = Path(wb.__file__).parent
NOTEBOOKS = sorted((PACKAGE.parent / "notebooks").glob("*.ipynb"))

# Each room with the rooms below it or at its left; no two import each other. All but geometry may show progress.
ALLOWED = {
    "corpora": set(),
    "geometry": set(),
    "study": set(),
    "models": {"corpora"},
    "evaluation": {"corpora", "models"},
    "views": {"study", "geometry"},
    "alignment": {"corpora", "geometry", "study", "models", "evaluation"},
    "exercises": {"corpora", "geometry", "study", "models", "evaluation", "alignment"},
}


def imported(path):
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
        elif isinstance(node, ast.ImportFrom):
            yield ".".join([*path.relative_to(PACKAGE.parent).parts[: -node.level], node.module or ""])


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_use_only_what_lies_below_or_at_their_left(room):
    files = [PACKAGE / "models.py"] if room == "models" else (PACKAGE / room).rglob("*.py")
    used = {m.split(".")[1] for f in files for m in imported(f) if m.startswith("workbench.")}
    assert used - {room} <= ALLOWED[room] | ({"progress"} if room != "geometry" else set())


def test_geometry_is_torch_alone():
    used = {m.split(".")[0] for f in (PACKAGE / "geometry").rglob("*.py") for m in imported(f)}
    assert used - set(sys.stdlib_module_names) - {"workbench"} <= {"torch", "safetensors", "numpy"}


def test_every_public_name_is_there_and_says_what_it_is():
    assert len(wb.__all__) <= 49
    for name in wb.__all__:
        assert getattr(wb, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'aligne'"):
        assert wb.aligne


def test_files_stay_readable():
    assert {f.name for f in PACKAGE.rglob("*.py") if len(f.read_text().splitlines()) > 450} == set()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_clean(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert notebook["metadata"]["language_info"]["name"] == "python"
