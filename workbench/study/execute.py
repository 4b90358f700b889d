"""Notebooks run from outside, through papermill: a misspelled parameter or a failed cell cannot pass."""

import ast
import difflib
import io
import json
import logging
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .runs import scalar, timestamp

PLAIN_TYPES: dict[str, tuple[type, ...]] = {
    **{kind.__name__: (kind,) for kind in (int, str, bool, list, dict)},
    "float": (float, int),
    "None": (type(None),),
}


class Parameter(NamedTuple):
    """One assignment of the cell tagged `parameters`: `seed: int = 0  # order of the data`."""

    default: Any
    annotation: str | None
    help: str


class NotebookError(RuntimeError):
    """A notebook stopped before its end; the message names the cell, the error and the partial output."""


def run_notebook(
    notebook: str | Path,
    parameters: Mapping[str, Any] | None = None,
    runs_dir: str | Path = "runs",
    *,
    output: str | Path | None = None,
    folder: str | Path | None = None,
    timeout: int | None = None,
    progress: bool = True,
) -> Path:
    """Executes a copy of a notebook, with its parameters replaced, in the interpreter that calls.

    The kernel starts in the notebook's own folder, so relative paths mean what they mean in JupyterLab. The
    output is `<stem>.partial.ipynb`, saved at each cell, until the last one is done; Ctrl-C, too, leaves it
    there.

    Args:
        notebook: The source, which is never written to.
        parameters: New values for names assigned in the cell tagged `parameters`.
        runs_dir: Where runs lie; a notebook with a parameter `runs_dir` is given it as an absolute path.
        output: The executed notebook; by default `<runs_dir>/notebooks/<stem>-<utc>.ipynb`.
        folder: Where the kernel starts, if not in the notebook's own folder: for a copy of a notebook.
        timeout: Seconds that one cell may take.
        progress: Whether to show a bar that counts cells.

    Returns:
        The path of the executed notebook.

    Raises:
        FileNotFoundError: There is no such notebook.
        ValueError: The notebook has no such parameter; nothing has run.
        TypeError: A value does not fit its annotation or cannot be written as a literal; nothing has run.
        NotebookError: A cell raised, took too long, or lost its kernel.
    """
    source, runs_dir = Path(notebook).resolve(), Path(runs_dir).resolve()
    known = notebook_parameters(source)
    values = checked_parameters(parameters or {}, known, source.name)
    if "runs_dir" in known:
        values.setdefault("runs_dir", str(runs_dir))
    final = Path(output or runs_dir / "notebooks" / f"{source.stem}-{timestamp()}.ipynb").resolve()
    if final == source:
        raise ValueError(f"expected an output beside the source, got {source} for both: name another.")
    partial = final.with_suffix(".partial.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    _execute(source, partial, values, Path(folder or source.parent).resolve(), timeout, progress)
    return partial.replace(final)


def notebook_parameters(notebook: str | Path) -> dict[str, Parameter]:
    """What the cell tagged `parameters` assigns: name → (default, annotation, help); without a cell, nothing.

    Read by Python's own parser: papermill's overlooks `rank: int | None = None` and lines with two equal
    signs.

    Raises:
        FileNotFoundError: There is no such notebook.
        ValueError: A default is not a literal: what is derived from another goes stale when that is replaced.
    """
    import nbformat

    path = Path(notebook).absolute()
    if not path.is_file():
        raise FileNotFoundError(f"expected a notebook, got {path}, which does not exist: check the path.")
    cells = nbformat.read(path, as_version=4).cells
    code = next((cell.source for cell in cells if _tagged(cell, "parameters")), "")
    try:
        return dict(_assignments(code))
    except (SyntaxError, ValueError) as refusal:
        what = f"expected literals in the parameters cell of {path.name}, got {refusal}"
        raise ValueError(f"{what}: derive values in the next cell.") from None


def _assignments(code: str) -> Iterator[tuple[str, Parameter]]:
    tree = ast.parse(code)
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            annotation = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else None
            try:
                default = ast.literal_eval(node.value or target)  # a target alone, `seed: int`, is refused
            except (TypeError, ValueError):
                raise ValueError(repr(ast.unparse(node))) from None
            yield ast.unparse(target), Parameter(default, annotation, comments.get(node.end_lineno or 0, ""))


def checked_parameters(parameters: Mapping[str, Any], known: Mapping[str, Parameter], notebook: str) -> dict[str, Any]:
    """The values as a notebook will be given them: as JSON gives them back, and a whole number for a float as a float.

    Of types that JSON does not have papermill writes the text, a tuple as "(1, 2)".

    Args:
        parameters: New values.
        known: What `notebook_parameters` found.
        notebook: What messages call the notebook.

    Raises:
        ValueError: The notebook has no such parameter.
        TypeError: A value does not fit its annotation or cannot be written as a literal.
    """
    if parameters and not known:
        raise ValueError(f"expected a cell tagged `parameters` in {notebook}, got none: tag the one to replace.")
    values = {}
    for name, value in parameters.items():
        require_known(name, known, f"a parameter of {notebook}")
        try:
            plain = json.loads(json.dumps(value, default=scalar))
        except TypeError as refusal:
            raise TypeError(f"parameter {name!r}: {refusal}") from None
        kinds = _kinds(known[name].annotation or "")
        if kinds and not any(type(plain) in PLAIN_TYPES[kind] for kind in kinds):
            raise TypeError(f"parameter {name!r}: expected {known[name].annotation}, got {value!r}: change one.")
        values[name] = float(plain) if type(plain) is int and "float" in kinds and "int" not in kinds else plain
    return values


def require_known(name: str, known: Iterable[str], what: str) -> None:
    """Raises a ValueError that names the nearest of the known names unless this is one of them."""
    known = list(known)
    if name not in known:
        near = "".join(f" Did you mean {match!r}?" for match in difflib.get_close_matches(str(name), known, 1))
        raise ValueError(f"expected {what}, one of {known}, got {name!r}.{near}")


def _kinds(annotation: str) -> set[str]:
    """The plain types that an annotation names; none where one is not plain, for those are not judged."""
    names = {name.split("[")[0] for name in annotation.split(" | ")}
    return names if names <= PLAIN_TYPES.keys() else set()


def _execute(
    source: Path, partial: Path, values: dict[str, Any], folder: Path, timeout: int | None, progress: bool
) -> None:
    import papermill

    for name in ("papermill", "papermill.translators"):
        logging.getLogger(name).addFilter(_is_true)
    try:
        papermill.execute_notebook(
            _verbatim(source),
            _verbatim(partial),
            values,
            kernel_name="python3",  # said here, so that a notebook without metadata runs too
            language="python",
            progress_bar={"desc": source.name} if progress else False,
            execution_timeout=timeout,
            # What follows goes to nbclient.
            kernel_manager_class=_own_kernel(),
            # ipykernel warns of unencrypted talk within this machine; many kernels lock one history file.
            extra_arguments=["--log-level=ERROR", "--HistoryManager.enabled=False"],
            resources={"metadata": {"path": str(folder)}},  # papermill's cwd moves this process too
            iopub_timeout=60,  # its 4 s fail a run for an output that is late on a busy machine
            store_widget_state=False,
            coalesce_streams=True,
        )
    except KeyboardInterrupt as stop:
        stop.add_note(f"{_place(source, partial)} was interrupted\nPartial output: {partial}")
        raise
    except papermill.PapermillExecutionError as error:
        what = f"{_place(source, partial, error.cell_index)} raised {error.ename}: {error.evalue}"
        raise NotebookError(f"{what}\nPartial output: {partial}") from error
    except (TimeoutError, RuntimeError) as error:  # a DeadKernelError is a RuntimeError
        late = isinstance(error, TimeoutError)
        what = f"did not end in time (timeout={timeout})" if late else f"lost its kernel ({error!r})"
        raise NotebookError(f"{_place(source, partial)} {what}\nPartial output: {partial}") from error


def _place(source: Path, partial: Path, index: int | None = None) -> str:
    """A cell by its number in the source and its first line; by default the last that began."""
    import nbformat

    cells = nbformat.read(partial, as_version=4).cells
    cells = [cell for cell in cells if not _tagged(cell, "papermill-error-cell-tag")]
    if index is None:  # by now every status reads "completed", but only cells that began have a start
        index = max((n for n, cell in enumerate(cells) if cell.metadata.papermill.start_time), default=0)
    number = index + 1 - sum(_tagged(cell, "injected-parameters") for cell in cells[:index])
    first_line = cells[index].source.strip().partition("\n")[0]
    return f"{source}, cell {number}, `{first_line}`,"


def _tagged(cell: Any, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def _own_kernel() -> type:
    """A kernel manager to which "python3" is ipykernel under sys.executable.

    An installed kernelspec of that name may start another interpreter, with other packages: it sees none.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from traitlets import default

    class OwnKernelManager(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _none_installed(self) -> KernelSpecManager:
            return KernelSpecManager(kernel_dirs=[])

    return OwnKernelManager


def _verbatim(path: Path) -> str:
    """papermill takes a path for a format string."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _is_true(record: logging.LogRecord) -> bool:
    """Keeps papermill from complaining of parameters that its parser overlooks and ours has found."""
    return not record.getMessage().startswith(("Passed unknown parameter", "Unable to parse line"))
