"""The command line: `python -m workbench run | script | sweep | report | base`."""

import argparse
import json
from pathlib import Path
from typing import Any

RESULT = "result"  # the tag of the cell whose printed lines a run repeats in the shell


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m workbench", description=__doc__)
    commands = parser.add_subparsers(required=True)

    run = commands.add_parser("run", help="execute a notebook headlessly through papermill")
    run.add_argument("notebook", type=Path)
    _add_parameters(run)
    run.add_argument("--runs-dir", type=Path, default=Path("runs"))
    run.set_defaults(act=run_command)

    script = commands.add_parser("script", help="write a notebook's training as a script for accelerate launch")
    script.add_argument("notebook", type=Path, help="with a cell tagged `training`")
    _add_parameters(script)
    script.add_argument("-o", "--output", type=Path, help="default: the notebook's name with .py, in this folder")
    script.add_argument("--runs-dir", type=Path, default=Path("runs"))
    script.set_defaults(act=script_command)

    sweep = commands.add_parser("sweep", help="run a notebook at every point of a study that is not finished")
    sweep.add_argument("study", type=Path, help="a YAML file, see docs/sweeps.md")
    _add_parameters(sweep)
    sweep.add_argument("--list", "--dry-run", action="store_true", dest="dry_run", help="show the points, run nothing")
    sweep.add_argument("--runs-dir", type=Path)
    sweep.add_argument("--engine", choices=["local", "dask"])
    sweep.add_argument("--scheduler", metavar="ADDRESS", help="of dask: tcp://host:8786, or a scheduler file")
    for name, what in {
        "workers": "local processes at a time",
        "threads": "of each process",
        "retries": "further attempts at a point that fails",
    }.items():
        sweep.add_argument(f"--{name}", type=int, metavar="N", help=what)
    sweep.add_argument("--timeout", type=float, metavar="SECONDS", help="of one attempt")
    sweep.set_defaults(act=sweep_command)

    report = commands.add_parser("report", help="write a self-contained HTML page of the runs in a folder")
    report.add_argument("runs_dir", type=Path)
    report.add_argument("--output", type=Path, help="default: report.html in that folder")
    report.set_defaults(act=report_command)

    base = commands.add_parser("base", help="train the base model of a micro-world")
    base.add_argument("folder", type=Path, nargs="?", default=Path("data/micro"))
    base.add_argument("--size", default="micro")
    base.add_argument("--seed", type=int, default=0, help="of the world, the weights and the rows")
    base.set_defaults(act=base_command)

    options = vars(parser.parse_args(arguments))
    try:
        options.pop("act")(**options)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


def run_command(notebook: Path, parameters: list[list[str]], runs_dir: Path) -> None:
    """Execute a notebook, then print where the executed copy lies and what its result cell printed."""
    from workbench.study.execute import run_notebook

    executed = run_notebook(notebook, _values(parameters), runs_dir)
    print(f"notebook  {executed}")
    for cell in json.loads(executed.read_text())["cells"]:
        if RESULT in cell["metadata"].get("tags", []):
            print("".join("".join(o.get("text", "")) for o in cell["outputs"] if o["output_type"] == "stream").rstrip())


def script_command(notebook: Path, parameters: list[list[str]], output: Path | None, runs_dir: Path) -> None:
    """Write the script and print its path."""
    from workbench.study.script import export_script

    print(export_script(notebook, _values(parameters), output, runs_dir=runs_dir))


def sweep_command(study: Path, parameters: list[list[str]], dry_run: bool, **given: Any) -> None:
    """Run what is not finished, then print each point; exit 1 unless all completed, 130 after Ctrl-C."""
    from workbench.study.grid import read_study
    from workbench.study.points import FIXED_COLUMNS
    from workbench.study.sweep import sweep

    keys = read_study(study) | {name: value for name, value in given.items() if value is not None}
    keys["parameters"] = {**(keys.get("parameters") or {}), **_values(parameters)}
    code = 0
    try:
        points = sweep(keys, dry_run=dry_run)
    except KeyboardInterrupt:
        points, code = sweep(keys, dry_run=True), 130
    settings = points.drop(columns=[*FIXED_COLUMNS]).astype(str)
    varying = settings.loc[:, settings.nunique() > 1].to_dict("records")
    for point, setting in zip(points.to_dict("records"), varying, strict=True):
        print(f"{point['status']:11} {point['path']}  " + " ".join(f"{k}={v}" for k, v in setting.items()))
        if point["error"]:
            print(f"{'':11} {point['error'].splitlines()[0]}")
    n_completed = (points.status == "completed").sum()
    commits = ", ".join(sorted(points.git_sha.dropna().unique()))
    print(f"{n_completed} of {len(points)} points completed" + f", at commits {commits}" * bool(commits))
    if code or (n_completed < len(points) and not dry_run):
        raise SystemExit(code or 1)


def report_command(runs_dir: Path, output: Path | None) -> None:
    """Write the page and print its path."""
    from workbench.study.runs import load_runs
    from workbench.views import write_report

    print(write_report(load_runs(runs_dir), output or runs_dir / "report.html"))


def base_command(folder: Path, size: str, seed: int) -> None:
    """Train a base model and print its scores."""
    from workbench.alignment.pretrain import pretrain
    from workbench.corpora.microworld import MicroWorld
    from workbench.models import load_card

    pretrain(MicroWorld(seed=seed), folder, size, seed)
    print(json.dumps(load_card(folder), indent=2))


def _add_parameters(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters"
    )


def _values(parameters: list[list[str]]) -> dict[str, Any]:
    return {name: _value(text) for name, text in parameters}


def _value(text: str) -> Any:
    """A parameter as JSON if it is that (5, 0.1, true, null, [1, 2]), else as it is written."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    main()
