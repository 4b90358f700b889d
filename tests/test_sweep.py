"""Sweeps: real kernels in real processes, some of which are killed; nothing is lost and nobody else is disturbed."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import combinations
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import workbench as wb
from workbench.study.engines import visible_gpus
from workbench.study.grid import Study, read_study
from workbench.study.points import FIXED_COLUMNS

STUDIES = Path(wb.__file__).parents[1] / "studies"
PARAMETERS = """seed: int = 0  # of all
rate: float = 0.5
mishap: str = ""  # what happens to it, mostly at the first attempt alone
free = None
runs_dir: str = "../runs"
"""
WORK = """import json, os, signal, time
from pathlib import Path
import psutil

folder, child = Path(runs_dir), psutil.Process(os.getppid())
first = not (folder / "kernel").exists()
(folder / "kernel").write_text(str(os.getpid()))
if mishap == "error":
    raise ValueError(f"no luck with {seed}")
if first and mishap in ("kernel", "process", "worker"):
    os.kill({"kernel": os.getpid(), "process": child.pid, "worker": child.ppid()}[mishap], signal.SIGKILL)
    time.sleep(60)
names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
(folder / "result.json").write_text(json.dumps({"result": seed * rate, **{n: os.environ.get(n) for n in names}}))
"""


def write(path: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    notebook = new_notebook(cells=[new_code_cell(parameters, metadata={"tags": ["parameters"]})])
    notebook.cells.extend(map(new_code_cell, cells))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def notebook(tmp_path):
    return write(tmp_path / "notebooks" / "work.ipynb", WORK)


def states(table: pd.DataFrame) -> list[dict]:
    return [json.loads(Path(path, "point.json").read_text()) for path in table.path]


def results(table: pd.DataFrame) -> list[float | None]:
    files = [Path(path, "result.json") for path in table.path]
    return [json.loads(file.read_text())["result"] if file.exists() else None for file in files]


def wait_for(what, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# --- engines ---------------------------------------------------------------------------------------------------------

MISHAPS = ["", "error", "kernel", "process"]


def test_a_sweep_loses_nothing_to_kills_and_a_dask_cluster_comes_to_the_same(notebook, tmp_path):
    study = {"notebook": notebook, "parameters": {"rate": 2}, "zip": {"seed": [1, 2, 3, 4], "mishap": MISHAPS}}
    local = wb.sweep(study, runs_dir=tmp_path / "local", workers=2, retries=1, threads=1, devices=["a", "b"])

    assert list(local.status) == ["completed", "failed", "completed", "completed"]
    assert results(local) == [2.0, None, 6.0, 8.0] and list(local.mishap) == MISHAPS and list(local.rate) == [2.0] * 4
    assert list(local.n_attempts) == [1, 2, 2, 2]
    assert "cell 2, `import json, os, signal, time`, raised ValueError: no luck with 2" in local.error[1]
    errors = [[attempt["error"] for attempt in state["attempts"]] for state in states(local)]
    assert errors[0] == [None] and errors[2][1] is None and errors[3][1] is None
    assert "lost its kernel" in errors[2][0] and errors[3][0] == "its process was killed by SIGKILL"
    for row in local.itertuples():
        assert (
            Path(row.executed).name == f"work-{row.n_attempts}{'' if row.status == 'completed' else '.partial'}.ipynb"
        )
        assert Path(row.executed).is_file() and is_gone(int(Path(row.path, "kernel").read_text()))
    attempts = [attempt for state in states(local) for attempt in state["attempts"]]
    assert {attempt["CUDA_VISIBLE_DEVICES"] for attempt in attempts} == {"a", "b"}
    assert {attempt["OMP_NUM_THREADS"] for attempt in attempts} == {"1"}
    for one, other in combinations(attempts, 2):  # two workers, two devices: never two on one at a time
        first, second = sorted((one, other), key=lambda attempt: attempt["started"])
        end = datetime.fromisoformat(first["started"]) + timedelta(seconds=first["wall_seconds"])
        if datetime.fromisoformat(second["started"]) < end:
            assert one["CUDA_VISIBLE_DEVICES"] != other["CUDA_VISIBLE_DEVICES"]

    from distributed import LocalCluster

    other = {**study, "zip": {"seed": [1, 2, 5], "mishap": [*MISHAPS[:2], "worker"]}}
    quick = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with LocalCluster(**quick) as cluster:
        before = {worker.pid for worker in cluster.workers.values()}
        on_dask = {"engine": "dask", "scheduler": cluster, "threads": 2}
        dask = wb.sweep(other, runs_dir=tmp_path / "dask", **on_dask, retries=1, progress=False)
        assert len(before - {worker.pid for worker in cluster.workers.values()}) == 1  # the nanny began another
    assert list(dask.status) == [*local.status[:2], "completed"] and results(dask) == [*results(local)[:2], 10.0]
    assert list(dask.n_attempts) == [1, 2, 2] and list(dask.point[:2]) == list(local.point[:2])
    found = json.loads(Path(dask.path[0], "result.json").read_text())  # a nanny has set both to 1
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "2"

    kept = [Path(path, "point.json").read_bytes() for path in local.path]
    again = wb.sweep(study, runs_dir=tmp_path / "local", workers=2, progress=False)
    assert again.status.equals(local.status) and list(again.n_attempts) == [1, 3, 2, 2]
    assert [Path(path, "point.json").read_bytes() for path in local.path[[0, 2, 3]]] == [kept[0], kept[2], kept[3]]

    loaded = wb.load_sweep(tmp_path / "local")
    pd.testing.assert_frame_equal(loaded, again)


WAIT = """from pathlib import Path
import os, time
(Path(runs_dir) / "kernel").write_text(str(os.getpid()))
if mishap == "waits":
    from workbench.study.runs import Run
    with Run.start(runs_dir, {"seed": seed}, slug="stopped") as run:
        run.log({"step": 1, "loss": 0.5})
        while not Path("go").exists():
            time.sleep(0.05)
"""
# A shell that starts the tests in the background has them ignore SIGINT, and their children inherit that.
COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import workbench.__main__ as m; m.main()"
)


@pytest.fixture
def scheduler(request):
    """Nothing for the local engine, for dask the arguments that reach a cluster of one worker."""
    if request.param == "local":
        yield ["--workers", "1"]
        return
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        yield ["--engine", "dask", "--scheduler", cluster.scheduler_address]


@pytest.mark.parametrize(
    ("scheduler", "how", "mishaps"),
    [
        ("local", signal.SIGINT, ["", "waits"]),
        ("local", signal.SIGKILL, ["waits"]),
        ("dask", signal.SIGINT, ["waits", ""]),
    ],
    indirect=["scheduler"],
)
def test_an_interrupted_sweep_goes_on_where_it_stopped(scheduler, how, mishaps, tmp_path):
    notebook = write(tmp_path / "notebooks" / "wait.ipynb", WAIT)
    study = tmp_path / "study.yaml"
    keys = {"notebook": "notebooks/wait.ipynb", "runs_dir": "runs", "threads": 1}
    study.write_text(json.dumps({**keys, "zip": {"seed": [*range(len(mishaps))], "mishap": mishaps}}))  # JSON is YAML
    command = [sys.executable, "-c", COMMAND, "sweep", str(study), *scheduler]

    def table():
        return wb.sweep(study, dry_run=True)

    sweep = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: sweep.poll() is not None or list(tmp_path.glob("runs/*/*.partial/history.jsonl")))
    os.killpg(sweep.pid, how)  # as a terminal does to the process that it shows
    out, err = sweep.communicate(timeout=60)
    assert sweep.returncode == (130 if how == signal.SIGINT else -how), err
    n, stopped = len(mishaps), mishaps.index("waits")
    wait_for(lambda: table().status[stopped] == "interrupted")
    before = table()
    assert list(before.status) == ["completed"] * stopped + ["interrupted"] + ["pending"] * (n - stopped - 1)
    row = before.loc[stopped]
    assert row.error.startswith(row.path.rpartition("/")[0]) and "cell 2, `from pathlib import Path`" in row.error
    assert row.executed.endswith("wait-1.partial.ipynb") and Path(row.executed).is_file()
    wait_for(lambda: is_gone(int(Path(row.path, "kernel").read_text())))
    assert list(wb.load_runs(tmp_path / "runs").status) == ["interrupted"]
    if how == signal.SIGINT:
        assert f"{stopped} of {n} points completed" in out and "Traceback" not in err

    (notebook.parent / "go").touch()
    kept = [Path(path, "point.json").read_bytes() for path in before.path[:stopped]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{n} of {n} points completed" in done.stdout and f"{n}/{n}" in done.stderr
    assert list(table().n_attempts) == [2 if mishap else 1 for mishap in mishaps]
    assert [Path(path, "point.json").read_bytes() for path in before.path[:stopped]] == kept
    assert list(wb.load_runs(tmp_path / "runs").status) == ["interrupted", "completed"]


def test_a_point_that_takes_too_long_is_ended_and_the_next_begun(tmp_path):
    notebook = write(tmp_path / "late.ipynb", "import time\ntime.sleep(1000)")
    table = wb.sweep(notebook, runs_dir=tmp_path / "runs", timeout=1.5, retries=1, workers=1, progress=False)
    errors = [attempt["error"] for state in states(table) for attempt in state["attempts"]]
    assert errors == ["did not end within 1.5 s"] * 2 and list(table.status) == ["failed"]


def test_points_may_share_a_folder_for_records_and_reuse_each_others_runs(tmp_path):
    code = """from workbench.study.runs import Run, find_run
for n in range(20):
    Run.start(runs_dir, {"n": n}, slug="shared").finish()
assert all(find_run(runs_dir, {"n": n}) for n in range(20))
"""
    notebook = write(tmp_path / "notebooks" / "share.ipynb", code)
    study = {"notebook": notebook, "parameters": {"runs_dir": "../shared"}, "grid": {"seed": [0, 1]}}

    def sweep(_):
        return wb.sweep(study, runs_dir=tmp_path / "runs", workers=2, progress=False)

    with ThreadPoolExecutor(2) as pool:  # two sweeps of the same points share them out
        table, other = pool.map(sweep, range(2))
    assert list(table.n_attempts) == [1, 1] and table.equals(other)
    assert list(table.status) == ["completed"] * 2 and set(table.runs_dir) == {str(tmp_path / "notebooks/../shared")}
    runs = wb.load_runs(tmp_path / "shared")
    assert runs.run_id.nunique() == 40 and set(runs.status) == {"completed"}
    assert table.executed.nunique() == 2


# --- the grid --------------------------------------------------------------------------------------------------------


def points(notebook, **keys) -> list[str]:
    return [setting.point for setting in Study(notebook, **keys).settings()]


def test_a_grid_is_every_run_times_every_row_times_every_cell(notebook):
    study = Study(
        notebook,
        parameters={"rate": 1},
        grid={"free": range(2)},
        zip={"seed": np.arange(2)},
        runs=[{"mishap": "a"}, {"mishap": "b", "rate": 2}],
    )
    found = [setting.given for setting in study.settings()]
    assert found == [
        {"rate": rate, "mishap": mishap, "seed": seed, "free": free}
        for mishap, rate in [("a", 1.0), ("b", 2.0)]
        for seed in range(2)
        for free in range(2)
    ]
    assert [setting.given for setting in Study(notebook).settings()] == [{}]


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
nested = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
on_files = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@on_files
@given(values=st.dictionaries(st.sampled_from(["seed", "rate", "mishap", "free"]), nested, min_size=1), data=st.data())
def test_the_name_of_a_point_is_what_its_notebook_is_given(notebook, values, data):
    values = {name: {"seed": 7, "rate": 2.5, "mishap": "x"}.get(name, value) for name, value in values.items()}
    (point,) = points(notebook, parameters=values)
    order = data.draw(st.permutations(list(values)))
    assert points(notebook, parameters={name: values[name] for name in order}) == [point]
    assert points(notebook, runs=[values]) == [point]
    assert points(notebook, grid={name: [value] for name, value in values.items()}) == [point]
    as_read = json.loads(json.dumps(values))  # as YAML and JSON give it back
    assert points(notebook, parameters=as_read) == [point]
    (changed,) = points(notebook, parameters={**values, "seed": 8})
    assert changed != point
    assert point in points(
        notebook,
        grid={name: [value] for name, value in values.items() if name != "seed"},
        zip={"seed": [values.get("seed", 0), 8]},
    )


@on_files
@given(st.lists(nested, min_size=1, max_size=6, unique_by=lambda value: json.dumps(value, sort_keys=True)))
def test_values_that_differ_as_json_are_points_that_differ(notebook, values):
    assert len(set(points(notebook, grid={"free": values}))) == len(values)


def test_one_is_not_true_but_a_float_is_a_float(notebook):
    assert len(set(points(notebook, grid={"free": [1, 1.0, True, "1", [1], 0, 0.0, False, None, ""]}))) == 10
    assert points(notebook, parameters={"rate": 2}) == points(notebook, parameters={"rate": 2.0})
    with pytest.raises(ValueError, match=r"points that differ, got one twice: \{'rate': 2.0\}"):
        points(notebook, grid={"rate": [2, 2.0]})


def test_what_does_not_decide_the_outcome_does_not_count(notebook, tmp_path):
    (point,) = points(notebook)
    defaults = {"seed": 0, "rate": 0.5, "mishap": "", "free": None}
    assert points(notebook, parameters=defaults) == points(notebook, parameters={"runs_dir": "elsewhere"}) == [point]
    source = nbformat.read(notebook, 4)
    source.cells.insert(0, new_markdown_cell("# A title"))
    source.cells[2].outputs = [nbformat.v4.new_output("stream", text="said")]
    moved = tmp_path / "moved" / "work.ipynb"
    moved.parent.mkdir()
    nbformat.write(source, moved)
    assert points(moved) == [point]
    assert (
        len({point, *points(moved, version=1), *points(moved, version="2"), *points(moved, parameters={"seed": 1})})
        == 4
    )
    assert points(write(moved, WORK + "# more")) != [point]
    assert points(write(moved, WORK, parameters=PARAMETERS.replace("0.5", "0.25"))) != [point]


def test_yaml_is_read_by_the_rules_of_today(tmp_path):
    file = tmp_path / "study.yaml"
    values = "[1e-5, 1.5, .5, 5, -3, 010, 1:30, no, yes, true, null, '1', 2026-01-31, 1_000, ~]"
    file.write_text(f"notebook: a.ipynb\ngrid:\n  x: {values}\n")
    keys = read_study(file)
    assert keys["grid"]["x"] == [
        1e-5,
        1.5,
        0.5,
        5,
        -3,
        10,
        "1:30",
        "no",
        "yes",
        True,
        None,
        "1",
        "2026-01-31",
        "1_000",
        None,
    ]
    assert keys["notebook"] == tmp_path / "a.ipynb" and keys["runs_dir"] == Path("runs/study").absolute()
    file.write_text("grid: {seed: [1]}\ngrid: {seed: [2]}\n")
    with pytest.raises(ValueError, match=r"each key once in .*study\.yaml, got 'grid' twice"):
        read_study(file)
    for text in ("- 1", "", "a: [", "1: 2"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"study\.yaml"):
            read_study(file)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gird": {}}, "one of .*got 'gird'. Did you mean 'grid'?"),
        ({"grid": {"sede": [1]}}, "got 'sede'. Did you mean 'seed'?"),
        ({"grid": {"seed": [0, 1.5]}}, "'seed': expected int, got 1.5"),
        ({"grid": {"seed": 3}}, "grid, seed: expected a list of values"),
        ({"grid": {"mishap": "abc"}}, "grid, mishap: expected a list of values"),
        ({"grid": {"seed": []}}, "grid, seed: expected a list of values, not an empty one"),
        ({"grid": ["seed"]}, "grid: expected a mapping"),
        ({"grid": {"seed": [1]}, "parameters": {"seed": 2}}, r"in one place, got \['seed'\] in two"),
        ({"grid": {"seed": [1]}, "zip": {"seed": [2]}}, r"in one place, got \['seed'\] in two"),
        ({"grid": {"seed": [1]}, "runs": [{"seed": 2}]}, r"in one place, got \['seed'\] in two"),
        ({"grid": {"seed": [1, 1]}}, "points that differ"),
        ({"zip": {"seed": [1], "rate": [1.0, 2.0]}}, "zip: expected as many values of each parameter"),
        ({"runs": {"seed": 1}}, "runs: expected a list of mappings"),
        ({"workers": 0}, "workers: expected a whole number of at least 1, got 0"),
        ({"retries": -1}, "retries: expected a whole number of at least 0"),
        ({"retries": True}, "retries: expected a whole number"),
        ({"threads": "2"}, "threads: expected a whole number"),
        ({"timeout": 0}, "timeout: expected seconds above 0"),
        ({"engine": "slurm"}, "expected engine, one of .*'slurm'"),
        ({"engine": "dask"}, "expected a scheduler, got none"),
        ({"scheduler": "tcp://h:1"}, "expected no scheduler, got 'tcp://h:1': say engine='dask'"),
        ({"notebook": "absent.ipynb"}, "absent.ipynb, which does not exist"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_is_written(notebook, tmp_path, keys, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        wb.sweep({"notebook": notebook, "runs_dir": tmp_path / "runs", **keys})
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("study", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_of_the_repository_fit_their_notebooks(study):
    table = wb.sweep(study, dry_run=True)
    assert len(table) > 1 and all(Path(path).parents[1] == STUDIES.parent / "runs" for path in table.path)


def test_the_shell_lists_the_points_and_writes_nothing(notebook, tmp_path, capsys):
    from workbench.__main__ import main

    study = tmp_path / "study.yaml"
    study.write_text("notebook: notebooks/work.ipynb\nruns_dir: runs\ngrid: {seed: [0, 1], rate: [1e-5]}\n")
    main(["sweep", str(study), "--list", "-p", "mishap", "error"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["pending", "pending", "0"]
    assert lines[0].endswith("seed=0") and lines[1].endswith("seed=1") and "0 of 2 points completed" in lines[2]
    assert not (tmp_path / "runs").exists()
    with pytest.raises(SystemExit, match=r"FileNotFoundError: .*absent\.yaml"):
        main(["sweep", str(tmp_path / "absent.yaml")])
    with pytest.raises(FileNotFoundError, match="expected points of a sweep"):
        wb.load_sweep(tmp_path / "runs")


def test_a_parameter_may_have_the_name_of_a_column(tmp_path):
    notebook = write(tmp_path / "a.ipynb", parameters="status: str = ''\npoint: int = 0")
    table = wb.sweep(notebook, dry_run=True, grid={"point": [1, 2]})
    assert [*table.columns] == [*FIXED_COLUMNS, "parameter.status", "parameter.point"]
    assert list(table["parameter.point"]) == [1, 2] and list(table.status) == ["pending"] * 2


def test_gpus_are_those_that_this_process_may_use(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-8f")
    assert visible_gpus() == ["2", "GPU-8f"]
    for none in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    listing = ["GPU 0: NVIDIA H100 (UUID: GPU-aa-1)", "GPU 1: NVIDIA H100 (UUID: GPU-bb-2)"]
    for lines, found in [
        (listing, ["GPU-aa-1", "GPU-bb-2"]),
        (
            [listing[0], "  MIG 1g.10gb Device 0: (UUID: MIG-cc-3)", "  MIG 1g.10gb Device 1: (UUID: MIG-dd-4)"],
            ["MIG-cc-3", "MIG-dd-4"],
        ),
    ]:
        tool.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
        tool.chmod(0o755)
        assert visible_gpus() == found
