"""Tasks of the language model evaluation harness, on the model in memory, through the harness's own API.

An extra: ``pip install 'alignment-workbench[harness]'``.
"""

import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench.evaluation.likelihood import inference
from workbench.evaluation.suites import Axis, Suite
from workbench.models import fitting_threads

if TYPE_CHECKING:
    from datasets import Dataset

Task = str | Mapping[str, Any]
BOOTSTRAPPED = 1000  # resamples of metrics that have no standard error in closed form


def harness_scores(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    *,
    limit: int | None = None,
    n_shots: int | None = None,
    chat: bool = False,
    batch_size: int = 16,
    task_dir: str | Path | None = None,
) -> dict[str, float]:
    """Scores of harness tasks (Gao et al., github.com/EleutherAI/lm-evaluation-harness) as flat numbers.

    The model's mode and all random states are left as they were.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        tasks: Names of tasks, groups or tags, paths of task files, or task configurations themselves.
        limit: Rows of a task at most.
        n_shots: Examples before each question; None takes the task's own number.
        chat: Ask through the chat template, examples as turns.
        batch_size: Requests at once.
        task_dir: A folder with tasks of your own, which go before those of the harness.

    Returns:
        ``"task/metric"``, with the filter after a comma where it has one (``"gsm8k/exact_match,strict-match"``),
        ``"task/metric_stderr"`` where the harness gives one, and ``"task/n"``.

    Raises:
        ImportError: The harness is not installed.
        ValueError: No task, or one that the harness does not know.
    """
    if isinstance(tasks, str) or not tasks:
        raise ValueError(f'tasks: expected a list of harness tasks, such as ["arc_easy"], got {tasks!r}.')
    evaluate, language_model, manager = _harness(tasks, task_dir)
    if unknown := [t for t in tasks if isinstance(t, str) and not Path(t).is_file() and t not in manager.all_tasks]:
        raise ValueError(f"The harness knows no tasks {unknown}: see `lm-eval ls tasks`, or pass task_dir.")
    with fitting_threads(model), inference(model), _untouched():
        found = evaluate(
            model=language_model(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            num_fewshot=n_shots,
            apply_chat_template=chat,
            bootstrap_iters=BOOTSTRAPPED,
            log_samples=False,
        )
    return flat_scores(found)


def flat_scores(found: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of the harness's results, by task and metric."""
    scores: dict[str, float] = {}
    for task, metrics in found["results"].items():
        for name, value in metrics.items():
            if "," in name and isinstance(value, int | float):
                scores[f"{task}/{name.removesuffix(',none')}"] = float(value)
        if task in found.get("n-samples", {}):
            scores[f"{task}/n"] = float(found["n-samples"][task]["effective"])
    return scores


@dataclass(frozen=True)
class Harness:
    """Tasks of the harness as a suite's scorer; `harness_suite` makes the suite.

    Attributes:
        metric: Whose mean over the tasks is ``correct_rate``, such as ``"acc"``; None gives none.
        limit: As all others an argument of `harness_scores`.
        n_shots: The same.
        chat: The same.
        batch_size: The same.
        task_dir: The same.
    """

    metric: str | None = None
    limit: int | None = None
    n_shots: int | None = None
    chat: bool = False
    batch_size: int = 16
    task_dir: str | None = None

    def __call__(self, model: Any, tokenizer: Any, data: "Dataset") -> dict[str, float]:
        """The scores of `harness_scores` for the tasks in the column ``task``, as JSON, and ``n`` over all of them."""
        tasks = [json.loads(task) for task in data["task"]]
        options: dict[str, Any] = {"limit": self.limit, "n_shots": self.n_shots, "chat": self.chat}
        options |= {"batch_size": self.batch_size, "task_dir": self.task_dir}
        scores = harness_scores(model, tokenizer, tasks, **options)
        scores["n"] = sum(value for name, value in scores.items() if name.endswith("/n"))
        if self.metric is None:
            return scores
        if not (values := [value for name, value in scores.items() if name.endswith(f"/{self.metric}")]):
            raise ValueError(f"metric: expected one of {sorted(scores)} without its task, got {self.metric!r}.")
        return {**scores, "correct_rate": sum(values) / len(values)}


def harness_suite(tasks: Sequence[Task], *, counted_metric: str | None = None, **options: Any) -> Suite:
    """Tasks of the harness as a suite, for `evaluate` and for the ``suites`` of `align`.

    Args:
        tasks: As in `harness_scores`; configurations must be JSON.
        counted_metric: The metric that counts as utility, such as ``"acc"``; None reports all and counts none.
        options: The others of `harness_scores`.
    """
    from datasets import Dataset

    if isinstance(tasks, str) or not tasks:
        raise ValueError(f'tasks: expected a list of harness tasks, such as ["arc_easy"], got {tasks!r}.')
    axis: Axis | None = "utility" if counted_metric else None
    if options.get("task_dir") is not None:
        options["task_dir"] = str(options["task_dir"])
    data = Dataset.from_list([{"task": json.dumps(task, sort_keys=True)} for task in tasks])
    return Suite(data, axis=axis, scorer=Harness(counted_metric, **options))


def _harness(tasks: Sequence[Task], task_dir: str | Path | None) -> tuple[Any, Any, Any]:
    """The harness's evaluation, its model class, and its index of tasks, which takes seconds if it must be whole."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(
            "The language model evaluation harness is an extra: pip install 'alignment-workbench[harness]'."
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    include = None if task_dir is None else str(task_dir)
    manager = TaskManager(include_path=include, include_defaults=False)
    named = [task for task in tasks if isinstance(task, str) and not Path(task).is_file()]
    if not set(named) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include)
    return simple_evaluate, HFLM, manager


@contextmanager
def _untouched() -> Iterator[None]:
    """All random states as before afterwards: the harness seeds them."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
