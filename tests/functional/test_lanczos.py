"""Leading eigenpairs against dense decompositions of matrices whose spectra are awkward in different ways."""

import math

import pytest
import torch

from lightning_gp.functional.krylov import LanczosBasis
from lightning_gp.functional.lanczos import leading_eigenpairs, tridiagonal

SPECTRA = {
    "separated": [10.0, 7.0, 5.0, *torch.linspace(-1, 1, 97).tolist()],
    "clustered": [10.0, 9.99, 9.98, 9.9, 9.8, 9.5, *torch.linspace(0, 1, 94).tolist()],
    "clustered at the border": [10.0, 5.0, 4.99, 4.98, 4.97, *torch.linspace(0, 1, 95).tolist()],
    "negative": [-1.0, -2.0, -3.0, *torch.linspace(-50, -10, 97).tolist()],
    "both ends alike": [10.0, -10.0, 9.0, -9.0, *torch.linspace(-1, 1, 96).tolist()],
    "decaying": [0.8**i for i in range(100)],
}


SHARES = pytest.mark.parametrize("random_share", [None, 1.0])
"""The two ways in which a search may end."""


def matrix(spectrum, dtype=torch.float64):
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), dtype=torch.float64))[0]
    return (q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ q.T).to(dtype)


def start(size, dtype=torch.float64, seed=1):
    return torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("k", [1, 2, 5])
@SHARES
def test_agrees_with_dense(name, k, random_share):
    a = matrix(SPECTRA[name])
    pairs = leading_eigenpairs(lambda v: a @ v, start(100), k, tol=1e-10, random_share=random_share)
    expected = torch.tensor(sorted(SPECTRA[name], reverse=True)[:k], dtype=torch.float64)
    assert pairs.converged
    torch.testing.assert_close(pairs.values, expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(pairs.vectors @ pairs.vectors.T, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-10)
    residuals = (pairs.vectors @ a - pairs.values[:, None] * pairs.vectors).norm(dim=1)
    torch.testing.assert_close(pairs.residuals, residuals, rtol=1e-2, atol=1e-9)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("seed", range(5))
@SHARES
def test_loose_tolerance_keeps_its_promise(name, seed, random_share):
    a = matrix(SPECTRA[name])
    pairs = leading_eigenpairs(lambda v: a @ v, start(100, seed=seed), 5, tol=1e-3, random_share=random_share)
    expected = torch.tensor(sorted(SPECTRA[name], reverse=True)[:5], dtype=torch.float64)
    torch.testing.assert_close(pairs.values, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("basis_size", [5, 6, 9])
@SHARES
def test_restarts_with_a_small_basis(name, basis_size, random_share):
    a = matrix(SPECTRA[name])
    options = {"basis_size": basis_size, "max_products": 5000, "random_share": random_share}
    pairs = leading_eigenpairs(lambda v: a @ v, start(100), 3, tol=1e-8, **options)
    expected = torch.tensor(sorted(SPECTRA[name], reverse=True)[:3], dtype=torch.float64)
    assert pairs.converged
    assert pairs.products > basis_size
    assert pairs.vectors.untyped_storage().nbytes() == 3 * 100 * 8  # the rest of the basis is given back
    torch.testing.assert_close(pairs.values, expected, rtol=1e-7, atol=0)
    residuals = (pairs.vectors @ a - pairs.values[:, None] * pairs.vectors).norm(dim=1)
    torch.testing.assert_close(pairs.residuals, residuals, rtol=1e-2, atol=1e-9)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("seed", range(5))
@SHARES
def test_the_smallest_basis_keeps_the_promise_of_a_loose_tolerance(name, seed, random_share):
    a = matrix(SPECTRA[name])
    options = {"basis_size": 4, "max_products": 5000, "random_share": random_share}
    pairs = leading_eigenpairs(lambda v: a @ v, start(100, seed=seed), 2, tol=1e-3, **options)
    expected = torch.tensor(sorted(SPECTRA[name], reverse=True)[:2], dtype=torch.float64)
    assert pairs.converged
    torch.testing.assert_close(pairs.values, expected, rtol=1e-3, atol=0)


def test_float32_reaches_float32_accuracy_without_copies():
    a = matrix(SPECTRA["separated"], torch.float32)
    pairs = leading_eigenpairs(lambda v: a @ v, start(100, torch.float32), 3, tol=1e-6)
    assert pairs.converged
    assert pairs.vectors.dtype == torch.float32
    torch.testing.assert_close(pairs.values, torch.tensor([10.0, 7.0, 5.0]).double(), rtol=2e-6, atol=0)


@pytest.mark.parametrize(("name", "expected"), [("negative", [-50.0]), ("both ends alike", [10.0, -10.0])])
@SHARES
def test_magnitude(name, expected, random_share):
    a, k = matrix(SPECTRA[name]), len(expected)
    options = {"which": "magnitude", "max_products": 500, "random_share": random_share}
    pairs = leading_eigenpairs(lambda v: a @ v, start(100), k, tol=1e-10, **options)
    torch.testing.assert_close(pairs.values.sort()[0], torch.tensor(expected).double().sort()[0])


def outliers_and_bulk(size=20_000):
    """As of a convolutional network: three outliers within 7 %, others below them, nearly all near zero."""
    spectrum = torch.zeros(size)
    spectrum[:60] = torch.cat([torch.tensor([3.067, 2.927, 2.861, 2.542]), torch.linspace(2.35, 0.05, 56)])
    return spectrum


@pytest.mark.parametrize(("random_share", "misses"), [(None, False), (1.0, False)])
def test_a_random_start_finds_what_it_hardly_leans_on(random_share, misses):
    spectrum = outliers_and_bulk()
    missed = []
    for seed in range(10, 100):
        begin = start(len(spectrum), torch.float32, seed)
        pairs = leading_eigenpairs(lambda v: spectrum * v, begin, 2, random_share=random_share)
        assert pairs.converged
        missed.append(float((pairs.values / spectrum[:2] - 1).abs().max()) > 1e-3)
    assert any(missed) == misses


@pytest.mark.parametrize("capacity", [20, 6])
def test_the_lengths_multiply_to_the_norm_of_the_polynomial(capacity):
    """What excludes hidden eigenvalues rests on this, with restarts, and after an invariant subspace is exhausted."""
    a = torch.tensor(SPECTRA["decaying"], dtype=torch.float64).diag()
    begin = torch.eye(100, dtype=torch.float64)[5:8].sum(0)  # exhausted after three products
    state = LanczosBasis(lambda v: a @ v, begin, capacity, "largest", seed=0)
    for _ in range(12):
        if state.count == capacity:
            state.restart(3)
        state.extend()
        if state.products == 4:
            v = state.basis[3].clone()
    values, _, ours = state._decomposed()
    zeros = torch.cat([values[ours], state.shed])
    assert len(zeros) == 12 - 3
    for zero in zeros:
        v = a @ v - zero * v
    torch.testing.assert_close(v.norm().log().item(), state.log_length, rtol=1e-6, atol=0)


@pytest.mark.parametrize("spectrum", [[4.0, 3.0, -1.0, 2.0], [2.0, 2.0, 2.0, 2.0], [5.0, 0.0, 0.0, 0.0], [0.0] * 4])
def test_k_equal_to_the_size(spectrum):
    a = matrix(spectrum)
    pairs = leading_eigenpairs(lambda v: a @ v, start(4), 4)
    assert pairs.converged == (0.0 not in spectrum or not any(spectrum))  # no value is 0 to a relative error
    assert pairs.products == 4
    torch.testing.assert_close(pairs.values, torch.tensor(sorted(spectrum, reverse=True)).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "spectrum",
    [[5.0] + [0.0] * 99, [0.0] * 100, [5.0] * 3 + [1.0] * 97, [3.0] * 100, [-5.0] + [0.0] * 99, [0.0] * 99 + [-1e-3]],
)
@SHARES
def test_degenerate_spectra_end_early(spectrum, dtype, random_share):
    a = torch.diag(torch.tensor(spectrum, dtype=dtype))
    pairs = leading_eigenpairs(lambda v: a @ v, start(100, dtype), 2, random_share=random_share)
    assert pairs.converged == (sorted(spectrum)[-2] != 0 or not any(spectrum))  # no value is 0 to a relative error
    assert pairs.products <= 12
    expected = torch.tensor(sorted(spectrum, reverse=True)[:2], dtype=torch.float64)
    torch.testing.assert_close(pairs.values, expected, rtol=1e-5, atol=1e-5)


def test_a_start_in_an_invariant_subspace_does_not_hide_the_rest():
    diagonal = torch.arange(1.0, 101.0)
    pairs = leading_eigenpairs(lambda v: diagonal * v, torch.eye(100)[3], 2)
    torch.testing.assert_close(pairs.values, torch.tensor([100.0, 99.0]).double(), rtol=1e-3, atol=0)


def test_a_product_that_returns_its_argument_or_a_buffer():
    buffer = torch.zeros(50)
    assert leading_eigenpairs(lambda v: v, start(50, torch.float32), 2).values.tolist() == pytest.approx([1.0, 1.0])
    leading_eigenpairs(lambda v: buffer, start(50, torch.float32), 2)
    assert not buffer.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("after", [0, 4])
def test_a_product_that_is_not_finite(bad, after):
    calls = []

    def product(v):
        calls.append(0)
        return torch.full_like(v, bad) if len(calls) > after else torch.arange(1.0, 51.0) * v

    pairs = leading_eigenpairs(product, start(50, torch.float32), 2)
    assert len(calls) == pairs.products == after + 1
    assert not pairs.converged
    assert pairs.values.isnan().all()
    assert pairs.vectors.shape == (2, 50)


def test_budget():
    a = matrix(SPECTRA["clustered"])
    pairs = leading_eigenpairs(lambda v: a @ v, start(100), 2, tol=1e-10, max_products=6)
    assert pairs.products == 6
    assert not pairs.converged
    assert pairs.values.isfinite().all()
    assert leading_eigenpairs(lambda v: a @ v, start(100), 3, max_products=1).values.isnan().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"k": 11}, "k=11 .* 10 parameters"),
        ({"tol": 0.0}, "tol=0.0"),
        ({"which": "smallest"}, "which='smallest'"),
        ({"basis_size": 3}, "basis_size=3"),
        ({"max_products": 0}, "max_products=0"),
        ({"random_share": 0.0}, r"random_share=0.0.*0 < random_share <= 1"),
        ({"start": torch.ones(2, 5)}, "flat"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        leading_eigenpairs(lambda v: v, **{"start": torch.ones(10), "k": 2, **arguments})


def test_tridiagonal_is_the_projection():
    a = matrix(SPECTRA["separated"])
    projection, products = tridiagonal(lambda v: a @ v, start(100), 20)
    assert products == 20
    assert projection.diagonal(2).abs().max() == 0
    v = start(100) / start(100).norm()
    for power in range(1, 6):  # moments of the start vector, matched up to degree 2 steps - 1
        moment = v @ torch.linalg.matrix_power(a, power) @ v
        torch.testing.assert_close(torch.linalg.matrix_power(projection, power)[0, 0], moment, rtol=1e-9, atol=1e-9)
