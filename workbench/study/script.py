"""A notebook's training as a script that `accelerate launch` or `torchrun` starts in several processes."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .execute import checked_parameters, notebook_parameters

TAG = "training"
_ASKS = "get_ipython()"  # what IPython makes of its own lines
_BODY_MAGICS = ("%%time", "%%timeit", "%%capture", "%%prun")  # whose cell is Python

_OPENING = '''"""The training of {name} and what leads to it, written by `python -m workbench script`.

    accelerate launch --multi_gpu --num_processes 2 {script}  # a copy of the model in each process (DDP), also on a CPU
    torchrun --nproc-per-node 2 {script}  # the same
    python {script}  # one process

Where the notebook has a parameter `shard` that is true, each process holds a part of the model (FSDP2). The record is
that of the notebook.
"""

import os
import sys

import torch.distributed
from IPython.display import display  # prints here

if __name__ == "__main__":
    if int(os.environ.get("RANK", 0)):
        sys.stdout = open(os.devnull, "w")  # the first process speaks for all
'''
_CLOSING = """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
"""


def export_script(
    notebook: str | Path,
    parameters: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    *,
    runs_dir: str | Path = "runs",
) -> Path:
    """Writes the code of a notebook up to its last cell tagged `training` as a script.

    The parameters cell is kept with its comments, and the new values follow it. Lines for IPython alone (`%`, `!`,
    `?`) become comments; what a cell displays by its last line is not shown. Nothing is run here.

    Args:
        notebook: The source, which is never written to.
        parameters: New values for names assigned in the cell tagged `parameters`.
        output: The script; by default `<stem>.py` in the current folder.
        runs_dir: Where runs lie; a notebook with a parameter `runs_dir` is given it as an absolute path.

    Returns:
        The path of the script.

    Raises:
        FileNotFoundError: There is no such notebook.
        FileExistsError: Another file lies where the script would.
        ValueError: The notebook has no such parameter, or no cell tagged `training`, or a cell is not Python.
        TypeError: A value does not fit its annotation or cannot be written as a literal.
    """
    import nbformat

    source = Path(notebook).resolve()
    known = notebook_parameters(source)
    values = checked_parameters(parameters or {}, known, source.name)
    if "runs_dir" in known:
        values.setdefault("runs_dir", str(Path(runs_dir).resolve()))
    cells = nbformat.read(source, as_version=4).cells
    script = Path(output or f"{source.stem}.py").absolute()
    code = "".join(f"\n{_indented(text)}\n" for text in _parts(cells, values, source.name))
    text = _OPENING.format(name=source.name, script=script.name) + code + _CLOSING
    if script.exists() and script.read_text(encoding="utf-8") != text:
        raise FileExistsError(f"expected to write a script, got {script}, which holds something else: name another.")
    script.parent.mkdir(parents=True, exist_ok=True)
    temporary = script.with_name(script.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    return temporary.replace(script)


def _parts(cells: list[Any], values: Mapping[str, Any], notebook: str) -> Iterator[str]:
    """The code of each cell that leads to the training, and the new values after the parameters."""
    tags = [cell.metadata.get("tags", []) for cell in cells]
    last = max((i for i, tagged in enumerate(tags) if TAG in tagged), default=None)
    if last is None:
        raise ValueError(f"expected a cell tagged `{TAG}` in {notebook}, got none: tag the one that trains.")
    for i, cell in enumerate(cells[: last + 1]):
        if cell.cell_type == "code" and cell.source.strip():
            yield _python(cell.source, f"{notebook}, cell {i + 1}")
        if "parameters" in tags[i] and values:
            yield "\n".join(["# Given to the script:", *(f"{name} = {value!r}" for name, value in values.items())])


def _python(code: str, place: str) -> str:
    """A cell as plain Python: where IPython has lines of its own in it, they become comments.

    Raises:
        ValueError: A value comes from IPython, or what is left is not Python.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    if code.startswith(_BODY_MAGICS):
        code = code.partition("\n")[2]
    plain = TransformerManager().transform_cell(code).rstrip("\n")
    lines = plain.splitlines()
    try:
        tree = ast.parse(plain)
    except SyntaxError as refusal:
        raise ValueError(f"expected Python in {place}, got {refusal}: mend it.") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and ast.unparse(node).startswith(_ASKS):
            first, last = node.lineno - 1, node.end_lineno or node.lineno
            lines[first] = f"{' ' * node.col_offset}pass  # {lines[first].strip()}"
            lines[first + 1 : last] = [f"# {line}" for line in lines[first + 1 : last]]
    left = "\n".join(lines)
    if any(_ASKS in ast.unparse(node) for node in ast.parse(left).body):
        raise ValueError(f"expected Python in {place}, got a value that IPython gives: compute it without `%` and `!`.")
    return left


def _indented(code: str) -> str:
    """The code one level deeper; lines that begin within a string stay as they are."""
    texts = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant | ast.JoinedStr))
    inside = {line for node in texts for line in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1)}
    lines = enumerate(code.splitlines(), 1)
    return "\n".join(f"    {line}" if line.strip() and number not in inside else line for number, line in lines)
