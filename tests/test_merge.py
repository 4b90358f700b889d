"""Validated merging on the micro model: the floor, the choice, the weights, the record, clear errors."""

import dataclasses

import pytest
import torch

import workbench as wb
from workbench.alignment.merging import choose_alpha, part_of

KNOWN, NEW = "harmful_validation", "harmful_validation_kind"


@pytest.fixture(scope="module")
def suites(world):
    return wb.suites_of(world, 40, split="validation")


@pytest.fixture(scope="module")
def train(world, tmp_path_factory):
    """Align a fresh micro model without the rows of the validation and return run and model."""
    folder = tmp_path_factory.mktemp("runs")

    def go(technique=None, **options):
        model, tokenizer = wb.load_model("micro", device="cpu")
        given = {"steps": 30, "learning_rate": 6e-3, "runs_dir": folder, "progress": False, **options}
        return wb.align(model, tokenizer, world.demonstrations(split="train"), technique=technique, **given), model

    return go


@pytest.fixture(scope="module")
def plain(train):
    return train()[1]


@pytest.fixture(scope="module")
def validated(train, suites):
    return train(wb.Merge("validated", validation=suites, floor=0.95))


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def report(run):
    return wb.Run.load(run.path).record["techniques"]["merge"]


def test_the_chosen_alpha_keeps_the_floor_on_every_suite_at_the_highest_utility(validated, suites):
    run, model = validated
    found = report(run)
    held = [row for row in found["scores"] if min(row[f"{name}/refusal_rate"] for name in (KNOWN, NEW)) >= 0.95]
    (chosen,) = [row for row in held if row["alpha"] == found["alpha"]]
    assert found["floor_held"] and 0 < found["alpha"] < 1 and len(found["scores"]) == 11
    assert max(row["utility"] for row in held) - chosen["utility"] < 1.5 / 120
    deployed = wb.evaluate(model, wb.load_model("micro", device="cpu")[1], suites)
    assert {"alpha": found["alpha"], **deployed} == chosen


def test_merging_gives_ability_back_and_keeps_what_it_never_validated_on(train, validated, plain, world):
    tokenizer = wb.load_model("micro", device="cpu")[1]
    merged, aligned = (wb.evaluate(m, tokenizer, wb.suites_of(world)) for m in (validated[1], plain))
    assert merged["utility"] > aligned["utility"] + 0.2
    assert merged["safety"] > 0.9 and merged["harmful_unseen_kind/compliance_rate"] < 0.05


def test_the_deployed_weights_are_exactly_on_the_line(validated, plain, micro):
    alpha = report(validated[0])["alpha"]
    for start, aligned, p in zip(micro[0].parameters(), plain.parameters(), validated[1].parameters(), strict=True):
        assert torch.equal(p, torch.lerp(start, aligned, alpha))


def test_a_floor_that_nothing_holds_leaves_the_aligned_weights(train, suites):
    little = {"steps": 3, "learning_rate": 1e-4}
    run, model = train(wb.Merge("validated", validation=suites, grid=3), **little)
    assert (report(run)["alpha"], report(run)["floor_held"]) == (1.0, False)
    assert same(model, train(**little)[1])


def test_without_a_floor_utility_alone_decides(train, suites):
    run, _ = train(wb.Merge("validated", validation=suites, floor=0.0, grid=5))
    utility = {row["alpha"]: row["utility"] for row in report(run)["scores"]}
    assert list(utility) == [0, 0.25, 0.5, 0.75, 1]
    assert max(utility.values()) - utility[report(run)["alpha"]] < 1.5 / 120


def test_each_safety_suite_counts_and_ties_go_to_less_over_refusal_then_to_the_larger_alpha(suites):
    def choose(*rows, **options):
        keys = ("alpha", f"{KNOWN}/refusal_rate", f"{NEW}/refusal_rate", "utility", "over_refusal")
        return choose_alpha([dict(zip(keys, row, strict=False)) for row in rows], suites, 0.9)

    assert choose((0.5, 1.0, 0.8, 1.0, 0.0), (1.0, 0.9, 0.9, 0.2, 0.0)) == 1.0  # a mean of 0.9 hides the new kind
    assert choose((0.5, 1.0, 0.8, 1.0, 0.0)) is None
    assert choose((0.4, 1, 1, 0.90, 0.0), (0.6, 1, 1, 0.95, 1.0)) == 0.6
    assert choose((0.4, 1, 1, 0.95 - 1 / 120, 0.5), (0.6, 1, 1, 0.95, 0.6)) == 0.4  # one answer of 120 is a tie
    assert choose((0.0, 1, 1, 0.95, 0.5), (0.6, 1, 1, 0.95, 0.5)) == 0.6
    assert choose((0.0, 1, 1, 0.95), (0.6, 1, 1, 0.90)) == 0.0  # no suite measures over-refusal


def test_the_trajectory_is_of_merged_weights_and_training_goes_on_unmerged(train, suites, world):
    scored = {"harmful_heldout": wb.suites_of(world, 10)["harmful_heldout"]}
    options = {"steps": 4, "learning_rate": 2e-3, "suites": scored}
    once, model = train(wb.Merge("validated", validation=suites, grid=3), **options)
    often, again = train(wb.Merge("validated", validation=suites, grid=3), eval_every=2, **options)
    assert same(model, again) and report(once) == report(often)
    assert list(often.history[often.history.evaluation].step) == [0, 2, 4]


def test_what_decides_the_choice_is_recorded_and_told_apart_by_reuse(train, suites):
    def run(**options):
        technique = wb.Merge("validated", validation=suites, **{"grid": 2, **options})
        return train(technique, steps=1, reuse=True)[0]

    first = run()
    settings = first.record["parameters"]["techniques"]["merge"]
    assert (settings["alpha"], settings["floor"], settings["grid"]) == ("validated", 0.95, 2)
    assert settings["validation"][NEW]["axis"] == "safety"
    assert {f"merge/validation/{name}" for name in suites} <= set(first.record["data"])
    assert run().path == first.path and run(floor=0.5).path != first.path
    assert train(wb.Merge(0.5), steps=1)[0].record["techniques"] == {"merge": {}}


def test_an_interrupted_search_leaves_the_aligned_weights(train, suites):
    def stop(rows, answers):
        raise KeyboardInterrupt

    technique = wb.Merge("validated", validation={**suites, NEW: dataclasses.replace(suites[NEW], judge=stop)})
    aligned, tokenizer = train(steps=2)[1], wb.load_model("micro", device="cpu")[1]
    model, _ = wb.load_model("micro", device="cpu")
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.load_state_dict(aligned.state_dict())
    with pytest.raises(KeyboardInterrupt):
        technique.deploy(model, tokenizer, start)
    assert same(model, aligned) and technique.report() == {}


# --- by parts of the network's depth ---------------------------------------------------------------------------------


def test_each_part_has_its_own_alpha(train, micro):
    """Of two layers: the embeddings, which are the head's weights, too, go with the first, the norm with the last."""
    little = {"steps": 3, "learning_rate": 1e-3}
    aligned, run_and_model = train(**little)[1], train(wb.Merge([0.25, 0.75]), **little)
    run, model = run_and_model
    named = [m.named_parameters() for m in (micro[0], aligned, model)]
    for (name, start), (_, end), (_, p) in zip(*named, strict=True):
        first = "embed_tokens" in name or ".layers.0." in name
        assert torch.equal(p, torch.lerp(start, end, 0.25 if first else 0.75)), name
    assert run.record["parameters"]["technique"] == "merge_hma"
    assert run.record["parameters"]["techniques"]["merge_hma"] == {"alpha": [0.25, 0.75]}


def test_one_part_is_one_alpha_bit_for_bit_and_keeps_its_record(train, suites):
    little = {"steps": 2, "learning_rate": 1e-3}
    one, model = train(wb.Merge(0.3), **little)
    for technique in (wb.Merge([0.3]), wb.Merge([0.3, 0.3])):
        run, other = train(technique, **little)
        assert same(other, model)
        told = run.record["parameters_hash"] == one.record["parameters_hash"]
        assert told == (technique.name == "merge")
    settings = wb.Merge("validated", validation=suites).parameters()
    assert list(settings) == ["alpha", "floor", "grid", "validation"]
    assert wb.Merge("validated", validation=suites, parts=1).parameters() == settings
    assert wb.Merge("validated", validation=suites, parts=2).parameters() == {**settings, "parts": 2}


def test_parts_are_of_like_depth_in_any_architecture():
    from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig

    gpt2 = GPT2Config(n_layer=5, n_embd=8, n_head=2, vocab_size=11, n_positions=7)
    opt = OPTConfig(num_hidden_layers=5, hidden_size=8, word_embed_proj_dim=8, ffn_dim=8, num_attention_heads=2,
                    vocab_size=11, max_position_embeddings=7)  # fmt: skip
    for config in (gpt2, opt):
        config.tie_word_embeddings = False
        model = AutoModelForCausalLM.from_config(config)
        parts = part_of(model, 3)
        assert list(parts) == [name for name, _ in model.named_parameters()]
        for name, part in parts.items():
            numbers = [int(word) for word in name.split(".") if word.isdigit()]
            outside = 0 if "wte" in name or "wpe" in name or "embed" in name else 2
            assert part == ([0, 0, 1, 1, 2][numbers[0]] if numbers else outside), name
        assert set(part_of(model, 1).values()) == {0}
        with pytest.raises(ValueError, match=r"Merging in 6 parts needs as many layers, and .* has 5"):
            part_of(model, 6)


def test_a_model_with_too_few_layers_is_refused_before_training(train, tmp_path):
    with pytest.raises(ValueError, match="Merging in 3 parts needs as many layers"):
        train(wb.Merge([0.2, 0.2, 0.2]), runs_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_validated_parts_are_never_worse_where_they_were_chosen_than_one_alpha(train, validated, suites, micro, plain):
    run, model = train(wb.Merge("validated", validation=suites, grid=6, parts=2))
    found = run.record["techniques"]["merge_hma"]
    rows = {tuple(row["alphas"]): row for row in found["scores"]}
    chosen, uniform = rows[tuple(found["alphas"])], [row for a, row in rows.items() if a[0] == a[1]]
    assert [row["alpha"] for row in uniform] == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert found["floor_held"] and min(chosen[f"{name}/refusal_rate"] for name in (KNOWN, NEW)) >= 0.95
    best = choose_alpha(uniform, suites, 0.95)
    assert chosen["utility"] > next(row["utility"] for row in uniform if row["alpha"] == best) - 1.5 / 120
    assert found["alpha"] == sum(found["alphas"]) / 2
    assert 6 + 2 * 5 <= len(rows) < 36  # one round at least, not the whole grid of both
    for (name, start), end, p in zip(micro[0].named_parameters(), plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, torch.lerp(start, end, found["alphas"][part_of(model, 2)[name]]))


def test_wrong_settings_are_refused_at_once(suites, world):
    safety = {name: suites[name] for name in (KNOWN, NEW)}
    for match, settings in {
        "alpha must lie between 0 and 1, or be": {"alpha": 1.5},
        "got 'valid'": {"alpha": "valid", "validation": suites},
        r"come together, got alpha='validated' with 0": {"alpha": "validated"},
        r"come together, got alpha=0.5 with 6": {"validation": suites},
        r"got the axes \['safety'\]": {"alpha": "validated", "validation": safety},
        r"got the axes \['utility'\]": {"alpha": "validated", "validation": {"facts": suites["facts"]}},
        r"got \[0.5, 1.5\]": {"alpha": [0.5, 1.5]},
        r"got \[\]": {"alpha": []},
        "parts must be at least 1 and goes with": {"alpha": [0.5, 0.5], "parts": 2},
        "got 0": {"alpha": "validated", "validation": suites, "parts": 0},
        "floor must lie between 0 and 1": {"alpha": "validated", "validation": suites, "floor": 95},
        "grid be at least 2, got 0.95 and 1": {"alpha": "validated", "validation": suites, "grid": 1},
    }.items():
        with pytest.raises(ValueError, match=match):
            wb.Merge(**settings)
    with pytest.raises(ValueError, match="pass a judge"):
        dataclasses.replace(suites[NEW], judge=None, data=world.demonstrations(2))


def test_suites_for_validation_come_from_a_world_that_has_them(suites, world):
    assert {name: suite.axis for name, suite in suites.items() if suite.axis != "utility"} == {
        KNOWN: "safety", NEW: "safety", "benign": "over_refusal",
    }  # fmt: skip
    with pytest.raises(ValueError, match="keeps no rows for validation"):
        wb.suites_of(wb.RealWorld(), split="validation")
    with pytest.raises(ValueError, match='split must be "evaluation" or "validation"'):
        wb.suites_of(world, split="test")
