"""The training monitor: it watches without changing anything, and what it stops goes on as if nothing had happened."""

import json
import os
import signal
import threading

import pandas as pd
import pytest
from conftest import same, weights
from transformers import TrainerCallback

import workbench as wb
from workbench.alignment.techniques import Technique
from workbench.alignment.watching import Stopped
from workbench.study.outcomes import differences
from workbench.study.runs import Run
from workbench.views.explorers import TrainingMonitor
from workbench.views.training import Track, main_measures, measures_of, training_lines


@pytest.fixture
def monitor():
    watching = TrainingMonitor()
    yield watching
    watching.close()


class Does(TrainerCallback, Technique):
    """Does something once, at the end of a step."""

    name = "does"

    def __init__(self, act=None, step=0):
        self.act, self.step = act, step

    def on_step_begin(self, args, state, control, **kwargs):
        if self.act and state.global_step == self.step:
            self.act()


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


# --- watching --------------------------------------------------------------------------------------------------------


def test_training_is_the_same_bit_for_bit_with_a_monitor_and_its_history_is_the_runs(train, world, tmp_path, monitor):
    how = {"suites": wb.suites_of(world, 4), "eval_every": 2, "steps": 5}
    alone, model = train(runs_dir=tmp_path / "a", **how)
    watched, other = train(runs_dir=tmp_path / "b", monitor=monitor, **how)
    assert differences(alone, watched) == [] and same(weights(model), weights(other))
    logged = monitor.history.drop(columns=["run_id", "label"]).convert_dtypes()
    pd.testing.assert_frame_equal(logged[watched.history.columns], watched.history.convert_dtypes(), check_like=True)
    assert {path.name for path in watched.path.iterdir()} == {"record.json", "history.parquet"}
    (row,) = monitor.runs.to_dict("records")
    assert (row["label"], row["status"], row["step"], row["n_steps"]) == ("plain", "completed", 5, 5)
    assert row["run_id"] == watched.record["run_id"] and not monitor.stopping


def test_several_runs_one_after_the_other_and_a_reused_one_among_them(train, world, monitor):
    how = {"suites": wb.suites_of(world, 4), "monitor": monitor, "reuse": True}
    first, _ = train(seed=0, **how)
    train(seed=1, **how)
    again, _ = train(seed=0, **how)
    assert again.record["run_id"] == first.record["run_id"]
    assert list(monitor.runs.status) == ["completed"] * 2 and monitor.runs.run_id.iloc[-1] == first.record["run_id"]
    assert monitor.history.groupby("run_id").size().nunique() == 1
    figure = monitor.still()
    faint, strong = [trace.line.width for trace in figure.data if trace.yaxis == "y"]
    assert faint < strong
    assert sum(bool(trace.showlegend) for trace in figure.data) == 1  # two runs of one label


# --- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how_stopped", ["button", "interrupt"])
def test_a_run_that_is_stopped_goes_on_to_the_end_it_would_have_had(train, world, tmp_path, monitor, how_stopped):
    stop = {"button": monitor.stop, "interrupt": interrupt}[how_stopped]
    how = {"steps": 6, "eval_every": 2, "suites": wb.suites_of(world, 4), "seed": 5}
    whole, model = train(Does(), runs_dir=tmp_path / "a", **how)
    how |= {"monitor": monitor, "reuse": True, "runs_dir": tmp_path / "b"}
    with pytest.raises(Stopped, match="stopped by the user after step 4 of 6"):
        train(Does(stop, 3), **how)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and monitor.stopping
    (left,) = (tmp_path / "b").iterdir()
    assert Run.load(left).record["error"] == "stopped by the user after step 4 of 6"
    assert Run.load(left).status == "interrupted" == monitor.runs.status.item()
    run, resumed = train(Does(), **how)
    assert run.path == left and differences(whole, run) == [] and same(weights(model), weights(resumed))
    assert {path.name for path in run.path.iterdir()} == {"record.json", "history.parquet"}
    assert len(run.record["resumed"]) == 1 and not monitor.stopping
    assert len(monitor.history) == len(run.history) and monitor.runs.status.item() == "completed"


def test_a_second_stage_that_is_stopped_goes_on(world, tmp_path, monitor):
    stages = [
        wb.Stage("sft", world.demonstrations(16), 2, 4, 1e-3),
        wb.Stage("dpo", world.preferences(16), 4, 4, 1e-3),
    ]

    def go(folder, technique, **options):
        model, tokenizer = wb.load_model("micro", device="cpu")
        return wb.pipeline(model, tokenizer, stages, technique, runs_dir=folder, progress=False, **options), model

    whole, model = go(tmp_path / "a", Does())
    with pytest.raises(Stopped, match="after step 4 of 6"):
        go(tmp_path / "b", _OfSecondStage(monitor.stop), monitor=monitor, reuse=True)
    run, resumed = go(tmp_path / "b", Does(), monitor=monitor, reuse=True)
    assert differences(whole, run) == [] and same(weights(model), weights(resumed))


class _OfSecondStage(Does):
    def __init__(self, act):
        super().__init__(act, step=1)

    def on_train_begin(self, args, state, control, **kwargs):
        if state.max_steps != 4:
            self.step += 1000
        else:
            self.step = 1


def test_a_stop_during_the_last_step_lets_the_run_complete_and_ends_what_comes_after_it(train, tmp_path, monitor):
    with pytest.raises(Stopped, match="was complete before it could be stopped"):
        train(Does(monitor.stop, 3), monitor=monitor)
    assert monitor.runs.status.item() == "completed"
    train(monitor=monitor, seed=1)  # the next run is another


def test_a_second_interrupt_ends_at_once(train, monitor):
    def twice():
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt) as raised:
        train(Does(twice, 1), monitor=monitor)
    assert not isinstance(raised.value, Stopped) and monitor.runs.status.item() == "interrupted"


def test_a_message_that_comes_late_stops_no_other_run(train, monitor):
    seen = []

    def late():
        seen.append(monitor._button.running)
        monitor._button.asked = 1  # what the page sent when the first run trained

    train(monitor=monitor)
    train(Does(late, 1), monitor=monitor, seed=1)
    assert seen == [2]
    with pytest.raises(Stopped):
        train(Does(lambda: setattr(monitor._button, "asked", 3), 1), monitor=monitor, seed=2)


def test_a_run_in_a_thread_hears_the_button_and_leaves_interrupts_alone(train, monitor):
    ends = []

    def press():
        ends.append(signal.getsignal(signal.SIGINT))
        monitor._button.asked = monitor._button.running

    def go():
        try:
            train(Does(press, 1), monitor=monitor)
        except Stopped as stopped:
            ends.append(str(stopped))

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    assert ends == [signal.default_int_handler, "stopped by the user after step 2 of 4"]


def test_stopped_says_in_a_notebook_how_to_go_on_and_the_trainers_own_checkpoints_are_left_to_it(train, monitor):
    (line,) = Stopped("stopped by the user after step 1 of 2")._render_traceback_()
    assert line.startswith("stopped by the user after step 1 of 2. Load the model anew")
    with pytest.raises(ValueError, match="monitor decides when checkpoints are kept"):
        train(monitor=monitor, save_strategy="steps")


# --- what is shown ---------------------------------------------------------------------------------------------------


def track(label="plain", n=5, **more):
    made = Track("r1", label)
    for step in range(n):
        made.log({"step": step, "loss": 1.0 / (step + 1), "epoch": 0.1, "note": "x", "bad": float("nan"), **more})
        made.log({"step": step, "evaluation": True, "utility": 0.5, "facts/correct_rate": 0.25})
    return made


def test_measures_are_in_a_useful_order_and_only_numbers_are_drawn():
    known = track(leakage=0.1, grad_norm=2.0)
    assert measures_of([known]) == ["loss", "leakage", "utility", "facts/correct_rate", "grad_norm"]
    assert main_measures([known]) == ["loss", "leakage", "utility"]
    figure = training_lines([known])
    assert figure.to_json(validate=True)
    assert [trace.y[0] for trace in figure.data] == [1.0, 0.1, 0.5]
    assert figure.layout.yaxis2.type == "log" and figure.layout.yaxis3.range == (-0.04, 1.04)


def test_long_lines_are_means_of_stretches():
    figure = training_lines([track(n=1000)], ["loss"])
    (line,) = figure.data
    assert len(line.x) == 250 and line.x[0] == 1.5 and line.y[0] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_text_from_runs_is_escaped(train, monitor):
    train(monitor=monitor, label="<img src=x onerror=alert(1)>")
    assert "<img" not in monitor._line.value and "<img" not in json.dumps(monitor.still().to_plotly_json(), default=str)


def test_measures_are_a_trait_and_unknown_ones_are_refused(train, monitor):
    train(monitor=monitor)
    monitor.measures = ("grad_norm",)
    assert [note.text for note in monitor.still().layout.annotations] == ["grad_norm"]
    assert monitor._choice.value == ("grad_norm",)
    monitor._choice.value = ("loss", "grad_norm")
    assert monitor.measures == ("loss", "grad_norm")
    with pytest.raises(ValueError, match=r"expected some of \['loss'.*got \['los'\]"):
        monitor.measures = ("los",)
    assert monitor.measures == ("loss", "grad_norm")


def test_measures_that_are_asked_for_before_they_are_logged_stay_asked_for(train, world):
    monitor = TrainingMonitor(["utility", "loss"])
    train(monitor=monitor, suites=wb.suites_of(world, 4))
    assert monitor.measures == monitor._choice.value == ("utility", "loss")
    assert [note.text for note in monitor.still().layout.annotations] == ["Utility (↑ better)", "Loss"]
    monitor.close()


def test_an_empty_monitor_has_a_picture_too(monitor):
    assert monitor.runs.empty and monitor.history.empty and len(monitor.still().data) == 0
