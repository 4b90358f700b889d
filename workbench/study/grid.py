"""What a sweep runs: one notebook at each setting of a grid, read from YAML or Python, named by its content."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from .execute import Parameter, checked_parameters, notebook_parameters
from .runs import parameters_hash

# The scalars of YAML 1.2. PyYAML reads those of 1.1, where 1e-5 is a text, `no` is false and 1:30 is 90.
_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


class Setting(NamedTuple):
    """One point of a grid.

    Attributes:
        point: Its name, `<stem of the notebook>-<hash of what decides the outcome>`.
        given: The values that the notebook is given.
        parameters: All its parameters but `runs_dir`, those with their defaults, too.
    """

    point: str
    given: dict[str, Any]
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A notebook and the values that its parameters take: every run × every row of `zip` × every cell of `grid`.

    Attributes:
        notebook: The source.
        parameters: Values that all points share.
        grid: Parameter → its values; all combinations are run.
        zip: Parameter → its values, which go together: the first of each, the second of each.
        runs: Settings one by one; they alone may say again what `parameters` says.
        version: Anything; part of every point's name. Say another when a change that the notebook does not show, of
            the library or of data, calls for running all again.
    """

    notebook: str | Path
    parameters: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    zip: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    runs: Sequence[Mapping[str, Any]] = ()
    version: str | float | None = None

    def __post_init__(self) -> None:
        """Check the shapes, and that no parameter has two values at once."""
        _require_mapping(self.parameters, "parameters")
        for name in ("grid", "zip"):
            _require_mapping(getattr(self, name), name)
            object.__setattr__(self, name, {k: _values(v, f"{name}, {k}") for k, v in getattr(self, name).items()})
        if isinstance(self.runs, Mapping | str) or not all(isinstance(run, Mapping) for run in self.runs):
            raise ValueError(f"runs: expected a list of mappings from parameters to values, got {self.runs!r}.")
        if len({len(values) for values in self.zip.values()}) > 1:
            lengths = {name: len(values) for name, values in self.zip.items()}
            raise ValueError(f"zip: expected as many values of each parameter, got {lengths}.")
        names = [*self.grid, *self.zip, *{name for run in self.runs for name in run}]
        twice = {name for name in names if names.count(name) > 1} | {*self.parameters} & {*self.grid, *self.zip}
        if twice:
            raise ValueError(f"expected each parameter in one place, got {sorted(twice)} in two: leave one out.")

    @property
    def stem(self) -> str:
        """The notebook's name without its ending."""
        return Path(self.notebook).stem

    def settings(self) -> list[Setting]:
        """Every point in the order of the study, its values checked as `run_notebook` checks them.

        A point's name is a hash of the notebook's code cells, of the values that differ from their defaults, and of
        `version`: prose, outputs, the order of keys, a default said again and where the notebook and its `runs_dir` lie
        do not count.

        Raises:
            FileNotFoundError: There is no such notebook.
            ValueError: The notebook has no such parameter, or two points are the same.
            TypeError: A value does not fit its annotation.
        """
        known, source = notebook_parameters(self.notebook), code_hash(self.notebook)
        fingerprints = {"notebook": source} | ({} if self.version is None else {"version": str(self.version)})
        deciding = {name: parameter for name, parameter in known.items() if name != "runs_dir"}
        settings: dict[str, Setting] = {}
        for given in self._combinations():
            values = checked_parameters(given, known, Path(self.notebook).name)
            changed = {n: values[n] for n in deciding if n in values and not _is_default(values[n], known[n])}
            point = f"{self.stem}-{parameters_hash(changed, fingerprints)[:12]}"
            if point in settings:
                raise ValueError(f"expected points that differ, got one twice: {values}: leave one out.")
            if "runs_dir" in values:  # as the kernel would take it, which starts in the notebook's folder
                values["runs_dir"] = str(Path(self.notebook).resolve().parent / values["runs_dir"])
            parameters = {name: values.get(name, parameter.default) for name, parameter in deciding.items()}
            settings[point] = Setting(point, values, parameters)
        return [*settings.values()]

    def _combinations(self) -> Iterable[dict[str, Any]]:
        rows = [dict(zip(self.zip, row, strict=True)) for row in zip(*self.zip.values(), strict=True)]
        axes = [[{name: value} for value in values] for name, values in self.grid.items()]
        for parts in product(self.runs or [{}], rows or [{}], *axes):
            yield {**self.parameters, **{name: value for part in parts for name, value in part.items()}}


def read_study(study: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a study: a mapping as it is, a YAML file by YAML 1.2's rules, a notebook as a study of one point.

    `notebook` and `runs_dir` of a file are relative to its folder. Without `runs_dir` points go to `runs/<name>` below
    the current folder, `name` being the file's.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no mapping, says a key twice, or is not YAML.
    """
    if isinstance(study, Mapping):
        return dict(study)
    path = Path(study)
    if not path.is_file():
        raise FileNotFoundError(f"expected a study (YAML) or a notebook, got {path.absolute()}, which does not exist.")
    if path.suffix == ".ipynb":
        return {"notebook": path}
    keys = _load_yaml(path)
    keys = {"runs_dir": Path("runs", path.stem).absolute()} | keys
    return keys | {key: path.parent / keys[key] for key in ("notebook", "runs_dir") if key in keys}


def code_hash(notebook: str | Path) -> str:
    """sha256 of what a notebook executes: its code cells, and which of them holds the parameters."""
    import nbformat

    cells = [cell for cell in nbformat.read(Path(notebook), as_version=4).cells if cell.cell_type == "code"]
    return parameters_hash({"cells": [[cell.source, "parameters" in cell.metadata.get("tags", [])] for cell in cells]})


def _is_default(value: Any, parameter: Parameter) -> bool:
    """Whether a value says the default again; 1, 1.0 and true are three values unless an annotation makes them one."""
    try:
        default = checked_parameters({"": parameter.default}, {"": parameter}, "")[""]
    except TypeError:  # a default that JSON cannot hold, or that its own annotation does not admit
        return False
    return parameters_hash({"": value}) == parameters_hash({"": default})


def _load_yaml(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for n, key in enumerate(keys) if key in keys[:n]]:
            raise ValueError(f"expected each key once in {path}, got {twice[0]!r} twice: leave one out.")
        return dict(zip(keys, [loader.construct_object(value, deep=True) for _, value in node.value], strict=True))

    for kind, pattern in _SCALARS.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{pattern})$"), None)
    Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        keys = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"expected YAML in {path}, got {error}") from error
    return _require_mapping(keys, str(path))


def _require_mapping(value: Any, what: str) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{what}: expected a mapping from names to values, got {value!r}.")
    return value


def _values(values: Any, what: str) -> list[Any]:
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable) or not (listed := list(values)):
        raise ValueError(f"{what}: expected a list of values, not an empty one, got {values!r}: write [{values}].")
    return listed
