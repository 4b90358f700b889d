"""A notebook-first workbench for the alignment tax: what a language model loses in ability when it is made safe.

The names below follow the work: text in, model, geometry, alignment, evaluation, study, views; and the course.
Heavy libraries are imported when a name that needs them is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    # text in
    "MicroWorld": "corpora.microworld",
    "oracle": "corpora.microworld",
    "RealWorld": "corpora.realworld",
    "load_dataset": "corpora.public",
    "build_pairs": "corpora.pairs",
    "EntityRecognizer": "corpora.entities",
    "Portraits": "corpora.portraits",
    # model
    "load_model": "models",
    "load_world": "models",
    "load_portraits": "models",
    "load_card": "models",
    "build_model": "models",
    "build_text_model": "models",
    "save_model": "models",
    "pretrain": "alignment.pretrain",
    # geometry
    "reference_gradients": "geometry.gradients",
    "Subspace": "geometry.subspace",
    # alignment
    "align": "alignment.align",
    "pipeline": "alignment.align",
    "Stage": "alignment.stages",
    "GradientProjection": "alignment.projection",
    "Restore": "alignment.restoring",
    "NullSpaceProjection": "alignment.null_space",
    "Replay": "alignment.techniques",
    "KLToBase": "alignment.kl",
    "Merge": "alignment.merging",
    "Freeze": "alignment.freezing",
    "Mixup": "alignment.mixup",
    "LoRA": "alignment.lora",
    "EWC": "alignment.ewc",
    "GradientSurgery": "alignment.surgery",
    "ConfidenceWeighting": "alignment.confidence",
    # evaluation
    "evaluate": "evaluation.suites",
    "Suite": "evaluation.suites",
    "suites_of": "evaluation.worlds",
    "benchmarks": "evaluation.benchmarks",
    "show_answers": "evaluation.suites",
    "generate": "evaluation.generation",
    "PhraseJudge": "evaluation.judges",
    # study
    "Run": "study.runs",
    "load_runs": "study.runs",
    "load_histories": "study.runs",
    "differences": "study.outcomes",
    "run_notebook": "study.execute",
    "export_script": "study.script",
    "sweep": "study.sweep",
    "load_sweep": "study.points",
    # the course
    "check": "exercises.checking",
}
_ROOMS = ("alignment", "corpora", "exercises", "evaluation", "geometry", "models", "study", "views")

__all__ = [*_HOME, "views"]


def __getattr__(name: str) -> Any:
    """Import the module behind a name when the name is first used."""
    if name in _HOME:
        value = getattr(import_module(f"workbench.{_HOME[name]}"), name)
    elif name in _ROOMS:
        value = import_module(f"workbench.{name}")
    else:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted([*__all__, *_ROOMS, "__version__"])
