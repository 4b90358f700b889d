"""A notebook's training as a script: what is in it, and that several processes leave the notebook's records with it."""

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from workbench.__main__ import main
from workbench.study.outcomes import differences
from workbench.study.runs import Run
from workbench.study.script import export_script

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "03_alignment_tax.ipynb"
PARAMETERS = 'seed: int = 0  # of the rows\nname: str = "x"\nruns_dir: str = "runs"'


def notebook(path, *cells):
    """A notebook of code cells; a pair is a cell with its tag."""
    pairs = [cell if isinstance(cell, tuple) else (cell, None) for cell in [(PARAMETERS, "parameters"), *cells]]
    made = [nbformat.v4.new_code_cell(code, metadata={"tags": [tag] if tag else []}) for code, tag in pairs]
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


def run(script):
    """The names that a script leaves, run here as the main program."""
    return runpy.run_path(str(script), run_name="__main__")


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_the_script_has_the_new_values_and_stops_after_the_training(tmp_path):
    source = notebook(
        tmp_path / "a.ipynb", "twice = seed * 2", ("done = [twice, name]", "training"), "raise OSError('a figure')"
    )
    script = export_script(source, {"seed": 21}, tmp_path / "out" / "a.py", runs_dir=tmp_path)
    names = run(script)
    assert names["done"] == [42, "x"] and names["runs_dir"] == str(tmp_path)
    assert "seed: int = 0  # of the rows" in script.read_text()  # where it can be changed again
    assert export_script(source, {"seed": 21}, script, runs_dir=tmp_path) == script  # the same once more
    assert "done" not in runpy.run_path(str(script))  # another process that imports it trains nothing
    with pytest.raises(FileExistsError, match="holds something else"):
        export_script(source, {"seed": 22}, script, runs_dir=tmp_path)


def test_what_only_ipython_reads_is_left_out(tmp_path, capfd):
    cells = [
        "%load_ext autoreload\n%autoreload 2\n!echo shell\nif seed == 0:\n    %matplotlib inline\nafter = 1",
        "%%time\nbody = 2",
        "%%bash\nfor i in 1 2; do echo shell; done",
        "print?",
        '%time\nremainder = (7\n  % 4)\nquoted = """\n%kept\n!kept\n"""',
        "display(quoted)\nquoted",
        ("trained = [after, body, remainder]", "training"),
    ]
    names = run(export_script(notebook(tmp_path / "a.ipynb", *cells), output=tmp_path / "a.py"))
    assert names["trained"] == [1, 2, 3] and names["quoted"] == "\n%kept\n!kept\n"
    assert capfd.readouterr().out == names["quoted"] + "\n"  # displayed once; nothing was said by a shell


def test_strings_of_several_lines_and_scopes_are_those_of_the_notebook(tmp_path):
    text = '"""\nof\n  two\n"""'
    cells = [
        "from math import *",
        f'plain = {text}\nfilled = f{text[:-4]}{{seed}}\n"""\njoined = ("a"\n"b")',
        'def f():\n    """Two\n    lines."""\n    global found\n    found = [plain for _ in range(2)]\n',
        "class C:\n    size = seed",
        ("f()\nresult = found, C.size, floor(pi)", "training"),
    ]
    names = run(export_script(notebook(tmp_path / "a.ipynb", *cells), {"seed": 5}, tmp_path / "a.py"))
    plain = ast.literal_eval(text)
    assert names["result"] == ([plain] * 2, 5, 3)
    assert (names["plain"], names["filled"], names["joined"]) == (plain, "\nof\n  two5\n", "ab")


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a cell tagged `training` in a\.ipynb, got none"):
        export_script(notebook(tmp_path / "a.ipynb", "x = 1"), output=tmp_path / "a.py")
    source = notebook(tmp_path / "b.ipynb", "files = !ls", ("x = 1", "training"))
    with pytest.raises(ValueError, match=r"Python in b\.ipynb, cell 2, got a value that IPython gives"):
        export_script(source, output=tmp_path / "b.py")
    with pytest.raises(ValueError, match=r"expected Python in c\.ipynb, cell 2, got .*line 1"):
        export_script(notebook(tmp_path / "c.ipynb", "x = = 1", ("y", "training")), output=tmp_path / "c.py")
    with pytest.raises(ValueError, match="Did you mean 'seed'"):
        export_script(source, {"sead": 1}, tmp_path / "b.py")
    assert not list(tmp_path.glob("*.py"))


def test_the_command_line_writes_it(tmp_path, capsys):
    source = notebook(tmp_path / "a.ipynb", ("twice = seed * 2", "training"))
    main(["script", str(source), "-p", "seed", "4", "-o", str(tmp_path / "b.py"), "--runs-dir", str(tmp_path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "b.py")
    assert run(tmp_path / "b.py")["twice"] == 8


# --- in several processes --------------------------------------------------------------------------------------------


def runs(folder):
    """The runs of a folder by their labels."""
    found = [Run.load(path.parent) for path in folder.rglob("record.json")]
    return {f"{run.path.parent.name}/{run.record['parameters']['label']}": run for run in found}


def test_accelerate_launches_the_notebook_and_leaves_its_records(tmp_path):
    kinds = {"one": {}, "ddp": {}, "fsdp2": {"shard": True}}
    if torch.accelerator.current_accelerator() is not None:
        del kinds["fsdp2"]  # transformers shards onto the device that torch was built for
    small = {"smoke": True, "device": "cpu", "learning_rates": [2e-3]}
    for kind, more in kinds.items():
        export_script(NOTEBOOK, small | more, tmp_path / f"{kind}.py", runs_dir=tmp_path / kind)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    for kind in list(kinds)[1:]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*launch, tmp_path / f"{kind}.py"], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("safety gained") == 1
    run(tmp_path / "one.py")
    alone = runs(tmp_path / "one")
    assert {run.record["parameters"]["pipeline"] for run in alone.values()} == {"sft", "dpo", "sft→dpo"}
    for kind in list(kinds)[1:]:
        together = runs(tmp_path / kind)
        assert alone.keys() == together.keys()
        for label, mine in alone.items():
            theirs = together[label]
            assert differences(mine, theirs, tolerance=1e-3) == [] and mine.scores == theirs.scores
            assert theirs.record["environment"]["parallel"] == kind
