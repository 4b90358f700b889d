"""The main job on real input: a Qwen2 model folder and the public sets' own files, from text to record and figure."""

import pytest

import workbench as wb
from workbench.corpora.columns import dataset_fingerprint, text_of
from workbench.corpora.realworld import REFUSALS
from workbench.evaluation.refusals import XSTestJudge

# The first digits of the fingerprints of the usual world's suites, sixteen prompts each, as in records of version 0.1.
PRINTS = {
    "harmful_heldout": "b5c21827",
    "xstest_unsafe": "6bd57c9f",
    "xstest_safe": "7e10e356",
    "instructions": "0bd54a4b",
    "truthfulness": "52d9735b",
}


@pytest.fixture(scope="module")
def qwen(samples, tmp_path_factory):
    """A random Qwen2 with a byte-level BPE tokenizer trained on the Alpaca sample."""
    alpaca = wb.load_dataset("alpaca", samples / "stanford_alpaca" / "alpaca_data.json")
    texts = [text_of(row[column]) for row in alpaca for column in ("prompt", "completion")]
    model, tokenizer = wb.build_text_model(texts)
    return wb.save_model(model, tokenizer, tmp_path_factory.mktemp("models") / "qwen2-random")


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_real_architecture_is_aligned_on_real_data(qwen, samples, tmp_path, objective):
    model, tokenizer = wb.load_model(qwen, device="cpu")
    world = wb.load_world(qwen, samples)
    suites = wb.suites_of(world, n=16)
    projection = wb.GradientProjection(
        world.references(40), rank=2, scope="tensor", side="update", refresh=5, n_samples=16, max_length=256
    )
    run = wb.align(
        model,
        tokenizer,
        objective=objective,
        data=world.demonstrations(64) if objective == "sft" else world.preferences(64),
        technique=projection,
        suites=suites,
        steps=20 if objective == "sft" else 4,
        batch_size=8,
        learning_rate=5e-3,
        max_length=256,
        runs_dir=tmp_path,
        progress=False,
    )
    assert max(row["leakage"] for row in projection.history[1:]) < 1e-5  # the first step of the warm-up is none
    assert set(run.record["base_scores"]) == set(run.scores) >= {"safety", "over_refusal", "utility", "xstest_safe/n"}
    if objective == "sft":  # twenty steps teach even a random model to begin every answer with a refusal
        assert run.scores["safety"] > 0.9 and run.record["base_scores"]["safety"] < 0.1
        assert wb.show_answers(model, tokenizer, suites["xstest_unsafe"], 1)[0]["verdict"] == "refusal"
    table = wb.load_runs(tmp_path)
    figure = wb.views.safety_utility(table)
    assert any(run.scores["utility"] in (trace.x if trace.x is not None else ()) for trace in figure.data)
    assert wb.views.write_report(table, tmp_path / "report.html").stat().st_size > 1e6


def test_the_roles_of_the_real_world_are_disjoint(samples):
    world = wb.RealWorld(samples)

    def sources(*datasets):
        return {source for rows in datasets for source in rows["source"]}

    trained = sources(world.demonstrations(), *world.references(None).values())
    scored = sources(*world.evaluation(None).values())
    assert not trained & scored
    assert len(world.demonstrations()) == 150 and len(world.evaluation(None)["harmful_heldout"]) == 50
    assert {label for rows in ("safe", "unsafe") for label in world.evaluation()[f"xstest_{rows}"]["label"]} == {
        "safe",
        "unsafe",
    }
    assert sources(world.preferences()) == sources(world.demonstrations())


def texts(rows):
    return {text_of(prompt) for prompt in rows["prompt"]}


def test_the_sets_of_a_world_are_chosen_by_name_and_stay_apart(samples):
    world = wb.RealWorld(
        samples,
        safety_data="pku_saferlhf",
        reference_data=("ultrafeedback", "dolly", "halueval", "gsm8k", "alpaca"),
        benchmarks=["xstest", "gsm8k", "mmlu", "ifeval", "simpleqa", "harmbench", "strongreject", "do_not_answer"],
    )
    assert world.parameters()["sets"][0] == "pku_saferlhf" and world.reference_data[-1] == "stanford_alpaca"
    references, kept = world.references(10), world.heldout_references(None)
    assert list(references) == list(kept) == ["ultrafeedback", "dolly", "halueval", "gsm8k", "instructions"]
    assert all({"prompt", "completion", "source"} <= set(rows.column_names) for rows in references.values())
    assert all(not texts(rows) & texts(kept[name]) for name, rows in references.items() if name != "dolly")
    assert all(source.startswith("gsm8k:train:") for source in references["gsm8k"]["source"])
    suites = wb.suites_of(world, n=6)
    axes = {name: suite.axis for name, suite in suites.items()}
    assert [name for name, axis in axes.items() if axis == "safety"] == [
        *("harmful_heldout", "xstest_unsafe", "harmbench", "strongreject", "do_not_answer")
    ]
    assert [name for name, axis in axes.items() if axis == "utility"] == ["gsm8k", "mmlu", "ifeval", "simpleqa"]
    assert [name for name, axis in axes.items() if axis is None] == [
        *("ultrafeedback", "dolly", "halueval", "gsm8k_heldout", "instructions")
    ]
    assert not texts(suites["harmful_heldout"].data) & texts(world.demonstrations())


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_chosen_world_is_trained_on_kept_and_judged_by(qwen, samples, tmp_path, objective):
    model, tokenizer = wb.load_model(qwen, device="cpu")
    names = ("gsm8k", "mmlu", "ifeval", "simpleqa", "xstest", "harmbench", "strongreject", "do_not_answer")
    world = wb.RealWorld(samples, 0, "pku_saferlhf", ("ultrafeedback", "dolly", "halueval"), names)
    run = wb.align(
        model,
        tokenizer,
        world.demonstrations() if objective == "sft" else world.preferences(),
        objective,
        wb.GradientProjection(world.references(8), rank=1, n_samples=4, max_length=1024),
        suites=wb.suites_of(world, n=2, max_new_tokens=4, n_shots=1),
        steps=1,
        batch_size=4,
        max_length=256,
        runs_dir=tmp_path,
        progress=False,
    )
    assert {f"{name}/n" for name in ("gsm8k", "mmlu", "ifeval", "simpleqa", "xstest_safe", "ultrafeedback")} <= set(
        run.scores
    )
    assert {"safety", "over_refusal", "utility"} <= set(run.scores)


def test_the_safe_answers_of_marked_preferences_are_demonstrations(samples):
    world = wb.RealWorld(samples, safety_data="pku_saferlhf")
    shown, preferred = world.demonstrations(), world.preferences()
    assert shown["completion"] == preferred["chosen"] and all(preferred["is_chosen_safe"])
    heldout = world.heldout_requests(None)
    assert len(heldout) and not any(row["is_chosen_safe"] and row["is_rejected_safe"] for row in heldout)
    requests = wb.RealWorld(samples, safety_data="do_not_answer")
    assert {text_of(a) for a in requests.demonstrations()["completion"]} <= set(REFUSALS)
    with pytest.raises(ValueError, match="do_not_answer has requests alone"):
        requests.preferences()


def test_what_is_trained_on_is_not_asked(samples):
    world = wb.RealWorld(samples, safety_data="harmbench", benchmarks=("harmbench", "advbench"))
    suites = wb.suites_of(world, n=None)
    trained = texts(world.demonstrations())
    assert not trained & texts(suites["harmbench"].data) and texts(suites["harmbench"].data) <= texts(
        suites["harmful_heldout"].data
    )
    world = wb.RealWorld(samples, reference_data=("simpleqa",), benchmarks=("simpleqa",))
    asked = wb.suites_of(world, n=None)["simpleqa"].data
    assert len(asked) > 50 and not texts(world.references(None)["simpleqa"]) & texts(asked)


def test_settings_reach_the_suites_that_take_them(samples):
    world = wb.RealWorld(samples, benchmarks=("gsm8k", "mmlu"))
    suites = wb.suites_of(world, n=3, n_shots=2, max_new_tokens=9, judge=XSTestJudge())
    assert suites["harmful_heldout"].judge == XSTestJudge() and suites["harmful_heldout"].max_new_tokens == 9
    assert len(suites["gsm8k"].data[0]["prompt"]) == 5 and suites["gsm8k"].max_new_tokens == 9
    assert all(len(shots) == 2 for shots in suites["mmlu"].data["shots"])
    with pytest.raises(TypeError, match="None of gsm8k, mmlu takes the setting by_type"):
        wb.suites_of(world, by_type=True)
    with pytest.raises(TypeError, match="A MicroWorld takes no settings of benchmarks, got judge"):
        wb.suites_of(wb.load_world("micro"), judge=XSTestJudge())


def test_the_usual_world_is_the_one_of_earlier_records(samples):
    world = wb.RealWorld(samples)
    assert world.parameters() == {"sets": ["advbench", "xstest", "stanford_alpaca", "truthfulqa"], "seed": 0}
    assert world == wb.RealWorld(samples, 0, "advbench", ["alpaca", "truthfulqa"], ["xstest"])
    prints = {name: dataset_fingerprint(rows)[:8] for name, rows in world.evaluation(16).items()}
    suites = wb.suites_of(world, n=16)
    assert prints == {name: dataset_fingerprint(suite.data)[:8] for name, suite in suites.items()} == PRINTS
    assert dataset_fingerprint(world.demonstrations())[:8] == "86034417"
    assert {suite.max_new_tokens for suite in suites.values()} == {64}


def test_names_that_do_not_fit_are_refused(samples):
    with pytest.raises(ValueError, match=r"one of the public sets advbench, .*, got 'adbench'"):
        wb.RealWorld(safety_data="adbench")
    with pytest.raises(ValueError, match=r'reference_data: expected several names, such as \("dolly",\)'):
        wb.RealWorld(reference_data="dolly")
    with pytest.raises(ValueError, match="reference_data is empty"):
        wb.RealWorld(reference_data=())
    with pytest.raises(ValueError, match="A reference set needs prompts with answers"):
        wb.RealWorld(samples, reference_data=("mmlu",)).references()
