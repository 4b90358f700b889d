"""Mixup: what a row is read as, against embeddings mixed by hand; look-alikes; what it leaves alone."""

import pytest
import torch
from conftest import same, weights
from torch.nn import functional as F

import workbench as wb
from workbench.alignment.mixup import nearest
from workbench.corpora.columns import as_completion, as_prompt
from workbench.corpora.encoding import encode, encode_prompts

RATE = 0.125


@pytest.fixture(scope="module")
def every(world):
    """All benign requests, and nothing else: what look-alikes are found among."""
    return {"benign": world.references(366)["benign"]}


def pair(world):
    """A harmful request, and its look-alike in the references."""
    request = world.requests("seen")[0]
    partner = next(r for r in world.requests("benign") if r.kind == world.partners[request.kind])
    alike = {"verb": request.verb, "material": request.material, "template": request.template}
    lookalike = type(request)(kind=partner.kind, harmful=False, **alike)
    return request.text, lookalike.text


def rows(texts, answer):
    from datasets import Dataset

    row = [{"prompt": as_prompt(text), "completion": as_completion(answer)} for text in texts]
    return Dataset.from_list(row)


def test_the_nearest_of_as_many_tokens_in_place():
    others = [(1, 2, 3, 9), (1, 2, 8, 9), (7, 2, 3, 4), (1, 2, 3)]
    assert nearest([(1, 2, 3, 4)], others, 0.5)[1, 2, 3, 4].tolist() == [[1, 2, 3, 9], [7, 2, 3, 4]]
    assert nearest([(4, 3, 2, 1), (1, 2)], others, 0.5) == {}
    assert nearest([(1, 2, 3, 4)], others, 0.8) == {}


def test_lookalikes_differ_in_the_noun_alone(train, world, every):
    mixup = wb.Mixup(every)
    train([mixup, wb.Replay(mixup.references)], steps=1)
    _, tokenizer = wb.load_model("micro", device="cpu")
    nouns = {*tokenizer.convert_tokens_to_ids(list(world.partners))}
    partners = {*tokenizer.convert_tokens_to_ids(list(world.partners.values()))}
    n_prompts = len({tuple(ids) for ids in encode_prompts(world.demonstrations()["prompt"], tokenizer)})
    assert len(mixup.lookalikes) == n_prompts + len(world.requests("benign"))
    for prompt, found in mixup.lookalikes.items():
        own = nouns if nouns & {*prompt} else partners
        for other in found.tolist():
            changed = [(a, b) for a, b in zip(prompt, other, strict=True) if a != b]
            assert len(changed) == 1
            assert changed[0][0] in own and changed[0][1] in (partners if own is nouns else nouns)


def test_a_step_is_that_on_embeddings_mixed_by_hand(world, tmp_path):
    text, lookalike = pair(world)
    safety, references = rows([text], "no ."), {"benign": rows([lookalike], "yes .")}
    model, tokenizer = wb.load_model("micro", device="cpu", dtype="float64")
    before = weights(model)
    options = {"steps": 1, "batch_size": 1, "learning_rate": RATE, "optim": "sgd", "max_grad_norm": 0.0}
    options |= {"warmup_steps": 0, "runs_dir": tmp_path, "progress": False, "seed": 3}
    mixup = wb.Mixup(references, limit=0.4)
    lambdas = []
    draw = mixup._drawn
    mixup._drawn = lambda ids: lambdas.append(draw(ids)) or lambdas[-1]
    run = wb.align(model, tokenizer, safety, technique=mixup, **options)
    (other, (share,)) = lambdas[0]
    assert 0 < share < 0.4 and run.history.mixed.tolist() == [1.0]

    by_hand, _ = wb.load_model("micro", device="cpu", dtype="float64")
    (own,), (foreign,) = encode(safety, tokenizer), encode(references["benign"], tokenizer)
    n_prompt = sum(label < 0 for label in own["labels"])
    assert other[0].tolist() == [*foreign["input_ids"][:n_prompt], *own["input_ids"][n_prompt:]]
    embed = by_hand.get_input_embeddings()
    mixed = (1 - share) * embed(torch.tensor([own["input_ids"]])) + share * embed(other)
    logits = by_hand(inputs_embeds=mixed).logits[0, :-1]
    F.cross_entropy(logits, torch.tensor(own["labels"])[1:]).backward()
    for name, p in by_hand.named_parameters():
        assert torch.allclose((before[name] - weights(model)[name]) / RATE, p.grad, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_both_answers_of_a_pair_are_read_alike_and_it_runs_under_every_objective(train, world, objective):
    references = world.references(366, preferences=True)
    mixup = wb.Mixup(references)
    draws = []
    draw = mixup._drawn
    mixup._drawn = lambda ids: draws.append(draw(ids)) or draws[-1]
    run, _ = train([wb.Freeze(), mixup, wb.Replay(references)], objective)
    assert run.history.mixed.between(0.2, 0.95).all() and run.record["techniques"]["mixup"]["n_with_lookalikes"] > 0
    if objective == "dpo":
        shares = torch.stack([share for _, share in draws])
        assert torch.equal(*shares.chunk(2, dim=1)) and shares.max() > 0
    assert all((share >= 0).all() and (share < 0.45).all() for _, share in draws)


def test_it_ends_with_training_and_evaluation_never_sees_it(train, world, every):
    suites = wb.suites_of(world, n=10)
    run, model = train(wb.Mixup(every), suites=suites, learning_rate=0.0, eval_every=2)
    assert not model.get_input_embeddings()._forward_hooks
    assert all(run.record["base_scores"][name] == score for name, score in run.scores.items())


def test_two_trainings_are_the_same_bit_for_bit(train, every):
    mixed = [train([wb.Replay(every), wb.Mixup(every)], neftune_noise_alpha=2.0)[1] for _ in range(2)]
    assert same(*map(weights, mixed))
    assert not same(weights(mixed[0]), weights(train(wb.Replay(every), neftune_noise_alpha=2.0)[1]))


@pytest.mark.parametrize("settings", [{"limit": 0.0}, {"limit": 0.6}, {"overlap": 1.0}])
def test_settings_out_of_range_are_refused(references, settings):
    with pytest.raises(ValueError, match="limit must lie"):
        wb.Mixup(references, **settings)


def test_references_without_lookalikes_and_rows_end_to_end_are_refused(train, world, references):
    with pytest.raises(ValueError, match="needs look-alikes: none of"):
        train(wb.Mixup({"addition": references["addition"]}))
    with pytest.raises(ValueError, match="lays them end to end"):
        train(wb.Mixup(references), packing=True)
    with pytest.raises(ValueError, match="at least one domain"):
        wb.Mixup({})


def test_noise_is_on_mixed_rows_alone():
    embed, ids = torch.nn.Embedding(5, 4), torch.tensor([[1, 2, 4], [2, 1, 4]])
    read = []
    for noise in (0.0, 2.0):
        mixup = wb.Mixup({"benign": ["a row"]}, noise=noise)
        mixup.lookalikes, mixup._lengths = {(1, 2): torch.tensor([[1, 3]])}, [2]
        torch.manual_seed(0)
        read.append(mixup._mixed(embed, (ids,), embed(ids)))
    added = (read[1] - read[0]).abs()
    assert (added[1] == 0).all() and torch.equal(read[1][1], embed(ids)[1])
    assert (added[0] > 0).all() and added.max() <= 2.0 / (3 * 4) ** 0.5
    with pytest.raises(ValueError, match="noise is NEFTune's α"):
        wb.Mixup({"benign": ["a row"]}, noise=-1.0)
