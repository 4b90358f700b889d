"""Every notebook has the shape of the course and runs headlessly, in the micro-world and with a real architecture."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import workbench as wb
from workbench.study.execute import notebook_parameters

ROOT = Path(wb.__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What every notebook takes, in this order: name → (annotation, the beginning of its comment).
COMMON = {
    "model": ("str", '"micro", a model folder, or a hub id such as "Qwen/Qwen2.5-0.5B-Instruct"'),
    "data_dir": ("str", 'for a real model: a folder with the public datasets\' own files; "" takes the hub'),
    "device": ("str", '"" takes the first accelerator, or else the CPU'),
    "dtype": ("str", "of the weights"),
    "seed": ("int", "of all that is drawn at random; further runs count on from it"),
    "runs_dir": ("str", "where records and pictures go"),
    "smoke": ("bool", "the least that shows that everything runs"),
}


def cells_of(path, kind):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_takes_the_parameters_that_all_take(path):
    known = notebook_parameters(path)
    assert [name for name in known if name in COMMON] == list(COMMON)
    assert list(known)[:3] == ["model", "data_dir", "device"] and list(known)[-2:] == ["runs_dir", "smoke"]
    for name, (annotation, comment) in COMMON.items():
        assert known[name].annotation == annotation
        assert re.match(re.escape(comment) + "($|; )", known[name].help), f"{name}: {known[name].help}"
    assert all(parameter.annotation and parameter.help for parameter in known.values())


def test_a_parameter_has_one_type_in_all_notebooks():
    kinds = {}
    for path in NOTEBOOKS:
        for name, parameter in notebook_parameters(path).items():
            kinds.setdefault(name, set()).add(parameter.annotation)
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_the_shape_of_the_course(path):
    text, code = cells_of(path, "markdown"), cells_of(path, "code")
    place = NOTEBOOKS.index(path)
    assert text[0].startswith("# ") and "?" in text[0], "it begins with a title and a question"
    assert re.search(r"^\*\*Run time:\*\* .*minute", text[0], re.MULTILINE)
    (before,) = re.findall(r"^\*\*Before this:\*\* .*(?:\n.+)*", text[0], re.MULTILINE)
    assert place == 0 or f"({NOTEBOOKS[place - 1].name})" in before
    assert "$$" in " ".join(text) and "by hand" in " ".join(text).casefold()
    assert any("assert" in part for part in code), "what is done by hand must equal the library"
    headings = [line for part in text for line in part.splitlines() if line.startswith("## ")]
    assert headings[-2:] == ["## Exercises", "## Try next"] and text[-1].startswith("## Try next")
    following = NOTEBOOKS[place + 1].name if path != NOTEBOOKS[-1] else "../docs/glossary.md"
    assert re.fullmatch(rf"- \*\*Next:\*\* .* → \[.+\]\({re.escape(following)}\)", text[-1].splitlines()[-1])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_to_short_functions_and_no_classes(path):
    for source in cells_of(path, "code"):
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.ClassDef), f"{node.name} belongs into the library"
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 11, f"{node.name} belongs into the library"


def anchors(page):
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.casefold()).replace(" ", "-") for heading in headings}


PAGES = [*NOTEBOOKS, ROOT / "docs" / "glossary.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_of_the_course_leads_somewhere(page):
    text = "\n".join(cells_of(page, "markdown")) if page.suffix == ".ipynb" else page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if not target.startswith("https://"):
            found = (page.parent / file).resolve() if file else page
            assert found.is_file(), target
            assert not anchor or anchor in anchors(found), target


def test_the_glossary_explains_each_word_once_and_every_word_that_notebooks_link():
    glossary = ROOT / "docs" / "glossary.md"
    words = re.findall(r"^### (.+)$", glossary.read_text(), re.MULTILINE)
    assert len(words) == len({*words})
    # JupyterLab keeps capitals and signs in an anchor, GitHub does not: of such words both make the same.
    assert [word for word in words if not re.fullmatch("[a-z]+([ -][a-z]+)*", word)] == []
    linked = {a for p in NOTEBOOKS for a in re.findall(r"glossary\.md#([\w-]+)", "\n".join(cells_of(p, "markdown")))}
    assert len(linked) >= 10 and linked <= anchors(glossary)


def outputs(executed):
    return [o for cell in json.loads(executed.read_text())["cells"] for o in cell.get("outputs", [])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_a_figure(path, tmp_path):
    executed = wb.run_notebook(path, {"smoke": True, "device": "cpu"}, tmp_path, progress=False)
    shown = outputs(executed)
    assert any("application/vnd.plotly.v1+json" in o.get("data", {}) for o in shown)
    assert not any(o["output_type"] == "error" for o in shown)
    bars = {o["name"] for o in shown if "%|" in "".join(o.get("text", ""))}
    assert bars <= {"stdout"}  # under all else JupyterLab lays red


@pytest.fixture(scope="module")
def qwen(samples, tmp_path_factory):
    texts = ["How do I do that?", "I am sorry, but I cannot help with that.", "Sure, here is how."] * 4
    model, tokenizer = wb.build_text_model(texts, vocab_size=400, hidden_size=32)
    return wb.save_model(model, tokenizer, tmp_path_factory.mktemp("models") / "qwen2-random")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_same_notebook_takes_a_real_architecture_and_real_data(path, qwen, samples, tmp_path):
    parameters = {"smoke": True, "device": "cpu", "model": str(qwen), "data_dir": str(samples.resolve())}
    wb.run_notebook(path, parameters, tmp_path, progress=False)


def test_the_tour_leaves_notebook_records_page_and_picture_and_three_lines(tmp_path):
    command = [sys.executable, "-m", "workbench", "run", "notebooks/00_tour.ipynb", "-p", "smoke", "true"]
    done = subprocess.run([*command, "--runs-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    places = dict(line.split(maxsplit=1) for line in lines[:4])
    assert list(places) == ["notebook", "records", "page", "picture"]
    assert all(Path(place).exists() for name, place in places.items() if name != "picture" or wb.views.find_browser())
    assert [line[:2] for line in lines[4:]] == ["1.", "2.", "3."]
    assert len(wb.load_runs(places["records"])) == 5


def test_the_readme_works_as_it_is_written(tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["run"].status == "completed" and len(wb.load_runs("runs")) == 1
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert target.startswith("https://arxiv.org/") or (ROOT / target).exists(), target


def test_a_misspelled_parameter_stops_the_command_before_anything_runs(tmp_path):
    command = [sys.executable, "-m", "workbench", "run", "notebooks/00_tour.ipynb", "-p", "sed", "1"]
    done = subprocess.run([*command, "--runs-dir", str(tmp_path / "runs")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "sed" in done.stderr and "seed" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("record.json"))
