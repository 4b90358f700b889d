"""The record of a run: what is written is what comes back, whatever ends the run."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.study import provenance, runs
from workbench.study.runs import Run, find_run, load_histories, load_runs, parameters_hash

PARAMETERS = {"model": "micro", "seed": 3, "technique": {"name": "projection", "rank": 4}, "layers": [0, 1]}
ROWS = [
    {"step": 0, "evaluation": True, "utility": 0.98, "safety": 0.1, "facts/correct_rate": 1.0},
    {"step": 1, "loss": 2.5, "leakage": {"layer0": 0.25}},
    {"step": 2, "loss": 1.5, "stage": "sft"},
    {"step": 2, "evaluation": True, "utility": 0.9, "safety": 0.8, "facts/correct_rate": 0.875},
]
TRAJECTORY = [
    {"step": 0, "utility": 0.98, "safety": 0.1, "facts/correct_rate": 1.0},
    {"step": 2, "utility": 0.9, "safety": 0.8, "facts/correct_rate": 0.875},
]


def record(runs_dir: Path, parameters: dict = PARAMETERS, rows: list = ROWS, **ended) -> Run:
    run = Run.start(runs_dir, parameters, slug="Plain SFT/αβ", data={"pairs": "f00d"})
    for row in rows:
        run.log(row)
    run.finish(**ended)
    return run


def strict_json(path: Path) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_a_finished_run_reads_as_it_was_written(tmp_path):
    run = Run.start(tmp_path, PARAMETERS, slug="Plain SFT/αβ", data={"pairs": "f00d"})
    for row in ROWS:
        run.log(row)
    while_running, partial = run.history, run.path
    assert partial.name.endswith(".partial") and strict_json(partial / "record.json")["status"] == "running"
    run.finish(scores={"utility": 0.9, "safety": 0.8}, base_scores={"utility": 0.98})

    assert not partial.exists() and {file.name for file in run.path.iterdir()} == {"record.json", "history.parquet"}
    loaded = Run.load(run.path)
    assert loaded.record == run.record == strict_json(run.path / "record.json")
    assert loaded.record["run_id"] == run.path.name and loaded.record["parameters"] == PARAMETERS
    assert loaded.status == "completed" and loaded.scores == {"utility": 0.9, "safety": 0.8}
    assert loaded.record["base_scores"] == {"utility": 0.98} and loaded.record["data"] == {"pairs": "f00d"}
    assert loaded.record["peak_memory_bytes"] > 2**20 and loaded.record["wall_seconds"] >= 0
    assert loaded.record["started"] <= loaded.record["finished"]
    for history in (loaded.history, run.history, pd.read_parquet(run.path / "history.parquet")):
        pd.testing.assert_frame_equal(history, while_running)
    assert list(while_running["evaluation"]) == [True, False, False, True]
    assert while_running["leakage.layer0"].dropna().tolist() == [0.25]


def test_the_folder_is_named_by_time_slug_and_hash(tmp_path):
    name = record(tmp_path).path.name
    stamp, slug, digest = name[:19], name[20:-9], name[-8:]
    assert pd.to_datetime(stamp, format="%Y%m%dT%H%M%S%fZ").year >= 2024
    assert slug == "plain-sft" and digest == parameters_hash(PARAMETERS, {"pairs": "f00d"})[:8]


def test_runs_started_in_one_millisecond_have_folders_of_their_own(tmp_path):
    folders = {runs._claim_folder(tmp_path, "same") for _ in range(50)}
    assert len(folders) == 50 and folders == set(tmp_path.iterdir())


def test_the_hash_knows_parameters_and_data_and_no_order():
    same = dict(reversed(PARAMETERS.items())) | {"layers": (0, 1), "seed": np.int64(3)}
    assert parameters_hash(same) == parameters_hash(PARAMETERS)
    others = [
        PARAMETERS | {"seed": 4},
        PARAMETERS | {"technique": {"name": "projection", "rank": 8}},
        PARAMETERS | {"clip": None},
        PARAMETERS | {"clip": math.inf},
    ]
    hashes = [
        parameters_hash(PARAMETERS),
        *map(parameters_hash, others),
        parameters_hash(PARAMETERS, {"pairs": "f00d"}),
    ]
    assert len(set(hashes)) == len(hashes)


def test_a_parameter_that_is_not_json_is_named_and_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match=r"parameters\['data'\].*PosixPath.*str\(path\)"):
        Run.start(tmp_path / "runs", {"seed": 1, "data": tmp_path}, slug="x")
    assert not (tmp_path / "runs").exists()


def test_values_that_are_not_finite_are_null_on_disk_and_nan_in_tables(tmp_path):
    run = record(
        tmp_path, {"clip": math.inf}, [{"step": 1, "loss": math.nan}, {"step": 2, "loss": np.float32(0.5)}],
        scores={"utility": math.nan, "safety": 1},
    )  # fmt: skip
    on_disk = strict_json(run.path / "record.json")
    assert on_disk["parameters"] == {"clip": None} and on_disk["scores"] == {"utility": None, "safety": 1.0}
    assert math.isnan(Run.load(run.path).scores["utility"])
    assert run.history["loss"].isna().tolist() == [True, False] and run.history["loss"][1] == 0.5


def test_columns_of_mixed_types_survive(tmp_path):
    run = record(tmp_path, rows=[{"note": 1}, {"note": "one"}, {"step": 3}])
    assert run.history["note"].tolist()[:2] == ["1", "one"] and pd.isna(run.history["note"][2])


def test_rows_and_calls_that_make_no_sense_are_refused(tmp_path):
    run = Run.start(tmp_path, {}, slug="x")
    with pytest.raises(TypeError, match=r"lists in \['losses'\]"):
        run.log({"losses": [1, 2]})
    with pytest.raises(TypeError, match=r"scores\['utility'\]"):
        run.finish(scores={"utility": {"facts": 1.0}})
    with pytest.raises(ValueError, match="'done'"):
        run.finish("done")
    run.finish()
    for late in (lambda: run.log({"step": 1}), run.finish):
        with pytest.raises(RuntimeError, match=r"expected a run in progress.*completed"):
            late()


@pytest.mark.parametrize(
    ("raised", "status", "error"),
    [(KeyboardInterrupt(), "interrupted", None), (ValueError("no rank 9"), "failed", "ValueError: no rank 9")],
)
def test_what_stops_a_run_is_recorded_and_goes_on(tmp_path, raised, status, error):
    with pytest.raises(type(raised)), Run.start(tmp_path, PARAMETERS, slug="x") as run:
        run.log(ROWS[0])
        raise raised
    loaded = Run.load(run.path)
    assert (loaded.status, loaded.record["error"]) == (status, error)
    assert loaded.history["utility"].tolist() == [0.98] and loaded.path.name == loaded.record["run_id"]


def test_leaving_normally_completes_and_an_early_finish_stays(tmp_path):
    with Run.start(tmp_path, {"seed": 1}, slug="x") as run:
        run.file("subspace.safetensors").write_bytes(b"basis")
    assert Run.load(run.path).status == "completed" and run.file("subspace.safetensors").read_bytes() == b"basis"
    with Run.start(tmp_path, {"seed": 2}, slug="x") as run:
        run.finish("failed", error="diverged")
    assert Run.load(run.path).record["error"] == "diverged"


def test_a_killed_process_leaves_every_line_it_had_written(tmp_path):
    code = """if True:
        import os, signal, sys
        from workbench.study.runs import Run
        run = Run.start(sys.argv[1], {"seed": 1}, slug="killed")
        for step in range(5):
            run.log({"step": step, "evaluation": step == 4, "safety": 0.5})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -signal.SIGKILL
    (partial,) = tmp_path.glob("*.partial")
    with (partial / "history.jsonl").open("a") as torn:
        torn.write('{"step": 5, "los')

    run = Run.load(partial)
    assert run.status == "running" and run.history["step"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(FileNotFoundError, match=r"no finished run.*include_running=True"):
        load_runs(tmp_path)
    assert load_runs(tmp_path, include_running=True)["trajectory"][0] == [{"step": 4, "safety": 0.5}]


def test_a_table_has_a_row_a_run_at_any_depth(tmp_path):
    record(tmp_path, scores={"utility": 0.9, "harmful_heldout/refusal_rate": 1.0}, base_scores={"utility": 0.98})
    record(tmp_path / "sweep", {"seed": 4}, [], status="failed", error="ValueError: x")
    Run.start(tmp_path, {"seed": 5}, slug="running")
    table = load_runs(tmp_path).set_index("seed")
    assert table["status"].to_dict() == {3: "completed", 4: "failed"}
    first = table.loc[3]
    assert (first["technique.name"], first["technique.rank"], first["layers"]) == ("projection", 4, [0, 1])
    assert (first["utility"], first["base.utility"], first["harmful_heldout/refusal_rate"]) == (0.9, 0.98, 1.0)
    assert first["trajectory"] == TRAJECTORY and table.loc[4, "trajectory"] == []
    assert math.isnan(table.loc[4, "utility"]) and Run.load(first["path"]).record["run_id"] == first["run_id"]
    assert len(load_runs(tmp_path, include_running=True)) == 3


def test_a_name_used_twice_loses_neither_value(tmp_path):
    record(tmp_path, {"utility": "mean", "status": "draft", "seed": 1}, [], scores={"utility": 0.5, "path": 0.25})
    record(tmp_path, {"utility": "median", "status": "draft", "seed": 2}, [], status="failed")
    table = load_runs(tmp_path).sort_values("seed")
    assert table["parameter.utility"].tolist() == ["mean", "median"]
    assert table["parameter.status"].tolist() == ["draft", "draft"]
    assert table["status"].tolist() == ["completed", "failed"]
    assert table["utility"].tolist()[0] == 0.5 and table["score.path"].tolist()[0] == 0.25
    assert all(Path(path).is_dir() for path in table["path"])


def test_histories_come_long_with_the_run_beside_each_row(tmp_path):
    ids = [record(tmp_path, {"seed": seed}).path.name for seed in (1, 2)]
    histories = load_histories(load_runs(tmp_path))
    assert histories["run_id"].tolist() == [run_id for run_id in ids for _ in ROWS]
    assert histories["loss"].dropna().tolist() == [2.5, 1.5] * 2


def test_nothing_to_read_is_an_error_that_says_where(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent, got no such folder"):
        load_runs(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="got no finished run"):
        load_runs(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"record\.json"):
        Run.load(tmp_path)


@pytest.mark.parametrize("damage", ['{"run_id": "x", "par', "[]", "7", "{}"])
def test_a_damaged_record_is_named_and_the_others_are_read(tmp_path, damage):
    whole, broken = record(tmp_path, {"seed": 1}), record(tmp_path, {"seed": 2})
    (broken.path / "record.json").write_text(damage)
    with pytest.warns(UserWarning, match=broken.path.name):
        assert load_runs(tmp_path)["run_id"].tolist() == [whole.path.name]


def test_a_finished_run_is_found_by_its_parameters_and_data(tmp_path):
    data = {"pairs": "f00d"}
    assert find_run(tmp_path / "absent", PARAMETERS) is None
    record(tmp_path, status="failed")
    Run.start(tmp_path, PARAMETERS, slug="x", data=data)
    assert find_run(tmp_path, PARAMETERS, data) is None
    older, newer = record(tmp_path / "sweep"), record(tmp_path)
    found = find_run(tmp_path, dict(reversed(PARAMETERS.items())), data)
    assert found is not None and older.path.name < newer.path.name == found.path.name
    assert find_run(tmp_path, PARAMETERS) is None and find_run(tmp_path, PARAMETERS | {"seed": 4}, data) is None
    failed = find_run(tmp_path, PARAMETERS, data, status="failed")
    assert failed is not None and failed.status == "failed"
    older.path.rename(tmp_path / f"x-{parameters_hash({'seed': 4})[:8]}")
    assert find_run(tmp_path, {"seed": 4}) is None  # eight digits alike are not enough


def test_the_environment_says_what_ran(tmp_path):
    environment = record(tmp_path).record["environment"]
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["cpu_count"] >= 1 and {"torch", "transformers"} <= set(environment["versions"])


def test_the_commit_is_that_of_the_repository_that_tracks_the_file(tmp_path):
    def git(*words: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        return subprocess.check_output(["git", "-C", str(tmp_path), *identity, *words], text=True).strip()

    tracked, stray = tmp_path / "tracked.py", tmp_path / "stray.py"
    tracked.write_text("1")
    unknown = {"git_sha": None, "git_dirty": None}
    assert provenance.git_state(tracked) == unknown
    git("init", "--quiet")
    git("add", "tracked.py")
    git("commit", "--quiet", "--message", "x")
    assert provenance.git_state(tracked) == {"git_sha": git("rev-parse", "HEAD"), "git_dirty": False}
    tracked.write_text("2")
    assert provenance.git_state(tracked)["git_dirty"] is True
    stray.write_text("1")
    assert provenance.git_state(stray) == unknown
