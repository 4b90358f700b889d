"""The survey of subspaces and the frame of a step, against bases written out in float64."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import same, weights
from test_geometry import random_gradients, random_vectors
from torch.nn.functional import cosine_similarity

import workbench as wb
from workbench.geometry.activations import ActivationReading, ActivationSubspace
from workbench.geometry.frame import frame_coordinates
from workbench.geometry.subspace import Energy, Subspace
from workbench.geometry.survey import survey
from workbench.views.explorers.steps import BlockSteps


def flat(vectors, names):
    return torch.cat([vectors[name].flatten() for name in names])


@pytest.fixture(scope="module")
def gradients():
    return {"facts": random_gradients(4), "sums": random_gradients(3, seed=500)}


@pytest.mark.parametrize("scope", ["tensor", "layer", "global"])
def test_a_survey_has_at_every_rank_what_fitting_anew_would_give(gradients, scope):
    probe = random_vectors(77)
    seen = survey(gradients, scope, probe)
    assert seen.domains == ["facts", "sums"] and seen.largest_rank == 4
    for rank in (1, 2, 3):
        facts, sums = (Subspace.fit(g, rank, scope) for g in gradients.values())
        angles = facts.principal_angles(sums)
        assert list(seen.blocks) == list(angles) and seen.sizes.tolist() == facts.sizes.tolist()
        for found in (seen.cosines("facts", "sums", rank), seen.cosines("sums", "facts", rank)):
            torch.testing.assert_close(torch.from_numpy(found), torch.stack([*angles.values()]), rtol=0, atol=1e-12)
        shares = facts.energy(probe).shares.numpy()
        np.testing.assert_allclose(seen.removed("facts", rank), shares, atol=1e-13)
        squares = facts.singular_values.square()
        np.testing.assert_allclose(seen.kept("facts", rank), squares[:, :rank].sum(1) / squares.sum(1), rtol=1e-13)
    assert np.isnan(seen.cosines("facts", "sums", 4)[:, 3]).all()  # sums have three directions


def test_what_all_gradients_share_stands_out_of_the_floor_and_what_they_do_not_share_does_not():
    shared, alone = random_vectors(1), random_gradients(4)
    rows = {name: torch.stack([shared[name] + 0.05 * row for row in alone.tensors[name]]) for name in shared}
    alike = type(alone)(("d",) * 4, rows)
    seen = survey({"alike": alike, "alone": alone}, "global")
    assert seen.kept("alike", 1)[0] > 0.99 > 0.6 > seen.kept("alike", 1, floor=True)[0]
    assert abs(seen.kept("alone", 1) - seen.kept("alone", 1, floor=True))[0] < 0.15
    assert seen.effective_rank("alike")[0] < 1.5 < 3.5 < seen.effective_rank("alone")[0]
    assert seen.inside == {}


def test_a_block_without_any_gradient_is_empty_rather_than_an_error():
    gradients = random_gradients(3)
    gradients.tensors["head"].zero_()
    seen = survey({"one": gradients, "other": random_gradients(3, seed=9)}, "tensor", random_vectors(3))
    (at,) = [i for i, name in enumerate(seen.blocks) if name == "head"]
    assert seen.kept("one", 2)[at] == seen.removed("one", 2)[at] == seen.effective_rank("one")[at] == 0
    assert np.isnan(seen.cosines("one", "other", 2)[at]).all()
    with pytest.raises(ValueError, match="at least one domain"):
        survey({})


@pytest.mark.parametrize("scope", ["tensor", "layer", "global"])
def test_the_frame_has_the_coordinates_that_a_basis_by_hand_gives(gradients, scope):
    subspace = Subspace.fit(gradients["facts"], 3, scope)
    g, x = random_vectors(5), random_vectors(6)
    found = torch.stack(frame_coordinates(subspace, *subspace.read(g, x)))
    for i, block in enumerate(subspace.blocks.values()):
        descent, step = -flat(g, block.parameters), flat(x, block.parameters)
        step = step / step.norm()
        first = torch.nn.functional.normalize(block.basis @ descent, dim=0)
        inside = block.basis @ step
        rest = inside - (inside @ first) * first
        torch.testing.assert_close(found[:, i], torch.stack([inside @ first, rest.norm()]), rtol=0, atol=1e-12)
    along, across = frame_coordinates(subspace, *subspace.read(g, {name: -2 * v for name, v in g.items()}))
    torch.testing.assert_close(along, subspace.energy(g).shares.sqrt())
    assert across.max() < 1e-7


def test_a_vector_of_no_length_has_no_place_and_a_gradient_outside_no_shadow(gradients):
    subspace = Subspace.fit(gradients["facts"], 2, "global")
    zero = {name: torch.zeros_like(v) for name, v in random_vectors(0).items()}
    g, outside = random_vectors(5), random_vectors(6)
    read = subspace.read(g, zero)
    assert all(u.isnan().all() for u in frame_coordinates(subspace, *read))
    subspace.project_out_(outside)
    along, across = frame_coordinates(subspace, read[1], read[0])
    assert along == 0 and across.item() == pytest.approx(subspace.energy(g).share ** 0.5)
    assert max(abs(u).item() for u in frame_coordinates(subspace, *subspace.read(g, outside))) < 1e-14


def test_where_there_is_no_gradient_there_is_no_share_and_no_arrow(train, references):
    """lora_A has none before the first step, for lora_B is 0."""
    projection = wb.GradientProjection(references, n_samples=16)
    train([wb.LoRA(), projection], steps=2)
    rows = pd.DataFrame(projection.block_history)
    first = rows[(rows.step == 1) & rows.block.str.contains("lora_A")]
    assert first.gradient_energy.isna().all() and first.leakage.isna().all()
    assert rows[rows.step == 2].gradient_energy.notna().all()
    seen = BlockSteps(rows)
    assert seen.frame(first.block.iloc[0], 1) == {} and len(seen.frame(first.block.iloc[0], 2)) >= 4


def test_a_null_space_of_activations_has_the_same_inner_products_as_its_vectors():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(5, 3, generator=generator) for _ in range(2))
    readings = [
        ActivationReading((m,), m.square().sum()[None], Energy(*[m.square().sum()[None].double()] * 2)) for m in (x, y)
    ]
    inner = ActivationSubspace.inner(None, *readings)
    torch.testing.assert_close(inner, (x * y).sum()[None].double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("technique", ["gradient", "update", "none", "null space"])
def test_training_records_the_frame_of_every_step_and_block(train, references, technique):
    how = {"refresh": 1, "n_samples": 16, "seed": 3}
    build = {"null space": lambda: wb.NullSpaceProjection(references, **how)}
    projection = build.get(technique, lambda: wb.GradientProjection(references, side=technique, **how))()
    train(projection)
    rows = pd.DataFrame(projection.block_history)
    assert len(rows) == 4 * len(projection.subspace.names) and rows.notna().all(axis=None)
    inside = np.hypot(rows.realised_u1, rows.realised_u2)
    np.testing.assert_allclose(inside, rows.leakage, atol=1e-6)
    if technique in ("gradient", "none"):
        assert (rows.step_u1 == rows.realised_u1).all() and inside.max() > 1e-3
    else:
        assert rows.realised_u1.abs().max() < 1e-5
        np.testing.assert_allclose(np.hypot(rows.step_u1, rows.step_u2) ** 2, rows.removed_energy, atol=1e-6)
    if technique == "none":  # Adam's first step is down the signs of the gradient, so along its shadow, not against it
        assert (rows[rows.step == 1].step_u1 > 0).mean() > 0.9


def test_the_cosine_inside_is_that_of_the_notebook(gradients):
    """Cosine of the parts inside, of descent and step, is u₁ over the length inside."""
    subspace = Subspace.fit(gradients["facts"], 3, "global")
    g, x = random_vectors(5), random_vectors(6)
    (u,), (v,) = frame_coordinates(subspace, *subspace.read(g, x))
    inside = [subspace.coefficients(vector)["all"] for vector in (g, x)]
    assert u / np.hypot(u, v) == pytest.approx(-cosine_similarity(*inside, dim=0).item(), abs=1e-12)


def test_weights_do_not_depend_on_what_is_recorded(train, references):
    plain = weights(train()[1])
    measured = weights(train(wb.GradientProjection(references, side="none", n_samples=16))[1])
    assert same(plain, measured)


def test_a_run_with_a_projection_keeps_what_it_measured_by_block(train, references):
    projection = wb.GradientProjection(references, side="gradient", n_samples=16)
    run, _ = train(projection)
    kept = pd.read_parquet(run.file("blocks.parquet"))
    pd.testing.assert_frame_equal(
        kept.astype({"block": "str"}), pd.DataFrame(projection.block_history), check_dtype=False
    )
    spectrum = pd.read_parquet(run.file("spectrum.parquet")).groupby("block", observed=True)["singular_value"]
    fitted = projection.subspace.blocks
    assert {*spectrum.groups} == {*fitted}
    for block, values in spectrum:
        np.testing.assert_allclose(values, fitted[block].singular_values, rtol=1e-6)
    plain = train()[0]
    assert not plain.file("blocks.parquet").exists() and not plain.file("spectrum.parquet").exists()
