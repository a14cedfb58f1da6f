"""Repeated eigenvalues and values lost in rounding: found, or said not to be.

A new spectrum is one line in ``SPECTRA``.
"""

from __future__ import annotations

import pytest
import torch

from lightning_gp.functional import hessian_eigenvalues
from lightning_gp.functional.lanczos import leading_eigenpairs

SPECTRA = {
    "double": [3.0, 3.0, *torch.linspace(2, -1, 60).tolist()],
    "triple": [3.0] * 3 + torch.linspace(2, -1, 60).tolist(),
    "nine-fold": [3.0] * 9 + torch.linspace(2, -1, 80).tolist(),
    "two doubles": [3.0, 3.0, 2.5, 2.5, *torch.linspace(2, -1, 60).tolist()],
    "double in the middle": [4.0, 3.0, 3.0, *torch.linspace(2, -1, 60).tolist()],
    "double of a negative spectrum": [-1.0, -1.0, *torch.linspace(-2, -9, 60).tolist()],
    "nearly double": [3.0, 3.0 - 1e-6, *torch.linspace(2, -1, 60).tolist()],
    "double in a bulk": [3.0, 3.0, *torch.linspace(2.9, -1, 100).tolist()],
    "a multiple of the identity": [3.0] * 50,
    "low rank": [3.0] * 4 + [1.0] * 2 + [0.0] * 60,
    "double of both signs": [3.0, 3.0, -3.5, *torch.linspace(2, -3, 60).tolist()],
    "simple": [5.0, 3.0, 2.0, *torch.linspace(1, -1, 60).tolist()],
}


def rotated(spectrum, dtype=torch.float64, seed=0):
    values = torch.tensor(spectrum, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=generator))
    return ((q * values) @ q.T).to(dtype)


def start(size, dtype=torch.float64, seed=0):
    return torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{}, {"random_share": 1.0}, {"basis_size": 9}], ids=str)
@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("name", SPECTRA)
def test_every_copy_is_found(name, k, options):
    a = rotated(SPECTRA[name])
    expected = torch.tensor(sorted(SPECTRA[name], reverse=True)[:k], dtype=torch.float64)
    pairs = leading_eigenpairs(lambda v: a @ v, start(len(a)), k, max_products=600, **options)
    torch.testing.assert_close(pairs.values, expected, rtol=1e-3, atol=1e-9)
    assert pairs.converged
    torch.testing.assert_close(pairs.vectors @ pairs.vectors.T, torch.eye(k, dtype=torch.float64), atol=1e-6, rtol=0)
    true = (pairs.vectors @ a - pairs.values[:, None] * pairs.vectors).norm(dim=1)
    assert (true <= 1.5 * pairs.residuals + 1e-9).all()


@pytest.mark.parametrize("which", ["largest", "magnitude"])
def test_copies_of_the_largest_magnitude(which):
    a = rotated([-5.0, -5.0, 3.0, 3.0, *torch.linspace(2, -2, 50).tolist()])
    pairs = leading_eigenpairs(lambda v: a @ v, start(len(a)), 3, which=which)
    expected = [2.0, 3.0, 3.0] if which == "largest" else [3.0, 5.0, 5.0]
    torch.testing.assert_close(pairs.values.abs().sort()[0], torch.tensor(expected).double(), rtol=1e-3, atol=0)
    assert pairs.converged


def test_a_search_without_the_products_for_it_says_so():
    a = rotated(SPECTRA["triple"])
    pairs = leading_eigenpairs(lambda v: a @ v, start(len(a)), 2, max_products=10)
    assert not pairs.converged
    assert pairs.products <= 10


@pytest.mark.parametrize("classes", [3, 5, 10])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_zero_logits(classes, k):
    """At zero logits the Hessian of the cross-entropy is (I − 11ᵀ/C)/C ⊗ E[xxᵀ]: eigenvalues (C − 1)-fold."""
    x = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % classes

    def loss(p):
        return torch.nn.functional.cross_entropy(x @ p["w"].T, y)

    w = torch.zeros(classes, 6, dtype=torch.float64)
    dense = torch.autograd.functional.hessian(lambda v: loss({"w": v}), w).reshape(w.numel(), w.numel())
    expected = torch.linalg.eigvalsh(dense).flip(0)[:k]
    pairs = hessian_eigenvalues(loss, {"w": w}, k)
    torch.testing.assert_close(pairs.values, expected, rtol=1e-3, atol=0)
    again = hessian_eigenvalues(loss, {"w": w}, k, initial=pairs.vectors)  # a warm start finds them, too
    torch.testing.assert_close(again.values, expected, rtol=1e-3, atol=0)
    assert pairs.converged
    assert again.converged


@pytest.mark.parametrize("ratio", [1e1, 1e3, 1e4, 1e5, 1e6, 1e8])
@pytest.mark.parametrize("seed", range(3))
def test_a_value_that_rounding_has_eaten_is_not_called_converged(ratio, seed):
    spectrum = [1.0, 1 / ratio, *(torch.linspace(0.9, -0.5, 40) / ratio).tolist()]
    a = rotated(spectrum, torch.float32, seed)
    exact = torch.linalg.eigvalsh(a.double()).flip(0)[:2]
    pairs = leading_eigenpairs(lambda v: a @ v, start(len(a), torch.float32, seed), 2)
    errors = (pairs.values / exact - 1).abs()
    assert not pairs.converged or bool((errors <= 1e-3).all())
    assert pairs.converged == (ratio <= 1e3)
    assert pairs.residuals.min() >= torch.finfo(torch.float32).eps * 0.5
