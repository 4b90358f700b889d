"""The training monitor in a cell that blocks the kernel: it is live, it stops, and the same cell goes on to the end."""

from playwright.sync_api import expect

SET_UP = """
import workbench as wb
world = wb.load_world("micro")
suites = wb.suites_of(world, 4)
"""
TRAIN = """
lm, tokenizer = wb.load_model("micro", device="cpu")
monitor = wb.views.explorers.TrainingMonitor()
how = {"suites": suites, "eval_every": 100, "learning_rate": 1e-4, "runs_dir": "../runs/monitor"}
run = wb.align(lm, tokenizer, world.demonstrations(64), steps=STEPS, batch_size=2, label="<b>sft</b>", **how,
               reuse=True, progress=False, monitor=monitor)
"""


def wait(notebook):
    """Until the cell has ended, well or not."""
    notebook.page.wait_for_function("() => window.ran !== null", timeout=300_000)


def test_a_run_is_watched_stopped_and_gone_on_with_by_the_same_cell(lab):
    notebook = lab.new(SET_UP, TRAIN.replace("STEPS", "600"), name="monitor").run(0)
    shown = notebook.output(1)
    notebook.start(1)
    told, stop = shown.get_by_role("status"), shown.get_by_role("button", name="Stop")
    expect(told).to_contain_text("<b>sft</b>: training, step ", timeout=120_000)
    drawn = "() => Number(document.querySelector('.workbench-plot[data-drawn]')?.dataset.drawn) > 2"
    lab.page.wait_for_function(drawn, timeout=120_000)
    stop.focus()
    lab.page.keyboard.press("Enter")
    expect(stop).to_have_text("Stop at once")
    wait(notebook)
    expect(told).to_contain_text("stopped by the user after step ")
    expect(stop).to_be_disabled()
    (error,) = [output for output in notebook.outputs()[1] if output["output_type"] == "error"]
    assert error["ename"] == "Stopped" and "reuse=True" in error["traceback"][0] and len(error["traceback"]) == 1
    record = "monitor.runs.to_dict('records')[0]"
    stopped_at = notebook.value(f"{record}['step']")
    assert notebook.value(f"{record}['status']") == "interrupted" and 0 < stopped_at < 600

    notebook.run(1)
    expect(told).to_contain_text("completed, step 600 of 600")
    assert notebook.value("run.status") == "completed" and notebook.value("len(run.record['resumed'])") == 1
    steps = notebook.value("run.history[~run.history.evaluation].step.tolist()")
    assert steps == [*range(1, 601)]  # none twice, none left out
    expect(shown.locator("img.workbench-still")).to_be_hidden()  # the picture is for where no kernel is
    lab.pictures("training-monitor", shown)
    assert not lab.complaints


def test_interrupting_the_kernel_stops_as_the_button_does(lab):
    notebook = lab.new(SET_UP, TRAIN.replace("STEPS", "601"), name="interrupted").run(0).start(1)
    shown = notebook.output(1)
    expect(shown.get_by_role("status")).to_contain_text("training, step ", timeout=120_000)
    lab.page.evaluate("() => jupyterapp.commands.execute('notebook:interrupt-kernel')")
    wait(notebook)
    expect(shown.get_by_role("status")).to_contain_text("stopped by the user after step ")
