"""Subspaces and reference gradients: planted truths, identities, and references in float64."""

import math

import pytest
import torch

from workbench.geometry.gradients import ReferenceGradients, gradient, reference_gradients
from workbench.geometry.spectrum import effective_rank
from workbench.geometry.subspace import Subspace, group_parameters

SHAPES = {"layers.0.a": (6, 5), "layers.0.b": (7,), "layers.1.a": (4, 4), "head": (3, 3)}
SCOPES = ["tensor", "layer", "global"]


def random_vectors(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in SHAPES.items()}


def random_gradients(m, dtype=torch.float64, seed=0):
    rows = [random_vectors(seed + 17 * i, dtype) for i in range(m)]
    return ReferenceGradients(tuple(f"d{i}" for i in range(m)), {n: torch.stack([r[n] for r in rows]) for n in SHAPES})


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("rank", [None, 1, 3])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-14), (torch.float32, 5e-7)])
def test_bases_are_orthonormal_and_what_is_left_is_orthogonal_to_them(scope, rank, dtype, error):
    subspace = Subspace.fit(random_gradients(3, dtype), rank, scope)
    vectors = random_vectors(99, dtype)
    before = subspace.energy(vectors)
    assert torch.allclose(subspace.project_out_(vectors).inside, before.inside)
    for name, block in subspace.blocks.items():
        identity = torch.eye(block.rank, dtype=dtype)
        assert (block.basis @ block.basis.T - identity).abs().max() <= 2 * error, name
    assert math.sqrt(subspace.energy(vectors).share) <= error


def test_without_a_rank_every_reference_gradient_is_removed_to_first_order():
    gradients = random_gradients(3)
    vectors = random_vectors(5)
    Subspace.fit(gradients, None, "global").project_out_(vectors)
    for i in range(3):
        dot = sum((vectors[n] * gradients.tensors[n][i]).sum() for n in SHAPES)
        assert abs(dot) < 1e-12


@pytest.mark.parametrize("n_sets", [1, 2])
def test_the_published_rule_is_the_projection_on_a_qr_basis_of_each_tensor(n_sets):
    """The official code takes one or two reference sets, each tensor by itself."""
    gradients, vectors = random_gradients(n_sets), random_vectors(8)
    expected = {}
    for name, g in vectors.items():
        q, _ = torch.linalg.qr(gradients.tensors[name].flatten(1).T)
        expected[name] = (g.flatten() - q @ (q.T @ g.flatten())).view(g.shape)
    Subspace.fit(gradients, None, "tensor").project_out_(vectors)
    for name in SHAPES:
        torch.testing.assert_close(vectors[name], expected[name], rtol=0, atol=1e-13)


def test_a_planted_subspace_is_recovered_from_noisy_gradients():
    d, r, m = 400, 3, 40
    generator = torch.Generator().manual_seed(1)
    planted, _ = torch.linalg.qr(torch.randn(d, r, generator=generator, dtype=torch.float64))
    rows = torch.randn(m, r, generator=generator, dtype=torch.float64) @ planted.T
    rows += 1e-3 * torch.randn(m, d, generator=generator, dtype=torch.float64)
    subspace = Subspace.fit(ReferenceGradients(("d",) * m, {"w": rows}), r)
    cosines = torch.linalg.svdvals(subspace.blocks["w"].basis @ planted)
    assert cosines.min() > 1 - 1e-4
    sigma = subspace.blocks["w"].singular_values
    assert (sigma[:r] > 30 * sigma[r]).all()


def test_principal_angles_are_the_planted_ones():
    e = torch.eye(4, dtype=torch.float64)
    tilted = torch.stack([e[0], math.cos(0.3) * e[1] + math.sin(0.3) * e[2]])
    one = Subspace.fit(ReferenceGradients(("a", "b"), {"w": e[:2]}))
    two = Subspace.fit(ReferenceGradients(("a", "b"), {"w": tilted}))
    torch.testing.assert_close(one.principal_angles(two)["w"], torch.tensor([1.0, math.cos(0.3)], dtype=torch.float64))
    with pytest.raises(ValueError, match="same blocks"):
        one.principal_angles(Subspace.fit(random_gradients(2)))


def test_a_basis_of_many_fp32_numbers_is_orthonormal_to_fp32():
    rows = torch.randn(4, 200_000, generator=torch.Generator().manual_seed(0)) + 0.5
    basis = Subspace.fit(ReferenceGradients(tuple("abcd"), {"w": rows}), 4).blocks["w"].basis.double()
    assert (basis @ basis.T - torch.eye(4).double()).abs().max() < 3e-7


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("rank", [None, 2])
def test_scaling_and_permuting_references_changes_nothing(scope, rank):
    gradients = random_gradients(3)
    scales = torch.tensor([3.0, 1e-4, 70.0], dtype=torch.float64)
    changed = {n: (t * scales.view(-1, *[1] * (t.ndim - 1)))[[2, 0, 1]] for n, t in gradients.tensors.items()}
    other = Subspace.fit(ReferenceGradients(gradients.domains, changed), rank, scope)
    for cosines in Subspace.fit(gradients, rank, scope).principal_angles(other).values():
        torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=0, atol=1e-10)


def test_duplicates_and_zeros_span_nothing_new():
    row = random_vectors(3)
    twice = {n: torch.stack([t, -2 * t, torch.zeros_like(t)]) for n, t in row.items()}
    for rank in (None, 2):
        subspace = Subspace.fit(ReferenceGradients(("a", "b", "c"), twice), rank)
        assert {block.rank for block in subspace.blocks.values()} == {1}
    nothing = {n: torch.zeros(2, *shape) for n, shape in SHAPES.items()}
    assert Subspace.fit(ReferenceGradients(("a", "b"), nothing)).rank == 0


def test_rounding_noise_is_no_direction():
    row = torch.randn(1, 5000, generator=torch.Generator().manual_seed(2))
    parallel = ReferenceGradients(tuple("abcd"), {"w": row * torch.tensor([[1.0], [2.0], [3.0], [-4.0]])})
    assert Subspace.fit(parallel, 4).rank == 1 == Subspace.fit(parallel).rank


def test_a_full_rank_block_leaves_nothing_and_rank_zero_touches_nothing():
    gradients = random_gradients(20)
    vectors = random_vectors(4)
    untouched = {n: t.clone() for n, t in vectors.items()}
    assert Subspace.fit(gradients, 0).project_out_(vectors).share == 0
    assert all(torch.equal(vectors[n], untouched[n]) for n in SHAPES)
    Subspace.fit(gradients, 20).project_out_(vectors)
    assert vectors["head"].norm() < 1e-12 and vectors["layers.0.b"].norm() < 1e-12
    assert vectors["layers.0.a"].norm() > 1


def test_bad_input_is_refused():
    gradients = random_gradients(2)
    with pytest.raises(ValueError, match="rank must lie between 0 and the number of reference gradients, 2, got 3"):
        Subspace.fit(gradients, 3)
    with pytest.raises(ValueError, match="scope must be one of"):
        Subspace.fit(gradients, 1, "block")
    broken = {n: t.clone() for n, t in gradients.tensors.items()}
    broken["head"][0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="head hold NaN"):
        Subspace.fit(ReferenceGradients(gradients.domains, broken))


def test_parameters_are_grouped_by_transformer_layer():
    names = ["model.embed.weight", "model.layers.0.q.weight", "model.layers.0.k.weight", "model.layers.11.q.weight"]
    assert group_parameters(names, "layer") == {
        "model.embed.weight": ["model.embed.weight"],
        "model.layers.0": ["model.layers.0.q.weight", "model.layers.0.k.weight"],
        "model.layers.11": ["model.layers.11.q.weight"],
    }
    assert group_parameters(["transformer.h.3.mlp.weight"], "layer") == {
        "transformer.h.3": ["transformer.h.3.mlp.weight"]
    }
    assert list(group_parameters(names, "global")) == ["all"]


def test_a_random_direction_leaks_the_random_floor():
    subspace = Subspace.fit(random_gradients(4), 3, "global")
    shares = [subspace.energy(random_vectors(1000 + i)).share for i in range(400)]
    assert math.sqrt(sum(shares) / len(shares)) == pytest.approx(subspace.random_floor, rel=0.06)


def test_effective_rank_of_a_flat_and_of_a_peaked_spectrum():
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([1.0, 0.0, 0.0])) == pytest.approx(1)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_saved_subspace_comes_back_the_same(scope, tmp_path):
    subspace = Subspace.fit(random_gradients(3, torch.float32), 2, scope)
    loaded = Subspace.load(subspace.save(tmp_path / "subspace.safetensors"))
    assert (loaded.scope, dict(loaded.provenance)) == (scope, {"domains": ["d0", "d1", "d2"], "rank": 2})
    for name, block in subspace.blocks.items():
        assert torch.equal(block.basis, loaded.blocks[name].basis)
        assert dict(block.parameters) == dict(loaded.blocks[name].parameters)
    assert [p.name for p in tmp_path.iterdir()] == ["subspace.safetensors"]


def batch(model, seed=0, rows=4):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, model.config.vocab_size, (rows, 9), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def test_a_reference_gradient_is_autograds_and_disturbs_nothing(micro):
    model, _ = micro
    model.train()
    model.config.attention_dropout = 0.5
    names, parameters = zip(*model.named_parameters(), strict=True)
    waiting = {n: torch.randn_like(p) for n, p in zip(names, parameters, strict=True)}
    for n, p in model.named_parameters():
        p.grad = waiting[n].clone()
    state = torch.get_rng_state()
    found = gradient(model, batch(model))
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(p.grad, waiting[n]) for n, p in model.named_parameters())
    model.eval()
    expected = torch.autograd.grad(model(**batch(model)).loss, parameters)
    for name, g in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], g, rtol=1e-5, atol=1e-8)


def test_several_batches_count_as_one_of_all_their_rows(micro):
    model, _ = micro
    whole = batch(model, rows=7)
    whole["labels"] = whole["labels"].clone()
    whole["labels"][:3, :6] = -100  # rows of unlike numbers of labels
    parts = [{key: value[rows] for key, value in whole.items()} for rows in (slice(0, 2), slice(2, 6), slice(6, 7))]
    together = gradient(model, parts)
    for name, expected in gradient(model, whole).items():
        torch.testing.assert_close(together[name], expected, rtol=1e-4, atol=1e-7)


def test_one_gradient_a_batch_with_its_domain(micro):
    model, _ = micro
    found = reference_gradients(model, {"a": [batch(model, 1), batch(model, 2)], "b": [batch(model, 3)]})
    assert found.domains == ("a", "a", "b") and len(found) == 3
    both = {n: (gradient(model, batch(model, 1))[n] + gradient(model, batch(model, 2))[n]) / 2 for n in found.tensors}
    for name, mean in found.mean("a").items():
        torch.testing.assert_close(mean, both[name])
    with pytest.raises(ValueError, match="domain must be one of"):
        found.mean("c")
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="No parameter requires a gradient"):
        gradient(model, batch(model))


def test_a_gradient_with_nan_is_named(micro):
    model, _ = micro
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"embed_tokens\.weight holds NaN"):
        gradient(model, batch(model))
