"""Summaries of gradient streams: the guarantee of Frequent Directions, planted subspaces, resuming bit for bit."""

import json
import math

import pytest
import torch

from workbench.geometry.streaming import FrequentDirections, SlidingWindow
from workbench.geometry.subspace import group_parameters

SHAPES = {"layers.0.a": (6, 5), "layers.0.b": (7,), "layers.1.a": (4, 4), "scale": ()}
SCOPES = ["tensor", "layer", "global"]


def stream(n, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        yield {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for name, shape in SHAPES.items()
        }


def planted_rows(n, d, r, noise=0.1, seed=0):
    """(n, d) rows of a planted low rank under noise, and the plane, (d, r), with orthonormal columns."""
    generator = torch.Generator().manual_seed(seed)
    plane, _ = torch.linalg.qr(torch.randn(d, r, generator=generator, dtype=torch.float64))
    weights = torch.randn(n, r, generator=generator, dtype=torch.float64) * torch.arange(r, 0, -1)
    return weights @ plane.T + noise * torch.randn(n, d, generator=generator, dtype=torch.float64), plane


def sketch_of(rows, size, **settings):
    sketch = FrequentDirections(size, **settings)
    for row in rows:
        sketch.update({"w": row})
    return sketch


def matrix(tensors, names):
    return torch.cat([tensors[name].reshape(len(tensors[name]), -1) for name in names], dim=1)


def require_guarantee(g, s, size, lost):
    """0 ⪯ GᵀG − SᵀS ⪯ min_k ‖G − G_k‖²_F/(ℓ − k), and ⪯ what the sketch says it lost."""
    gap = torch.linalg.eigvalsh(g.T @ g - s.T @ s)
    energies = torch.linalg.svdvals(g).square()
    tails = energies.sum() - torch.cat([energies.new_zeros(1), energies.cumsum(0)])
    bound = min((tails[k] / (size - k)).item() for k in range(min(size, len(tails))))
    rounding = 1e-12 * energies.sum()
    assert gap.min() >= -rounding
    assert gap.max() <= lost + rounding <= bound + 2 * rounding
    return bound


@pytest.mark.parametrize("size", [1, 2, 5, 12, 30])
@pytest.mark.parametrize("noise", [0.0, 0.1, 3.0])
def test_the_guarantee_holds_at_every_moment(size, noise):
    rows, _ = planted_rows(60, 25, 4, noise)
    sketch = FrequentDirections(size, normalise=False)
    for n, row in enumerate(rows, start=1):
        sketch.update({"w": row})
        if n % 7 == 0:
            require_guarantee(rows[:n], sketch.gradients().tensors["w"], size, sketch.lost.get("w", 0.0))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("normalise", [True, False])
def test_the_guarantee_holds_in_every_block(scope, normalise):
    sketch, seen = FrequentDirections(4, scope, normalise), list(stream(40))
    for gradient in seen:
        sketch.update(gradient)
    kept = sketch.gradients().tensors
    assert {name: t.shape[1:] for name, t in kept.items()} == SHAPES
    for block, names in group_parameters(SHAPES, scope).items():
        g = matrix({name: torch.stack([gradient[name] for gradient in seen]) for name in SHAPES}, names)
        g = g / g.norm(dim=1, keepdim=True) if normalise else g
        require_guarantee(g, matrix(kept, names), 4, sketch.lost.get(block, 0.0))


def test_a_low_rank_stream_loses_nothing():
    rows, _ = planted_rows(200, 50, 4, noise=0.0)
    sketch = sketch_of(rows, 5, normalise=False)
    s = sketch.gradients().tensors["w"]
    torch.testing.assert_close(s.T @ s, rows.T @ rows, rtol=0, atol=1e-10)
    assert sketch.lost["w"] < 1e-10


def test_a_planted_subspace_is_recovered_although_few_rows_are_kept():
    rows, plane = planted_rows(500, 300, 3, noise=0.02)
    s = sketch_of(rows, 12, normalise=False).gradients().tensors["w"]
    basis = torch.linalg.svd(s, full_matrices=False).Vh[:3]
    assert torch.linalg.svdvals(basis @ plane).min() > 1 - 1e-3


def test_what_is_frequent_outlives_what_is_recent():
    axes = torch.eye(40, dtype=torch.float64)
    rows = torch.cat([axes[:1].expand(100, -1), axes[1:31]])
    s, window = sketch_of(rows, 4).gradients().tensors["w"], SlidingWindow(4)
    for row in rows:
        window.update({"w": row})
    assert (s[:, 0].square().sum() - 100).abs() <= 30 / 3 and not window.gradients().tensors["w"][:, 0].any()


def test_as_many_gradients_as_there_are_rows_are_kept_as_they_are():
    seen = list(stream(5))
    sketch = FrequentDirections(5, normalise=False)
    for gradient in seen:
        sketch.update(gradient)
    kept = sketch.gradients()
    assert len(kept) == 5 and sketch.lost == {}
    for name in SHAPES:
        assert torch.equal(kept.tensors[name], torch.stack([gradient[name] for gradient in seen]))


@pytest.mark.parametrize("scope", SCOPES)
def test_normalised_gradients_count_alike_in_every_block(scope):
    scales = [1e-6, 1.0, 1e8, 3.0]
    plain, scaled = FrequentDirections(8, scope), FrequentDirections(8, scope)
    for gradient, scale in zip(stream(4), scales, strict=True):
        plain.update(gradient)
        scaled.update({name: scale * tensor for name, tensor in gradient.items()})
    for names in group_parameters(SHAPES, scope).values():
        rows = matrix(scaled.gradients().tensors, names)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(4, dtype=torch.float64))
        torch.testing.assert_close(rows, matrix(plain.gradients().tensors, names))


def test_a_zero_in_one_block_takes_no_row_there():
    sketch = FrequentDirections(3)
    with pytest.raises(ValueError, match="No gradient but zeros"):
        sketch.gradients()
    for i, row in enumerate(torch.eye(3, dtype=torch.float64)):
        sketch.update({"a": row, "b": row * (i == 1)})
    kept = sketch.gradients()
    assert len(kept) == 3
    assert torch.equal(kept.tensors["b"].norm(dim=1), torch.tensor([1.0, 0, 0], dtype=torch.float64))


def test_equal_singular_values_leave_together():
    sketch = sketch_of(torch.eye(6, dtype=torch.float64), 3)
    assert len(sketch.gradients()) == 3 and sketch.lost["w"] == pytest.approx(1)  # 1, 2, 3 left when 4 came


def test_a_long_stream_of_fp32_keeps_the_guarantee_to_fp32(monkeypatch):
    monkeypatch.setattr("workbench.geometry.streaming._CHUNK", 64)  # several chunks per parameter
    rows, _ = planted_rows(600, 1000, 3, noise=0.02)
    sketch = sketch_of(rows.float(), 10, normalise=False)
    s = sketch.gradients().tensors["w"]
    assert s.dtype == torch.float32
    exact = sketch_of(rows, 10, normalise=False)
    gap = torch.linalg.eigvalsh(rows.T @ rows - s.double().T @ s.double())
    assert gap.min() > -1e-5 * rows.norm() ** 2 and gap.max() < exact.lost["w"] + 1e-5 * rows.norm() ** 2
    assert sketch.lost["w"] == pytest.approx(exact.lost["w"], rel=1e-3)


@pytest.mark.parametrize("n", [1, 3, 4, 5, 11])
def test_a_window_holds_exactly_the_latest(n):
    window, seen = SlidingWindow(4), list(stream(n))
    for i, gradient in enumerate(seen):
        window.update(gradient, f"d{i}")
    kept = window.gradients()
    assert sorted(kept.domains) == sorted(f"d{i}" for i in range(max(0, n - 4), n))
    for row, domain in enumerate(kept.domains):
        for name in SHAPES:
            assert torch.equal(kept.tensors[name][row], seen[int(domain[1:])][name])


@pytest.mark.parametrize("make", [lambda: SlidingWindow(3), lambda: FrequentDirections(3, "layer")])
def test_gradients_are_views_of_rows_that_stay_in_their_place(make):
    summary = make()
    places = set()
    for gradient in stream(10, torch.bfloat16):
        summary.update(gradient)
        kept = summary.gradients().tensors
        places.add(tuple(t.data_ptr() for t in kept.values()))
        assert {t.dtype for t in kept.values()} == {torch.float32}
    assert len(places) == 1


@pytest.mark.parametrize(
    "make",
    [lambda: SlidingWindow(4), lambda: FrequentDirections(4, "layer"), lambda: FrequentDirections(4, "global", False)],
)
@pytest.mark.parametrize("stop", [0, 2, 4, 9])
def test_a_resumed_stream_goes_on_bit_for_bit(make, stop, tmp_path):
    seen = list(stream(14, torch.float32))
    straight, first, second = make(), make(), make()
    for gradient in seen:
        straight.update(gradient, "a")
    for gradient in seen[:stop]:
        first.update(gradient, "a")
    state = first.state_dict()
    torch.save(state["rows"], tmp_path / "rows.pt")
    values = json.loads(json.dumps({name: value for name, value in state.items() if name != "rows"}))
    second.load_state_dict(values | {"rows": torch.load(tmp_path / "rows.pt")})
    for gradient in seen[stop:]:
        second.update(gradient, "a")
    one, two = straight.gradients(), second.gradients()
    assert one.domains == two.domains
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in SHAPES)
    assert getattr(straight, "lost", None) == getattr(second, "lost", None)


def test_a_loaded_state_is_not_shared():
    first, second = SlidingWindow(2), SlidingWindow(2)
    one, two = stream(2)
    first.update(one)
    second.load_state_dict(first.state_dict())
    second.update(two)
    second.update(two)
    assert len(first.gradients()) == 1 and torch.equal(first.gradients().tensors["layers.0.b"][0], one["layers.0.b"])


@pytest.mark.parametrize("make", [lambda: SlidingWindow(3), lambda: FrequentDirections(3)])
def test_a_gradient_that_does_not_fit_is_refused_and_changes_nothing(make):
    summary = make()
    with pytest.raises(ValueError, match="at least one parameter"):
        summary.update({})
    good, other = stream(2)
    with pytest.raises(FloatingPointError, match=r"layers\.0\.b holds NaN or infinity"):
        summary.update(good | {"layers.0.b": torch.full((7,), math.nan)})
    assert not summary.state_dict()["rows"]
    summary.update(good)
    before = {name: tensor.clone() for name, tensor in summary.state_dict()["rows"].items()}
    with pytest.raises(ValueError, match=r"layers\.0\.b', \(7,\), \(8,\)"):
        summary.update(other | {"layers.0.b": torch.ones(8)})
    with pytest.raises(ValueError, match=r"new', None, \(2,\)"):
        summary.update(other | {"new": torch.ones(2)})
    with pytest.raises(ValueError, match=r"scale', \(\), None"):
        summary.update({name: tensor for name, tensor in other.items() if name != "scale"})
    with pytest.raises(FloatingPointError, match="scale holds NaN"):
        summary.update(other | {"scale": torch.tensor(math.inf)})
    assert len(summary.gradients()) == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in summary.state_dict()["rows"].items())


def test_bad_settings_are_refused():
    for summary in (SlidingWindow, FrequentDirections):
        with pytest.raises(ValueError, match="size must be at least 1, got 0"):
            summary(0)
    with pytest.raises(ValueError, match="scope must be one of"):
        FrequentDirections(2, "block")
    with pytest.raises(ValueError, match="No gradient but zeros"):
        SlidingWindow(2).gradients()
    with pytest.raises(ValueError, match=r"saved with \{'size': 2\}"):
        SlidingWindow(3).load_state_dict(SlidingWindow(2).state_dict())
    with pytest.raises(ValueError, match="'scope': 'layer'"):
        FrequentDirections(3).load_state_dict(FrequentDirections(3, "layer").state_dict())
