"""Freezing: what matches stays bit for bit, the rest trains as if the trainer had been given no more."""

import pytest
import torch

import workbench as wb
from workbench.corpora.words import REFUSALS

QUICK = {"steps": 4, "learning_rate": 1e-2, "progress": False}


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_what_matches_stays_bit_for_bit_and_everything_else_moves(micro, world, tmp_path, objective):
    model, tokenizer = micro
    before = weights(model)
    data = world.demonstrations() if objective == "sft" else world.preferences()
    run = wb.align(model, tokenizer, data, objective, wb.Freeze("*embed*"), runs_dir=tmp_path, **QUICK)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "embed" not in name}
    assert all(p.requires_grad for p in model.parameters())
    assert run.record["parameters"]["techniques"]["frozen"] == {"parameters": ["*embed*"]}
    assert run.record["techniques"]["frozen"] == {"n_frozen": model.get_input_embeddings().weight.numel()}


def test_it_equals_a_model_frozen_by_hand(micro, world, tmp_path):
    model, tokenizer = micro
    wb.align(model, tokenizer, world.demonstrations(), technique=wb.Freeze("*norm*"), runs_dir=tmp_path, **QUICK)
    by_hand, _ = wb.load_model("micro", device="cpu")
    for name, p in by_hand.named_parameters():
        p.requires_grad_("norm" not in name)
    wb.align(by_hand, tokenizer, world.demonstrations(), runs_dir=tmp_path, **QUICK)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), by_hand.parameters(), strict=True))


def test_merging_and_projection_act_on_what_is_trained(micro, world, tmp_path):
    model, tokenizer = micro
    before = weights(model)
    techniques = [wb.GradientProjection(world.references(20)), wb.Merge(0.5), wb.Freeze()]
    wb.align(model, tokenizer, world.demonstrations(), technique=techniques, runs_dir=tmp_path, **QUICK)
    assert techniques[0].history[-1]["leakage"] < 1e-5
    assert not any("embed" in name for name in techniques[0].subspace.layout.sizes)
    assert torch.equal(model.get_input_embeddings().weight, before["model.embed_tokens.weight"])


@pytest.mark.parametrize(("patterns", "message"), [("*adapter*", "matches none"), ("*", "nothing to train")])
def test_patterns_that_match_nothing_or_all_are_refused_and_the_model_is_left_alone(
    micro, world, tmp_path, patterns, message
):
    model, tokenizer = micro
    with pytest.raises(ValueError, match=message):
        wb.align(model, tokenizer, world.demonstrations(), technique=wb.Freeze(patterns), runs_dir=tmp_path, **QUICK)
    assert all(p.requires_grad for p in model.parameters())


def test_references_are_preferences_too(world):
    pairs, plain = world.references(30, seed=3, preferences=True), world.references(30, seed=3)
    for domain, rows in pairs.items():
        assert rows["prompt"] == plain[domain]["prompt"]
        assert rows["chosen"] == rows["completion"] == plain[domain]["completion"]
        assert {row[0]["content"] for row in rows["rejected"]} <= set(REFUSALS)
