"""Tasks of the evaluation harness on the model in memory: made here from local files, and equal to our own scores."""

import json
import random
from string import Template

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.corpora.columns import text_of
from workbench.evaluation.harness import Harness, flat_scores, harness_scores, harness_suite
from workbench.evaluation.likelihood import continuation_logps

lm_eval = pytest.importorskip("lm_eval")

TASK = Template("""task: $name
dataset_path: json
dataset_kwargs:
  data_files:
    test: $folder/test.jsonl
    dev: $folder/dev.jsonl
test_split: test
fewshot_split: dev
fewshot_config:
  sampler: first_n
num_fewshot: 3
output_type: multiple_choice
description: "The following are $listed (with answers) about virology.\\n\\n"
doc_to_text: "$question"
doc_to_choice: $choices
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
""")
LISTED = "".join(f"\\n{letter}. {{{{choices[{i}]}}}}" for i, letter in enumerate("ABCD"))


@pytest.fixture(scope="module")
def qwen(samples):
    """A random Qwen2 in float64, so that two ways of batching agree."""
    alpaca = wb.load_dataset("alpaca", samples / "stanford_alpaca")
    model, tokenizer = wb.build_text_model([text_of(row["completion"]) for row in alpaca])
    return model.double(), tokenizer


@pytest.fixture(scope="module")
def tasks(samples, tmp_path_factory):
    """A folder with two tasks of virology, by letters and by choices, and the suites of the same rows."""
    folder = tmp_path_factory.mktemp("tasks")
    options = {"n": None, "n_shots": 3, "form": "plain", "subjects": ["virology"]}
    suites = {by: wb.benchmarks("mmlu", samples, by=by, **options)["mmlu"] for by in ("letters", "choices")}
    rows = list(suites["letters"].data)
    for name, part in (("test", rows), ("dev", rows[0]["shots"])):
        lines = [json.dumps({key: row[key] for key in ("question", "choices", "label")}) for row in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    letters = {"listed": "multiple choice questions", "question": "{{question.strip()}}" + LISTED + "\\nAnswer:"}
    choices = {"listed": "questions", "question": "Question: {{question.strip()}}\\nAnswer:"}
    for name, given in (
        ("letters", {**letters, "choices": '["A", "B", "C", "D"]'}),
        ("choices", {**choices, "choices": "choices"}),
    ):
        (folder / f"{name}.yaml").write_text(TASK.substitute(given, name=f"virology_{name}", folder=folder))
    return folder, suites


def test_accuracies_of_the_same_rows_are_ours(qwen, tasks):
    folder, suites = tasks
    theirs = harness_scores(*qwen, ["virology_letters", "virology_choices"], task_dir=folder, batch_size=7)
    ours = wb.evaluate(*qwen, suites)
    n = ours["letters/n"]
    assert theirs["virology_letters/n"] == theirs["virology_choices/n"] == n == 20
    assert theirs["virology_letters/acc"] == ours["letters/correct_rate"]
    assert theirs["virology_choices/acc"] == ours["choices/correct_rate"]
    assert theirs["virology_choices/acc_norm"] == ours["choices/correct_rate_norm"]
    p = theirs["virology_letters/acc"]
    assert theirs["virology_letters/acc_stderr"] == pytest.approx((p * (1 - p) / (n - 1)) ** 0.5)
    assert len({ours["letters/correct_rate"], ours["choices/correct_rate"], ours["choices/correct_rate_norm"]}) > 1


def test_log_likelihoods_are_ours(qwen, tasks):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = qwen
    (suite,) = (tasks[1]["choices"],)
    pairs = [(suite.scorer.prompt(row, 1), f" {choice}") for row in list(suite.data)[:5] for choice in row["choices"]]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    theirs = [total for total, _ in HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3).loglikelihood(requests)]
    ours = [logp.total for logp in continuation_logps(model, tokenizer, *zip(*pairs, strict=True))]
    assert theirs == pytest.approx(ours, rel=1e-6) and len(set(ours)) == 20


def test_the_harness_rides_along_and_leaves_all_as_it_was(qwen, tasks, tmp_path):
    model, tokenizer = qwen
    folder, _ = tasks
    suite = harness_suite(["virology_letters"], counted_metric="acc", task_dir=folder, limit=8)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    model.train()
    scores = wb.evaluate(model, tokenizer, {"harness": suite}, intervals=True)
    assert model.training and states[0] == random.getstate() and torch.equal(states[2], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert scores["utility"] == scores["harness/correct_rate"] == scores["harness/virology_letters/acc"]
    assert scores["harness/n"] == scores["harness/virology_letters/n"] == 8
    assert suite.parameters()["scorer"].startswith("Harness(metric='acc', limit=8, ")
    world = wb.load_world("micro")
    micro = wb.load_model("micro", device="cpu")
    run = wb.align(
        *micro, world.demonstrations(8), suites={"h": suite}, steps=1, batch_size=4, runs_dir=tmp_path, progress=False
    )
    assert {"h/virology_letters/acc", "utility"} <= set(run.scores)
    with pytest.raises(ValueError, match="metric: expected one of"):
        wb.evaluate(model, tokenizer, {"h": harness_suite(["virology_letters"], counted_metric="f1", task_dir=folder)})


def test_results_become_flat_numbers():
    found = {
        "results": {
            "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": 0.1},
            "group": {"alias": "group", "acc,none": 0.25, "acc_stderr,none": "N/A"},
        },
        "n-samples": {"gsm8k": {"original": 9, "effective": 4}},
    }
    assert flat_scores(found) == {
        "gsm8k/exact_match,strict-match": 0.5,
        "gsm8k/exact_match_stderr,strict-match": 0.1,
        "gsm8k/n": 4.0,
        "group/acc": 0.25,
    }


def test_tasks_come_as_a_list(qwen):
    for make in (lambda: harness_scores(*qwen, "mmlu"), lambda: harness_suite([])):
        with pytest.raises(ValueError, match="expected a list of harness tasks"):
            make()
    assert repr(Harness()) == repr(harness_suite(["mmlu"]).scorer)
