"""GEM's quadratic program: optimality conditions, closed forms, and SciPy's non-negative least squares."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from workbench.geometry.cone import deconflicted_sum, nonnegative_qp


def program(n_blocks, m, d, seed=0):
    """References R, (B, d, m), a vector x, (B, d), and the program H = RᵀR, b = Rᵀx that they make."""
    generator = torch.Generator().manual_seed(seed)
    references = torch.randn(n_blocks, d, m, generator=generator, dtype=torch.float64)
    x = torch.randn(n_blocks, d, generator=generator, dtype=torch.float64)
    return references, x, *dual(references, x)


def dual(references, x):
    return references.mT @ references, (references.mT @ x[:, :, None]).squeeze(2)


def correct(references, x, v):
    return x - (references @ v[:, :, None]).squeeze(2)


def kkt_violation(gram, target, v):
    """The worst slope against the optimality conditions, relative to b, over unit references; v ≥ 0 is asserted."""
    lengths = gram.diagonal(dim1=1, dim2=2).sqrt()
    slope = (target - (gram @ v[:, :, None]).squeeze(2)) / lengths.where(lengths > 0, 1.0)
    largest = (target / lengths.where(lengths > 0, 1.0)).abs().amax(1, keepdim=True)
    assert (v >= 0).all()
    return (torch.where(v > 0, slope.abs(), slope.clamp(min=0)) / largest.where(largest > 0, 1.0)).max()


@pytest.mark.parametrize("m", [1, 2, 3, 4, 7, 16, 32])
@pytest.mark.parametrize("d", [2, 5, 60])
def test_every_block_meets_the_optimality_conditions(m, d):
    references, x, gram, target = program(100, m, d)
    v = nonnegative_qp(gram, target)
    assert kkt_violation(gram, target, v) < 1e-10
    left = (references.mT @ correct(references, x, v)[:, :, None]).squeeze(2)
    assert left.max() < 1e-10 * target.abs().max()  # no reference rises any more


@pytest.mark.parametrize(("m", "d"), [(2, 5), (4, 3), (8, 20), (8, 4), (32, 40), (32, 10)])
def test_it_agrees_with_scipy(m, d):
    references, x, gram, target = program(20, m, d, seed=3)
    corrected = correct(references, x, nonnegative_qp(gram, target))
    for block in range(20):
        _, distance = optimize.nnls(references[block].numpy(), x[block].numpy())
        assert corrected[block].norm().item() == pytest.approx(distance, rel=1e-9, abs=1e-12)


def test_one_reference_is_a_gem():
    gram = torch.tensor([4.0, 9.0, 0.0, 1e-12]).view(4, 1, 1)
    target = torch.tensor([[2.0], [-3.0], [0.0], [1e-6]])
    expected = torch.tensor([[0.5], [0.0], [0.0], [1e6]], dtype=torch.float64)
    torch.testing.assert_close(nonnegative_qp(gram, target), expected, rtol=1e-6, atol=0)


def test_orthogonal_references_are_corrected_each_by_itself():
    gram = torch.diag_embed(torch.tensor([[1.0, 4.0, 9.0]], dtype=torch.float64))
    target = torch.tensor([[-1.0, 2.0, 3.0]], dtype=torch.float64)
    assert torch.equal(nonnegative_qp(gram, target), torch.tensor([[0.0, 0.5, 1 / 3]], dtype=torch.float64))


def test_where_all_stay_in_conflict_it_is_the_orthogonal_projection():
    _, _, gram, _ = program(50, 6, 30, seed=1)
    wanted = torch.rand(50, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.1
    target = (gram @ wanted[:, :, None]).squeeze(2)
    torch.testing.assert_close(nonnegative_qp(gram, target), wanted, rtol=1e-10, atol=1e-12)


def test_blocks_without_a_conflict_are_left_alone():
    _, _, gram, target = program(30, 4, 10)
    target[::2] = -target[::2].abs()
    v = nonnegative_qp(gram, target)
    assert not v[::2].any() and v[1::2].any()
    assert nonnegative_qp(gram[:0], target[:0]).shape == (0, 4)


def test_blocks_do_not_know_of_each_other():
    _, _, gram, target = program(40, 5, 6, seed=4)
    alone = torch.cat([nonnegative_qp(gram[i : i + 1], target[i : i + 1]) for i in range(40)])
    torch.testing.assert_close(nonnegative_qp(gram, target), alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("m", [2, 5, 12])
@pytest.mark.parametrize("near", [0.0, 1e-12, 1e-8, 1e-5])
def test_repeated_parallel_and_zero_references_are_welcome(m, near):
    references, x, _, _ = program(60, m, 20, seed=5)
    lengths = torch.logspace(-3, 3, m, dtype=torch.float64)
    noise = near * torch.randn(60, 20, m, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    many = torch.cat([references, references * lengths + noise, torch.zeros_like(references[:, :, :1])], dim=2)
    v = nonnegative_qp(*dual(many, x))
    assert kkt_violation(*dual(many, x), v) < 1e-10
    once = correct(references, x, nonnegative_qp(*dual(references, x)))
    torch.testing.assert_close(correct(many, x, v), once, rtol=0, atol=1e-10 + 1e4 * near)


def test_opposed_references_leave_what_is_orthogonal_to_both():
    references, x, _, _ = program(50, 1, 8, seed=7)
    both = torch.cat([references, -3 * references], dim=2)
    corrected = correct(both, x, nonnegative_qp(*dual(both, x)))
    unit = references.squeeze(2) / references.squeeze(2).norm(dim=1, keepdim=True)
    torch.testing.assert_close(corrected, x - (x * unit).sum(1, keepdim=True) * unit, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_contradictions_leave_the_other_constraints_met_and_the_answer_finite(dtype):
    gram = torch.tensor([[[1.0, -1, 0], [-1, 1, 0], [0, 0, 2]], [[0.0, 0, 0], [0, 1, 0], [0, 0, 1]]], dtype=dtype)
    gram[0, 0, 1] += torch.finfo(dtype).eps / 2  # opposed but for rounding
    v = nonnegative_qp(gram, torch.tensor([[2.0, 1, 4], [5, 3, -1]], dtype=dtype))
    torch.testing.assert_close(v, torch.tensor([[2.0, 0, 2], [0, 3, 0]], dtype=torch.float64))


def test_nearly_opposed_references_take_a_bounded_time_and_stay_feasible():
    references, x, _, _ = program(4, 16, 16, seed=8)
    noise = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    v = nonnegative_qp(*dual(torch.cat([references, -references + 1e-7 * noise], dim=2), x))
    assert torch.isfinite(v).all() and (v >= 0).all()


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000), st.lists(st.integers(-9, 9), min_size=9))
def test_lengths_of_references_and_of_the_vector_do_not_matter(m, d, seed, exponents):
    references, x, gram, target = program(3, m, d, seed)
    expected = correct(references, x, nonnegative_qp(gram, target))
    scaled = references * 10.0 ** torch.tensor(exponents[:m], dtype=torch.float64)
    v = nonnegative_qp(*dual(scaled, 1e5 * x))
    assert kkt_violation(*dual(scaled, 1e5 * x), v) < 1e-10
    torch.testing.assert_close(correct(scaled, 1e5 * x, v) / 1e5, expected, rtol=0, atol=1e-8)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.data())
def test_integers_of_any_degeneracy_are_solved(m, d, data):
    numbers = st.lists(st.integers(-2, 2), min_size=d, max_size=d)
    references = torch.tensor([data.draw(st.lists(numbers, min_size=m, max_size=m))], dtype=torch.float64).mT
    x = torch.tensor([data.draw(numbers)], dtype=torch.float64)
    gram, target = dual(references, x)
    v = nonnegative_qp(gram, target)
    assert kkt_violation(gram, target, v) < 1e-10
    corrected = correct(references, x, v)  # Moreau: the projection on the cone and the rest are orthogonal
    assert abs((corrected * (x - corrected)).sum()) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_floating_type_is_computed_in_float64(dtype):
    _, _, gram, target = program(5, 3, 40)
    gram, target = gram.to(dtype), target.to(dtype)
    v = nonnegative_qp(gram, target)
    assert v.dtype == torch.float64 and torch.equal(v, nonnegative_qp(gram.double(), target.double()))


def test_bad_input_is_refused():
    _, _, gram, target = program(2, 3, 5)
    for wrong in [(gram[0], target), (gram[:, :2], target), (gram, target[:, :2]), (gram, target[:1])]:
        with pytest.raises(ValueError, match=r"gram must be \(B, m, m\) and target \(B, m\), got"):
            nonnegative_qp(*wrong)
    for broken in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            nonnegative_qp(gram, target.fill_(broken))
    with pytest.raises(ValueError, match="positive semi-definite"):
        nonnegative_qp(-gram, torch.ones_like(target))


# --- sums without conflicts -------------------------------------------------------------------------------------------


def test_two_gradients_in_conflict_by_hand():
    """g = (1, 0) and r = (−1, 1) point apart: g loses −½r, r loses −g, and the sum is (½, ½) + (0, 1)."""
    g = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    both = deconflicted_sum(g @ g.T, [[1], [0]])
    torch.testing.assert_close(both, torch.tensor([2.0, 1.5], dtype=torch.float64))
    torch.testing.assert_close(both @ g.double(), torch.tensor([0.5, 1.5], dtype=torch.float64))
    torch.testing.assert_close(deconflicted_sum(g @ g.T, [[1], []]) @ g.double(), torch.tensor([-0.5, 1.5]).double())
    assert deconflicted_sum(g.abs() @ g.abs().T, [[1], [0]]).tolist() == [1, 1]  # no conflict, the plain sum
    assert deconflicted_sum(torch.zeros(2, 2), [[0, 1], [1, 0]]).tolist() == [1, 1]


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_sum_is_that_of_pcgrad_vector_by_vector(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(n, d, generator=generator, dtype=torch.float64)
    orders = [torch.randperm(n, generator=generator).tolist() for _ in range(n)]
    total = torch.zeros(d, dtype=torch.float64)
    for i, order in enumerate(orders):
        freed = gradients[i].clone()
        for j in order:
            dot = freed @ gradients[j]
            if j != i and dot < 0:
                freed -= dot / gradients[j].square().sum() * gradients[j]
        total += freed
    found = deconflicted_sum(gradients @ gradients.T, orders) @ gradients
    torch.testing.assert_close(found, total, rtol=1e-8, atol=1e-8 * gradients.abs().max().item())
