"""The null space of activations: outputs on reference inputs stand still, planted inputs are recovered."""

import math

import pytest
import torch
from torch import nn

from workbench.geometry.activations import ActivationSubspace

D, PLANTED = 12, 3


class Tiny(nn.Module):
    """An embedding, a norm, two linear layers, and a head that is tied to the embedding if asked."""

    def __init__(self, tied=False):
        super().__init__()
        self.embedding = nn.Embedding(20, D)
        self.norm = nn.LayerNorm(D)
        self.up, self.down = nn.Linear(D, 30), nn.Linear(30, D)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(D, 20, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, input_ids, attention_mask=None):
        x = self.embedding(input_ids)
        return self.head(self.down(self.dropout(self.up(self.norm(x)).tanh())) + x)


@pytest.fixture
def tiny():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny().double()


def tokens(rows=4, seed=0, vocabulary=20):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, vocabulary, (rows, 9), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def random_update(parameters, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) for n, p in parameters.items()
    }


def inputs_of(model, layer, batches):
    """What reaches a layer, at all positions."""
    seen = []
    hook = layer.register_forward_hook(lambda module, args, output: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for batch in batches:
            model.eval()(**batch)
    hook.remove()
    return torch.cat(seen)


def linear_of_rank(n_inputs, rank, n=50):
    """A linear layer and a batch of inputs, (n, n_inputs), that lie in the span of orthonormal (rank, n_inputs)."""
    generator = torch.Generator().manual_seed(3)
    plane, _ = torch.linalg.qr(torch.randn(n_inputs, rank, generator=generator, dtype=torch.float64))
    inputs = torch.randn(n, rank, generator=generator, dtype=torch.float64) @ plane.T
    return nn.Linear(n_inputs, 5).double(), {"input": inputs}, plane.T


def test_a_projected_update_leaves_outputs_on_reference_inputs_as_they_were(tiny):
    batches = [tokens(2, seed) for seed in (0, 1)]
    batches[0]["input_ids"] %= 7  # few distinct tokens, so that the inputs of every layer span less than all
    batches[1]["input_ids"] %= 7
    subspace = ActivationSubspace.fit(tiny, batches, energy=1.0)
    update = random_update(dict(tiny.named_parameters()))
    untouched = {name: tensor.clone() for name, tensor in update.items()}
    subspace.project_out_(update)
    assert list(subspace.blocks) == ["up.weight", "down.weight", "head.weight"]
    for name, layer in (("up.weight", tiny.up), ("down.weight", tiny.down), ("head.weight", tiny.head)):
        inputs = inputs_of(tiny, layer, batches)
        assert 0 < len(subspace.blocks[name].basis) <= 7
        assert (inputs @ update[name].T).abs().max() <= 1e-12 and update[name].norm() > 1
    assert all(torch.equal(update[n], untouched[n]) for n in update.keys() - subspace.blocks.keys())


def test_a_model_changed_by_a_projected_update_answers_as_before(tiny):
    batch = tokens()
    batch["input_ids"] %= 7
    with torch.no_grad():
        before = tiny.eval()(**batch)
        update = random_update({n: p for n, p in tiny.named_parameters() if n.endswith(("up.weight", "down.weight"))})
        ActivationSubspace.fit(tiny, [batch], energy=1.0).project_out_(
            update | {"head.weight": torch.zeros_like(tiny.head.weight)}
        )
        for name, step in update.items():
            tiny.get_parameter(name).add_(step)
        torch.testing.assert_close(tiny(**batch), before, rtol=0, atol=1e-11)
        assert (tiny(**tokens(seed=5)) - tiny(**batch)).abs().max() > 0.1


@pytest.mark.parametrize("energy", [0.999, 1.0])
def test_planted_inputs_are_recovered(energy):
    layer, batch, plane = linear_of_rank(D, PLANTED)
    block = ActivationSubspace.fit(layer, [batch], energy=energy).blocks["weight"]
    assert block.basis.shape == (PLANTED, D) and (block.eigenvalues[PLANTED:] == 0).all()
    torch.testing.assert_close(block.basis @ block.basis.T, torch.eye(PLANTED).double(), rtol=0, atol=1e-14)
    torch.testing.assert_close(torch.linalg.svdvals(block.basis @ plane.T), torch.ones(PLANTED).double())
    expected = torch.linalg.svdvals(batch["input"]).square() / len(batch["input"])
    torch.testing.assert_close(block.eigenvalues[:PLANTED], expected[:PLANTED])


def test_the_basis_is_the_smallest_that_holds_the_energy(tiny):
    batches, ranks = [tokens(8)], []
    for energy in (0.01, 0.3, 0.6, 0.9, 0.95, 0.99, 1.0):
        subspace = ActivationSubspace.fit(tiny, batches, energy=energy)
        ranks.append(subspace.rank)
        for block in subspace.blocks.values():
            share = block.eigenvalues.cumsum(0) / block.eigenvalues.sum()
            k = len(block.basis)
            assert share[k - 1] >= energy - 1e-12 and (k == 1 or share[k - 2] < energy)
    assert ranks == sorted(ranks) and ranks[0] < ranks[-1]


def test_what_is_removed_and_counted_is_that_of_plain_algebra(tiny):
    subspace = ActivationSubspace.fit(tiny, [tokens()], energy=0.8)
    update = random_update(dict(tiny.named_parameters()))
    before = {name: tensor.clone() for name, tensor in update.items()}
    energy = subspace.energy(update)
    assert torch.equal(subspace.project_out_(update).inside, energy.inside)
    for i, (name, block) in enumerate(subspace.blocks.items()):
        inside = before[name] @ block.basis.T @ block.basis
        torch.testing.assert_close(update[name], before[name] - inside, rtol=0, atol=1e-13)
        torch.testing.assert_close(energy.inside[i], inside.square().sum())
        torch.testing.assert_close(energy.total[i], before[name].square().sum())
        assert block.rank == len(block.basis) * len(before[name]) and block.n_params == before[name].numel()
    assert subspace.energy(update).share < 1e-28
    assert subspace.n_params == sum(before[name].numel() for name in subspace.blocks)
    shares = [subspace.energy(random_update(before, seed)).share for seed in range(300)]
    assert sum(shares) / 300 == pytest.approx(subspace.random_floor**2, rel=0.02)


def test_padding_does_not_count(tiny):
    alone = tokens(3)
    padded = {"input_ids": torch.cat([torch.full((3, 4), 2), alone["input_ids"]], dim=1)}
    padded["attention_mask"] = (torch.arange(13) >= 4).long().expand(3, -1)
    right = {key: value.flip(1) for key, value in padded.items()}
    expected = ActivationSubspace.fit(tiny, [alone])
    for batch in (padded, right):
        found = ActivationSubspace.fit(tiny, [batch])
        for name, block in expected.blocks.items():
            torch.testing.assert_close(found.blocks[name].eigenvalues, block.eigenvalues)
            torch.testing.assert_close(found.blocks[name].basis.abs(), block.basis.abs())
    without = ActivationSubspace.fit(tiny, [{"input_ids": alone["input_ids"]}])
    assert torch.equal(without.blocks["up.weight"].basis, expected.blocks["up.weight"].basis)


def test_batches_add_up(tiny):
    whole = tokens(6)
    parts = [{key: value[rows] for key, value in whole.items()} for rows in (slice(0, 1), slice(1, 6))]
    for one, two in zip(
        ActivationSubspace.fit(tiny, [whole]).blocks.values(),
        ActivationSubspace.fit(tiny, parts).blocks.values(),
        strict=True,
    ):
        torch.testing.assert_close(one.eigenvalues, two.eigenvalues)


def test_a_weight_that_is_also_looked_up_is_not_constrained(micro):
    with torch.random.fork_rng():
        assert list(ActivationSubspace.fit(Tiny(tied=True), [tokens()]).blocks) == ["up.weight", "down.weight"]
    model, _ = micro
    blocks = ActivationSubspace.fit(model, [tokens(vocabulary=model.config.vocab_size)]).blocks
    assert len(blocks) == 7 * model.config.num_hidden_layers
    assert all(name.endswith("_proj.weight") for name in blocks)


def test_layers_that_share_a_weight_share_its_inputs():
    layer = nn.Linear(6, 6, bias=False).double()
    both = nn.Sequential(layer, nn.ReLU(), nn.Linear(6, 6, bias=False))
    both[2].weight = layer.weight
    inputs = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    subspace = ActivationSubspace.fit(both, [{"input": inputs}], energy=1.0)
    update = random_update({"0.weight": layer.weight})
    subspace.project_out_(update)
    for x in (inputs, layer(inputs).relu()):
        assert (x @ update["0.weight"].T).abs().max() < 1e-12


def test_gpt2s_transposed_layers_are_constrained_alike():
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        config = GPT2Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=2)
        model = GPT2LMHeadModel(config).double()
    batches = [tokens(2, vocabulary=40)]
    subspace = ActivationSubspace.fit(model, batches, energy=1.0)
    assert len(subspace.blocks) == 8 and all(block.inputs_first for block in subspace.blocks.values())
    update = random_update(dict(model.named_parameters()))
    energy = subspace.project_out_(update)
    layer = model.transformer.h[0].attn.c_attn
    assert (inputs_of(model, layer, batches) @ update["transformer.h.0.attn.c_attn.weight"]).abs().max() < 1e-12
    block = subspace.blocks["transformer.h.0.attn.c_attn.weight"]
    assert block.shape == (32, 96) and block.basis.shape[1] == 32 and block.rank == len(block.basis) * 96
    assert energy.shares[0].item() == pytest.approx(len(block.basis) / 32, rel=0.1)


def test_the_factors_of_lora_are_linear_layers(micro):
    from peft import LoraConfig, get_peft_model

    model, _ = micro
    model = get_peft_model(model.double(), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)).double()
    batch = tokens(2, vocabulary=model.config.vocab_size)
    subspace = ActivationSubspace.fit(model, [batch], energy=1.0)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert list(subspace.blocks) == list(parameters) and len(parameters) == 2 * model.config.num_hidden_layers
    update = random_update(parameters)
    subspace.project_out_(update)
    with torch.no_grad():
        before = model.eval()(**batch).logits
        for name, step in update.items():
            parameters[name].add_(step)
        torch.testing.assert_close(model(**batch).logits, before, rtol=0, atol=1e-10)
    name = next(iter(parameters))
    chosen = ActivationSubspace.fit(model, [batch], {"mine": parameters[name]})
    assert list(chosen.blocks) == ["mine"]


def test_half_precision_weights_are_projected_in_fp32(micro):
    model, _ = micro
    model = model.to(torch.bfloat16)
    subspace = ActivationSubspace.fit(model, [tokens(vocabulary=model.config.vocab_size)], energy=0.9)
    assert {block.basis.dtype for block in subspace.blocks.values()} == {torch.float32}
    update = random_update(dict(model.named_parameters()))
    assert subspace.project_out_(update).share > 0.02
    assert {tensor.dtype for tensor in update.values()} == {torch.bfloat16}
    assert subspace.energy(update).share < 1e-4


def test_a_layer_that_no_token_reaches_stays_free(tiny):
    tiny.spare = nn.Linear(D, 4).double()
    subspace = ActivationSubspace.fit(tiny, [tokens()], energy=1.0)
    update = random_update(dict(tiny.named_parameters()))
    kept = update["spare.weight"].clone()
    energy = subspace.project_out_(update)
    assert torch.equal(update["spare.weight"], kept)
    assert subspace.blocks["spare.weight"].basis.shape == (0, D) and energy.inside[-1] == 0 < energy.total[-1]


def test_the_model_is_left_as_it_was_whatever_happens(tiny):
    tiny.train()
    for p in tiny.parameters():
        p.grad = torch.ones_like(p)
    state, weights = torch.get_rng_state(), {name: p.detach().clone() for name, p in tiny.named_parameters()}
    ActivationSubspace.fit(tiny, [tokens() | {"labels": tokens()["input_ids"]}])
    with pytest.raises(IndexError):
        ActivationSubspace.fit(tiny, [tokens(), tokens(vocabulary=500)])
    assert tiny.training and torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in tiny.modules())
    assert all(torch.equal(p, weights[name]) and (p.grad == 1).all() for name, p in tiny.named_parameters())


def test_a_saved_subspace_comes_back_the_same(tiny, tmp_path):
    subspace = ActivationSubspace.fit(tiny, [tokens()], energy=0.7)
    loaded = ActivationSubspace.load(subspace.save(tmp_path / "inputs.safetensors"))
    assert loaded.provenance == {"energy": 0.7} and loaded.scope == "activations" and loaded.rank == subspace.rank
    for name, block in subspace.blocks.items():
        assert torch.equal(block.basis, loaded.blocks[name].basis)
        assert torch.equal(block.eigenvalues, loaded.blocks[name].eigenvalues)
        assert (block.shape, block.inputs_first) == (loaded.blocks[name].shape, loaded.blocks[name].inputs_first)
    assert [p.name for p in tmp_path.iterdir()] == ["inputs.safetensors"]


def test_another_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no subspace of activations"):
        ActivationSubspace.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("energy", [0.0, -0.1, 1.01, math.nan])
def test_bad_energy_is_refused(tiny, energy):
    with pytest.raises(ValueError, match=r"energy must lie in \(0, 1\]"):
        ActivationSubspace.fit(tiny, [tokens()], energy=energy)


def test_bad_input_is_refused(tiny):
    with pytest.raises(ValueError, match="There is no reference batch"):
        ActivationSubspace.fit(tiny, [])
    with pytest.raises(ValueError, match="No linear layer holds one of the parameters"):
        ActivationSubspace.fit(tiny, [tokens()], {"norm.weight": tiny.norm.weight})
    batch = tokens()
    batch["attention_mask"] = batch["attention_mask"][:, :5] * 0
    with pytest.raises(ValueError, match=r"inputs of up\.weight are \(4, 9, 12\)"):
        ActivationSubspace.fit(tiny, [batch])
    with torch.no_grad():
        tiny.norm.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"inputs of up\.weight hold NaN"):
        ActivationSubspace.fit(tiny, [tokens()])
