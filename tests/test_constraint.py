"""How a vector is kept out of a subspace: conditions of the optimum, stored types and places, descriptions."""

import math
from pathlib import Path

import pytest
import torch
from test_geometry import SCOPES, SHAPES, random_gradients, random_vectors

from workbench.geometry.gradients import ReferenceGradients, gradient, reference_gradients
from workbench.geometry.kernels import Difference, gram
from workbench.geometry.spectrum import drift, overlap, participation_ratio
from workbench.geometry.subspace import Subspace


def flat(vectors, names=None):
    return torch.cat([vectors[name].flatten() for name in names or SHAPES])


def metric_of(scales):
    return lambda name: lambda start, stop: scales[name].flatten()[start:stop]


@pytest.mark.parametrize("scope", SCOPES)
def test_in_a_metric_the_step_is_the_constrained_minimiser(scope):
    """KKT of min ½ (x′−x)ᵀ D⁻¹ (x′−x) with Uᵀx′ = 0: D⁻¹(x − x′) lies in the span, and x′ outside it."""
    subspace, step = Subspace.fit(random_gradients(3), 2, scope), random_vectors(5)
    scales = {name: torch.rand_like(v) * 10 ** (4 * torch.rand_like(v)) for name, v in random_vectors(6).items()}
    start = {name: v.clone() for name, v in step.items()}
    (reading,) = subspace.read(step, metric=metric_of(scales))
    subspace.subtract_(step, subspace.removal(reading), metric_of(scales))
    assert subspace.energy(step).share < 1e-24
    multiplier = {name: (start[name] - step[name]) / scales[name] for name in SHAPES}
    assert subspace.energy(multiplier).share == pytest.approx(1, abs=1e-12)
    euclidean = {name: v.clone() for name, v in start.items()}
    subspace.project_out_(euclidean)

    def distance(x):
        return sum(((x[n] - start[n]) ** 2 / scales[n]).sum().item() for n in SHAPES)

    assert distance(step) < distance(euclidean)


@pytest.mark.parametrize("direction", [-1, 1])
@pytest.mark.parametrize("in_metric", [False, True])
def test_on_conflict_no_reference_loss_rises_and_the_step_is_the_nearest_such(direction, in_metric):
    """KKT of GEM's program: feasible, multipliers not negative, and none where a loss falls anyway."""
    gradients = random_gradients(4)
    subspace = Subspace.fit(gradients, None, "global")
    references = torch.stack([flat({n: t[i] for n, t in gradients.tensors.items()}) for i in range(4)])
    scales = {n: torch.rand_like(v) + 0.1 for n, v in random_vectors(6).items()}
    metric = metric_of(scales) if in_metric else None
    diagonal = flat(scales) if in_metric else 1.0
    for seed in range(40, 60):
        x = random_vectors(seed)
        start = flat(x).clone()
        (reading,) = subspace.read(x, metric=metric)
        subspace.subtract_(x, subspace.removal(reading, "conflict", direction), metric)
        slopes = direction * (references @ flat(x))
        assert slopes.max() < 1e-10
        multipliers = torch.linalg.lstsq(references.T, direction * (start - flat(x)) / diagonal).solution
        assert multipliers.min() > -1e-10 and (multipliers * slopes).abs().max() < 1e-9
        assert torch.equal(subspace.conflicts(reading, direction)[0], direction * (references @ start) > 0)


def test_one_reference_in_conflict_is_a_gem():
    gradients = random_gradients(1)
    subspace, r = Subspace.fit(gradients, None, "global"), flat({n: t[0] for n, t in gradients.tensors.items()})
    for seed in range(30, 40):
        g = random_vectors(seed)
        start = flat(g).clone()
        (reading,) = subspace.read(g)
        subspace.subtract_(g, subspace.removal(reading, "conflict", -1))
        torch.testing.assert_close(flat(g), start - min(0, start @ r) / (r @ r) * r, rtol=0, atol=1e-12)


def test_the_rank_follows_the_energy_or_the_random_floor():
    d, m = 3000, 24
    generator = torch.Generator().manual_seed(0)
    planted, _ = torch.linalg.qr(torch.randn(d, 3, generator=generator, dtype=torch.float64))
    rows = 40 * torch.randn(m, 3, generator=generator, dtype=torch.float64) @ planted.T
    rows += torch.randn(m, d, generator=generator, dtype=torch.float64)
    noisy = ReferenceGradients(("d",) * m, {"w": rows})
    noise = ReferenceGradients(("d",) * m, {"w": torch.randn(m, d, generator=generator, dtype=torch.float64)})
    assert Subspace.fit(noisy, "floor").rank == 3 and Subspace.fit(noise, "floor").rank == 0
    sigma = Subspace.fit(noisy, m).blocks["w"].singular_values
    for energy in (0.1, 0.5, 0.9):
        rank = Subspace.fit(noisy, energy).rank
        assert sigma[:rank].square().sum() >= energy * m > sigma[: rank - 1].square().sum()
    for bad in (0.0, 1.5, "most", True):
        with pytest.raises(ValueError, match="rank must be"):
            Subspace.fit(noisy, bad)


def test_a_basis_in_bfloat16_is_left_as_exactly_as_one_in_float32():
    """The stored rows are not orthonormal, but their Gram matrix is known."""
    gradients = random_gradients(4, torch.float32)
    coarse = Subspace.fit(gradients, 4, "global", dtype=torch.bfloat16)
    assert {part.dtype for part in coarse.blocks["all"].parts.values()} == {torch.bfloat16}
    vectors = random_vectors(7, torch.float32)
    coarse.project_out_(vectors)
    assert math.sqrt(coarse.energy(vectors).share) < 2e-7
    fine = Subspace.fit(gradients, 4, "global")
    assert overlap(fine, coarse)["all"] == pytest.approx(1, abs=1e-4)
    assert fine.to(torch.bfloat16).energy(random_vectors(8)).share == pytest.approx(
        coarse.energy(random_vectors(8)).share, rel=1e-5
    )


def test_a_loaded_basis_stays_in_the_file_and_projects_the_same(tmp_path):
    rows = torch.randn(2, 4_000_000)
    subspace = Subspace.fit(ReferenceGradients(("a", "b"), {"w": rows}))
    loaded = Subspace.load(subspace.save(tmp_path / "basis.safetensors"))
    one, other = torch.randn(4_000_000), None
    other = one.clone()
    subspace.project_out_({"w": one})
    loaded.project_out_({"w": other})
    assert torch.equal(one, other)
    assert "basis.safetensors" in Path("/proc/self/maps").read_text(), "the basis was read into memory"


def test_a_fit_in_place_takes_the_memory_of_large_gradients():
    rows = torch.randn(3, 300, 300)
    gradients = ReferenceGradients(tuple("abc"), {"w": rows})
    for rank in (2, 3):
        expected = Subspace.fit(gradients, rank).blocks["w"].basis
        found = Subspace.fit(ReferenceGradients(tuple("abc"), {"w": rows.clone()}), rank, inplace=True).blocks["w"]
        assert torch.equal(found.basis, expected)
        assert found.parts["w"].untyped_storage().nbytes() == rank * 300 * 300 * 4  # no more than the basis stays
    found = Subspace.fit(gradients, inplace=True).blocks["w"]
    assert found.parts["w"].data_ptr() == rows.data_ptr()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("rank", [None, 2, 4])
def test_generators_are_the_mean_gradients_in_the_basis(scope, rank):
    gradients = random_gradients(4)
    gradients = ReferenceGradients(("a", "b", "a", "b"), gradients.tensors)
    subspace = Subspace.fit(gradients, rank, scope)
    for k, domain in enumerate(("a", "b")):
        mean = gradients.mean(domain)
        weights = subspace.mixture(torch.eye(2)[k])
        mixed = {name: torch.zeros_like(t) for name, t in mean.items()}
        subspace.subtract_(mixed, -weights)
        expected = subspace.project_onto(mean)
        for name in SHAPES:
            torch.testing.assert_close(mixed[name], expected[name], rtol=1e-10, atol=1e-12)


def test_long_float32_sums_are_those_of_float64():
    rows = torch.randn(3, 3_000_001) + 0.2
    exact = rows.double() @ rows.double().T
    assert ((gram(rows) - exact) / exact.diagonal().max()).abs().max() < 1e-7
    assert ((gram(rows.bfloat16()) - gram(rows.bfloat16().float())) / exact.max()).abs().max() < 1e-7
    subspace = Subspace.fit(ReferenceGradients(tuple("abc"), {"w": rows}))
    x = torch.randn(3_000_001) + 0.2
    basis = subspace.blocks["w"].basis.double()
    torch.testing.assert_close(
        subspace.read({"w": x})[0].dots[0], basis @ x.double(), rtol=0, atol=2e-7 * x.norm().item()
    )


def test_a_difference_reads_as_the_tensor_it_stands_for():
    subspace, after, before = Subspace.fit(random_gradients(3)), random_vectors(1), random_vectors(2)
    lazy = subspace.read({n: Difference(after[n], before[n]) for n in SHAPES})[0]
    formed = subspace.read({n: after[n] - before[n] for n in SHAPES})[0]
    assert torch.equal(lazy.dots, formed.dots) and torch.equal(lazy.total, formed.total)


def test_a_vector_whose_memory_is_not_in_order_is_projected_in_place():
    gradients = random_gradients(2)
    vectors = random_vectors(3)
    turned = {name: v.T.contiguous().T if v.ndim == 2 else v.clone() for name, v in vectors.items()}
    subspace = Subspace.fit(gradients, None, "global")
    subspace.project_out_(vectors)
    subspace.project_out_(turned)
    for name in SHAPES:
        torch.testing.assert_close(turned[name], vectors[name], rtol=0, atol=1e-14)


def test_overlap_drift_and_participation_have_their_known_values():
    e = torch.eye(6, dtype=torch.float64)
    one = Subspace.fit(ReferenceGradients(("a", "b"), {"w": e[:2]}))
    tilted = torch.stack([e[0], math.cos(0.3) * e[1] + math.sin(0.3) * e[2]])
    other = Subspace.fit(ReferenceGradients(("a", "b"), {"w": tilted}))
    assert overlap(one, other)["w"] == pytest.approx((1 + math.cos(0.3) ** 2) / 2)
    assert drift(one, other) == pytest.approx(math.sin(0.3) ** 2 / 2)
    assert drift(one, one) == pytest.approx(0, abs=1e-12)
    assert participation_ratio(torch.ones(7)) == pytest.approx(7)
    assert participation_ratio(torch.tensor([2.0, 0.0])) == pytest.approx(1)


@pytest.mark.parametrize("reentrant", [True, False])
def test_reference_gradients_keep_checkpointing_on_and_stay_the_same(micro, reentrant):
    model, _ = micro
    ids = torch.randint(5, model.config.vocab_size, (3, 8), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    expected = gradient(model, batch)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    found = gradient(model, batch)
    assert len(calls) == 2 * len(model.model.layers), "the layers were not computed a second time"
    for name, g in expected.items():
        torch.testing.assert_close(found[name], g, rtol=1e-6, atol=1e-9)
    assert model.training and all(m.training for m in model.modules())


def test_a_scaled_loss_gives_the_same_gradient_and_saves_float16_from_underflow(micro):
    model, _ = micro
    ids = torch.randint(5, model.config.vocab_size, (3, 8), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def tiny_loss(model, batch):
        return 1e-6 * model(**batch).loss

    def found(loss_scale, dtype):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            tensors = reference_gradients(model, {"d": [batch]}, loss=tiny_loss, loss_scale=loss_scale).tensors
        return torch.cat([rows.flatten() for rows in tensors.values()])

    exact = found(1.0, torch.float32)
    torch.testing.assert_close(found(2.0**14, torch.float32), exact, rtol=1e-4, atol=1e-14)
    errors = [((found(scale, torch.float16) - exact).norm() / exact.norm()).item() for scale in (1.0, 2.0**14)]
    assert errors[0] > 0.1 and errors[1] < 0.02


@pytest.mark.parametrize("reentrant", [True, False])
def test_dropout_is_off_in_layers_that_checkpoint_and_drop_out_by_themselves(reentrant):
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"vocab_size": 50, "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=16, dropout=0.5, max_position_embeddings=32)).train()
    ids = torch.randint(5, 50, (3, 8), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    expected = gradient(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for name, g in gradient(model, batch).items():
        torch.testing.assert_close(g, expected[name], rtol=1e-5, atol=1e-8)
    assert model.model.decoder.layers[0].dropout == 0.5


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_that_stay_as_they_are_span_the_same_and_constrain_the_same(scope, dtype):
    gradients = random_gradients(3, dtype)
    scales = torch.tensor([1e-3, 1.0, 1e2], dtype=dtype)
    scaled = {n: t * scales.view(-1, *[1] * (t.ndim - 1)) for n, t in gradients.tensors.items()}
    gradients = ReferenceGradients(gradients.domains, scaled)
    made, kept = (Subspace.fit(gradients, None, scope, as_they_are=flag) for flag in (False, True))
    assert (kept.grams - made.grams).abs().max() > 1, "the gradients were made orthonormal"
    for name, cosines in made.principal_angles(kept).items():
        torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=0, atol=1e-6, msg=name)
    one, other = random_vectors(9, dtype), random_vectors(9, dtype)
    torch.testing.assert_close(made.project_out_(one).inside, kept.project_out_(other).inside, rtol=1e-5, atol=0)
    assert math.sqrt(kept.energy(other).share) < (5e-7 if dtype == torch.float32 else 1e-14)
    for name in SHAPES:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-13)
    for block in kept.blocks.values():
        assert (block.basis @ block.basis.T - torch.eye(block.rank, dtype=dtype)).abs().max() < 1e-6
    for name, row in made.coefficients(random_vectors(5, dtype)).items():
        other = kept.coefficients(random_vectors(5, dtype))[name]
        assert row.norm().item() == pytest.approx(other.norm().item(), rel=1e-5)
