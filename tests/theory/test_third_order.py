"""The bounds with Tg, against the eigenvalues of H − α(Tg + H²) themselves and gradient descent."""

import pytest
import torch

from lightning_gp.theory import critical_inner_lr_with_tg, critical_outer_lr, critical_outer_lr_with_tg


def symmetric(count, size):
    matrices = torch.randn(count, size, size, dtype=torch.float64)
    return (matrices + matrices.mT) / 2


def random_problem(positive=True):
    torch.manual_seed(0)
    factors = torch.randn(50, 4, 4, dtype=torch.float64)
    hessians = factors @ factors.mT + (torch.eye(4) if positive else 0)
    tg = symmetric(50, 4) * 0.3
    return hessians, tg, torch.linalg.eigvalsh(hessians), torch.linalg.eigvalsh(tg)


@pytest.mark.parametrize("fraction", [0.2, 0.6, 0.99])
def test_weyl_is_sufficient_for_any_matrices(fraction):
    hessians, tg, eigenvalues, tg_eigenvalues = random_problem()
    alpha = fraction * critical_inner_lr_with_tg(eigenvalues, tg_eigenvalues)
    assert (alpha > 0).all()
    beta = critical_outer_lr_with_tg(eigenvalues, tg_eigenvalues, alpha)
    exact = torch.linalg.eigvalsh(hessians - alpha[:, None, None] * (tg + hessians @ hessians))
    assert (exact >= -1e-12).all()
    assert (beta > 0).all()
    assert (beta <= 2 / exact[:, -1] + 1e-12).all()


def test_weyl_is_exact_where_the_extremes_meet():
    """H = diag(2, 1), Tg = diag(−1, −1): shifted together."""
    eigenvalues, tg = torch.tensor([2.0, 1.0]).double(), torch.tensor([-1.0, -1.0]).double()
    exact = torch.tensor([2 - 0.1 * 3, 1 - 0.1 * 0.0])
    assert critical_outer_lr_with_tg(eigenvalues, tg, 0.1).item() == pytest.approx(2 / exact.max().item())
    assert critical_inner_lr_with_tg(eigenvalues, tg).item() == pytest.approx(2 / 3)


def test_without_tg_both_are_the_bounds_of_learning_rates():
    eigenvalues = torch.tensor([4.0, 1.0, 0.5]).double()
    alphas = torch.tensor([0.0, 0.1, 0.2]).double()
    zero = torch.zeros(3).double()
    assert critical_inner_lr_with_tg(eigenvalues, zero).item() == 0.25
    torch.testing.assert_close(
        critical_outer_lr_with_tg(eigenvalues, zero, alphas), critical_outer_lr(eigenvalues, alphas)
    )


def test_takagi2019_is_its_equations():
    eigenvalues, tg = torch.tensor([1.0, 5.0]), torch.tensor([-2.0, 2.0])
    assert critical_inner_lr_with_tg(eigenvalues, tg, "takagi2019").item() == 5 / 2
    found = critical_outer_lr_with_tg(eigenvalues, tg, torch.tensor([0.5, 2.4, 2.6]), "takagi2019")
    torch.testing.assert_close(found, torch.tensor([2 / (5 - 0.5 * 2), 2 / (1 + 2.4 * 2), 0.0]))


def test_the_counterexample_to_takagi2019():
    eigenvalues, tg = torch.tensor([1.0, 0.0]).double(), torch.tensor([-3.0, 0.0]).double()
    alpha = 0.1
    exact = 2 / (1 - alpha + 3 * alpha)
    assert critical_outer_lr_with_tg(eigenvalues, tg, alpha, "takagi2019").item() > exact
    assert critical_outer_lr_with_tg(eigenvalues, tg, alpha).item() == pytest.approx(exact)


@pytest.mark.parametrize(("factor", "converges"), [(0.98, True), (1.02, False)])
def test_gradient_descent_where_the_third_derivative_decides(factor, converges):
    """L = −2.5w + ½w² + w³/6 at w = 1: H = 2, g = −1, T = 1. With α = ½ it is a minimum of L − (α/2)g² only by Tg."""
    alpha = 0.5
    h, tg = torch.tensor([2.0]).double(), torch.tensor([-1.0]).double()
    assert critical_outer_lr(h, alpha).isinf()
    beta = factor * critical_outer_lr_with_tg(h, tg, alpha).item()
    w = torch.tensor(1.001).double()
    for _ in range(400):
        gradient = -2.5 + w + w**2 / 2
        w = (w - beta * gradient * (1 - alpha * (1 + w))).clamp(0.9, 1.1)
    assert ((w - 1).abs() < 1e-3).item() is converges


def test_saddles_converge_for_no_rate():
    h, tg = torch.tensor([2.0, -0.1]), torch.tensor([0.0, 0.0])
    assert critical_inner_lr_with_tg(h, tg).item() == 0
    for method in ("weyl", "takagi2019"):
        assert critical_outer_lr_with_tg(h, tg, torch.tensor([0.0, 0.1]), method).tolist() == [0.0, 0.0]


def test_bad_input_is_refused():
    two = torch.ones(2)
    with pytest.raises(ValueError, match=r"shape \(2,\) and tg_eigenvalues \(3,\)"):
        critical_inner_lr_with_tg(two, torch.ones(3))
    with pytest.raises(ValueError, match="method='exact'"):
        critical_outer_lr_with_tg(two, two, 0.1, "exact")
    with pytest.raises(ValueError, match="at least 0"):
        critical_outer_lr_with_tg(two, two, -0.1)


@pytest.mark.parametrize("complete", [True, False])
def test_zeros_that_are_not_given_are_put_back(complete):
    """H = diag(1, 0), Tg = diag(0, 1): H − α(Tg + H²) = diag(1 − α, −α) has no minimum at any α > 0."""
    one = torch.ones(1, dtype=torch.float64)
    bound = critical_inner_lr_with_tg(one, one, complete=complete).item()
    assert bound == (0.5 if complete else 0.0)
    assert critical_outer_lr_with_tg(one, one, 0.1, complete=False).item() == 0
    weights, alpha = torch.ones(2, dtype=torch.float64), 0.1
    for _ in range(200):  # gradient descent on the objective itself runs away along the second direction
        weights = weights - 0.5 * torch.tensor([1 - alpha, -alpha]) * weights
    assert weights[1] > 1e3


def test_zeros_leave_the_sufficient_bound_sufficient():
    hessians, tg, _, _ = random_problem()
    for hessian, third in zip(hessians, tg, strict=True):
        padded = torch.block_diag(hessian, torch.zeros(3, 3, dtype=torch.float64))
        lower = -torch.block_diag(third @ third, torch.zeros(3, 3, dtype=torch.float64))  # no positive eigenvalue
        values = torch.linalg.eigvalsh(hessian), torch.linalg.eigvalsh(-third @ third)
        alpha = 0.5 * critical_inner_lr_with_tg(*values, complete=False)
        assert alpha > 0
        beta = critical_outer_lr_with_tg(*values, alpha, complete=False)
        exact = torch.linalg.eigvalsh(padded - alpha * (lower + padded @ padded))
        assert exact[0] > -1e-12
        assert beta <= 2 / exact[-1] + 1e-12
