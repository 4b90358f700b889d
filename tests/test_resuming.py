"""Going on: a run that was killed, interrupted or failed ends as if nothing had happened; one that lives is left."""

import json
import os
import random
import subprocess
import sys

import killed_training
import pandas as pd
import pytest
from conftest import same, weights
from pandas.testing import assert_frame_equal
from transformers import TrainerCallback

import workbench as wb
from workbench.alignment.techniques import Technique
from workbench.study.checkpoints import keep_checkpoint, resume_run
from workbench.study.outcomes import differences, outcome
from workbench.study.runs import Run, find_run

PARAMETERS = {"seed": 3}


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """Each setting undisturbed, and killed at random again and again, in two interpreters that hash differently."""
    root, rng = tmp_path_factory.mktemp("killed"), random.Random(0)
    fatal = [*(["step", n] for n in range(4, 8)), ["save", 2], ["save", 3], ["save", 4]]
    deaths = {setting: rng.sample(fatal, 3) for setting in killed_training.SETTINGS}

    def begin(kind, hash_seed, deaths):
        tries = {s: {"folder": str(root / s / kind), "deaths": deaths.get(s, [])} for s in killed_training.SETTINGS}
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, killed_training.__file__, json.dumps(tries)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    processes = begin("undisturbed", "1", {}), begin("killed", "2", deaths)
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return root, [json.loads(out.splitlines()[-1]) for out, _ in said]


@pytest.mark.parametrize("setting", killed_training.SETTINGS)
def test_a_run_killed_again_and_again_ends_in_the_record_of_one_that_was_not(ends, setting):
    root, (undisturbed, killed) = ends
    assert undisturbed[setting] == [0] and killed[setting][-1] == 0 and killed[setting].count(-9) >= 2
    (one,) = (Run.load(path.parent) for path in (root / setting / "undisturbed").glob("*/record.json"))
    (two,) = (Run.load(path.parent) for path in (root / setting / "killed").glob("*Z-*[!l]/record.json"))
    assert differences(one, two) == []
    n_first = (one.history.step <= 8).sum()  # rows of the first stage
    assert "resumed" not in one.record and two.record["resumed"][-1]["rows"] > n_first
    blocks = {"blocks.parquet", "spectrum.parquet"} if setting == "projected" else set()
    assert {path.name for path in two.path.iterdir()} == {"record.json", "history.parquet"} | blocks
    for name in blocks:
        assert_frame_equal(pd.read_parquet(one.path / name), pd.read_parquet(two.path / name))
    assert list(two.history[~two.history.evaluation].step) == list(range(1, 15))
    assert not list(root.glob(f"{setting}/undisturbed/*.lock"))


# --- interrupted and failed ------------------------------------------------------------------------------------------


class Stops(TrainerCallback, Technique):
    """Raises once in its life, when a step begins."""

    name = "stops"

    def __init__(self, error=None, step=0):
        self.error, self.step = error, step

    def on_step_begin(self, args, state, control, **kwargs):
        if self.error and state.global_step == self.step:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full")], ids=["interrupted", "failed"])
def test_a_run_that_stopped_goes_on_in_its_own_folder(train, world, tmp_path, error):
    how = {"steps": 6, "eval_every": 2, "suites": wb.suites_of(world, 4), "seed": 5, "runs_dir": tmp_path / "a"}
    whole, model = train(Stops(), **how)
    how |= {"checkpoint_every": 2, "reuse": True, "runs_dir": tmp_path / "b"}
    with pytest.raises(type(error)):
        train(Stops(error, 5), **how)
    (stopped,) = (tmp_path / "b").iterdir()
    assert Run.load(stopped).status in ("interrupted", "failed")
    run, resumed = train(Stops(), **how)
    assert run.path == stopped and differences(whole, run) == [] and same(weights(model), weights(resumed))
    (again,) = run.record["resumed"]
    assert again["rows"] == len(run.history[run.history.step <= 5])
    assert list((tmp_path / "b").iterdir()) == [stopped] and run.record["error"] is None
    assert train(Stops(), **how)[0].record["run_id"] == run.record["run_id"]  # complete: reused, not trained


def test_checkpoints_change_nothing_and_are_gone_in_the_end(train, tmp_path):
    plain, model = train(runs_dir=tmp_path / "a")
    kept, other = train(runs_dir=tmp_path / "b", checkpoint_every=1)
    assert differences(plain, kept) == [] and same(weights(model), weights(other))
    assert {path.name for path in kept.path.iterdir()} == {"record.json", "history.parquet"}


def test_checkpoints_wait_for_a_logged_step(train, tmp_path):
    """What the trainer has not logged yet it forgets."""
    how = {"steps": 9, "logging_steps": 3, "eval_every": 0}
    whole, _ = train(Stops(), runs_dir=tmp_path / "a", **how)
    how |= {"checkpoint_every": 2, "reuse": True, "runs_dir": tmp_path / "b"}
    with pytest.raises(KeyboardInterrupt):
        train(Stops(KeyboardInterrupt(), 8), **how)
    run, _ = train(Stops(), **how)
    assert differences(whole, run) == [] and len(run.record["resumed"]) == 1


def test_without_a_checkpoint_a_stopped_run_is_begun_anew(train):
    with pytest.raises(OSError, match="full"):
        train(Stops(OSError("full"), 2), reuse=True)
    run, _ = train(Stops(), reuse=True)
    assert run.status == "completed" and "resumed" not in run.record


def test_contradictions_about_checkpoints_are_refused(train, tmp_path):
    with pytest.raises(ValueError, match=r"leave \['save_strategy'\] out, or it"):
        train(checkpoint_every=2, save_strategy="steps")
    with pytest.raises(ValueError, match="number of steps, or 0 for none, got -1"):
        train(checkpoint_every=-1)
    assert not list(tmp_path.iterdir())


# --- which run goes on -----------------------------------------------------------------------------------------------


def begin(runs_dir, n_rows=2, n_processes=1):
    """A run in progress with a checkpoint after its rows, and one more row after that."""
    run = Run.start(runs_dir, PARAMETERS, slug="x")
    for step in range(n_rows):
        run.log({"step": step, "loss": step / 3})
    folder = run.file("checkpoints") / "1" / f"checkpoint-{n_rows}"
    folder.mkdir(parents=True)
    keep_checkpoint(run, folder, {"stage": 1, "n_processes": n_processes})
    run.log({"step": n_rows, "loss": 9.0})
    return run


def test_a_run_that_someone_works_on_is_left_to_them(tmp_path):
    run = begin(tmp_path)
    assert resume_run(tmp_path, PARAMETERS) is None
    code = f"""
import sys
from workbench.study.checkpoints import resume_run
sys.exit(resume_run({str(tmp_path)!r}, {PARAMETERS!r}) is not None)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    run.let_go()  # as the system does for a process that dies
    assert subprocess.run([sys.executable, "-c", code]).returncode == 1
    found = resume_run(tmp_path, PARAMETERS)  # for that process has ended in its turn
    assert found is not None and found[0].path == run.path
    assert resume_run(tmp_path, PARAMETERS) is None


def test_rows_after_the_checkpoint_are_dropped_and_those_before_are_kept(tmp_path):
    begin(tmp_path).let_go()
    run, checkpoint = resume_run(tmp_path, PARAMETERS)
    assert checkpoint.state["stage"] == 1 and checkpoint.path.name == "checkpoint-2"
    run.log({"step": 2, "loss": 0.5})
    assert list(run.history.loss) == [0, 1 / 3, 0.5] == list(Run.load(run.path).history.loss)
    run.finish(scores={"utility": 1.0})
    assert find_run(tmp_path, PARAMETERS) is not None and resume_run(tmp_path, PARAMETERS) is None
    assert not list(tmp_path.glob("*.lock"))


def test_only_the_last_whole_checkpoint_counts(tmp_path):
    run = begin(tmp_path)
    later = run.file("checkpoints") / "2" / "checkpoint-1"
    later.mkdir(parents=True)
    run.let_go()
    going, checkpoint = resume_run(tmp_path, PARAMETERS)
    assert checkpoint.path.parent.name == "1"  # the other was being written
    going.log({"step": 2, "loss": 0.5})
    keep_checkpoint(going, later, {"stage": 2, "n_processes": 1})
    assert [path.name for path in going.file("checkpoints").iterdir()] == ["2"]
    going.let_go()
    assert resume_run(tmp_path, PARAMETERS)[1].path == later


def test_other_parameters_and_another_number_of_processes_find_nothing_to_go_on_with(tmp_path):
    begin(tmp_path).let_go()
    assert resume_run(tmp_path, {"seed": 4}) is None
    with pytest.warns(UserWarning, match="by 1 processes, not 2"):
        assert resume_run(tmp_path, PARAMETERS, n_processes=2) is None
    assert resume_run(tmp_path, PARAMETERS) is not None


# --- comparing -------------------------------------------------------------------------------------------------------


def finished(runs_dir, loss=0.5, utility=0.9, **row):
    run = Run.start(runs_dir, PARAMETERS, slug="x")
    run.log({"step": 1, "loss": loss, "refresh_seconds": random.random(), **row})
    run.record["techniques"] = {"merge": {"scores": [{"alpha": 0.5, "utility": utility}]}}
    run.finish(scores={"utility": utility, "safety": float("nan")})
    return run


def test_differences_are_named_and_times_are_none(tmp_path):
    one = finished(tmp_path)
    assert differences(one, finished(tmp_path)) == [] and "history.refresh_seconds" not in outcome(one)
    (told,) = differences(one, finished(tmp_path, loss=0.5 + 1e-9))
    assert told == "history.loss: [0.5] and [0.500000001]"
    assert differences(one, finished(tmp_path, loss=0.5 + 1e-9), tolerance=1e-6) == []
    told = differences(one, finished(tmp_path, utility=0.8))
    assert sorted(line.split(":")[0] for line in told) == ["scores.utility", "techniques.merge.scores"]
    assert differences(one, finished(tmp_path, leakage=0.1)) == ["history.leakage: 'nothing' and [0.1]"]
