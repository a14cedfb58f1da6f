"""The bounds, against gradient descent itself on linear regression: it converges just below them and not above."""

import numpy as np
import pytest
import torch

from lightning_gp.theory import critical_inner_lr, critical_outer_lr

STEPS = 400


@pytest.fixture(scope="module")
def regression():
    """Linear regression L = mean (Xw − y)², whose minimum is w = (1, −2, 0.5)."""
    torch.manual_seed(3)
    x = torch.randn(12, 3, dtype=torch.float64) * torch.tensor([1.0, 0.7, 0.5])
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    return x, y, torch.linalg.eigvalsh(2 / 12 * x.T @ x)


def objective_gradient(kind, x, y, w, alpha, steps):
    """The gradient of each objective by autograd; nothing of the theory is used."""
    w = w.clone().requires_grad_()

    def loss(w):
        return (x @ w - y).square().mean()

    if kind in ("negative_penalty", "positive_penalty"):
        gradient = torch.autograd.grad(loss(w), w, create_graph=True)[0]
        sign = 1 if kind == "positive_penalty" else -1
        return torch.autograd.grad(loss(w) + sign * alpha / 2 * gradient.square().sum(), w)[0]
    theta = w
    for _ in range(steps):
        theta = theta - alpha * torch.autograd.grad(loss(theta), theta, create_graph=True)[0]
    return torch.autograd.grad(loss(theta), w if kind == "maml" else theta)[0]


def distances(kind, regression, alpha, beta, steps=1):
    """Distance from the minimum before and after gradient descent from a random start."""
    x, y, _ = regression
    minimum = torch.linalg.lstsq(x, y).solution
    w = minimum + torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = (w - minimum).norm()
    for _ in range(STEPS):
        w = w - beta * objective_gradient(kind, x, y, w, alpha, steps)
    return start, (w - minimum).norm()


CASES = [
    ("negative_penalty", "fomaml", 1),
    ("fomaml", "fomaml", 1),
    ("fomaml", "fomaml", 2),
    ("fomaml", "fomaml", 3),
    ("maml", "maml", 1),
    ("maml", "maml", 3),
    ("positive_penalty", "positive_penalty", 1),
]


@pytest.mark.parametrize(("descended", "kind", "steps"), CASES)
@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.9])
def test_gradient_descent_converges_below_and_diverges_above(regression, descended, kind, steps, fraction):
    eigenvalues = regression[2]
    alpha = fraction * critical_inner_lr(eigenvalues).item()
    bound = critical_outer_lr(eigenvalues, alpha, kind, steps).item()
    start, end = distances(descended, regression, alpha, 0.98 * bound, steps)
    assert end < start
    start, end = distances(descended, regression, alpha, 1.02 * bound, steps)
    assert end > 10 * start


def test_beyond_the_critical_inner_rate_no_outer_rate_converges(regression):
    eigenvalues = regression[2]
    alpha = 1.05 * critical_inner_lr(eigenvalues).item()
    assert critical_outer_lr(eigenvalues, alpha).item() == 0
    start, end = distances("fomaml", regression, alpha, 1e-1)
    assert end > start


def test_maml_converges_beyond_the_critical_inner_rate(regression):
    eigenvalues = regression[2]
    alpha = 1.2 * critical_inner_lr(eigenvalues).item()
    bound = critical_outer_lr(eigenvalues, alpha, "maml").item()
    start, end = distances("maml", regression, alpha, 0.98 * bound)
    assert end < start
    assert distances("maml", regression, alpha, 1.02 * bound)[1] > 10 * start


def test_large_inner_rates_allow_larger_outer_rates():
    """[T21, section VII-C]: near α_c the second eigenvalue bounds β, beyond the value at α = 0."""
    eigenvalues = torch.tensor([10.0, 1.0], dtype=torch.float64)
    critical = critical_inner_lr(eigenvalues)
    assert critical.item() == 0.1
    assert critical_outer_lr(eigenvalues, 0.0).item() == 0.2
    assert critical_outer_lr(eigenvalues, critical).item() == pytest.approx(2 / 0.9)


def test_at_the_critical_inner_rate_rounding_does_not_decide():
    for largest in np.linspace(1, 50, 97):
        for dtype in (torch.float32, torch.float64):
            eigenvalues = torch.tensor([largest, 0.5], dtype=dtype)
            alpha = critical_inner_lr(eigenvalues)
            expected = 2 / (0.5 - alpha.item() * 0.25)
            assert critical_outer_lr(eigenvalues, alpha).item() == pytest.approx(expected, rel=1e-5)


def test_rank_deficient_hessians_are_not_taken_for_saddles():
    x = torch.randn(4, 10, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(x.T @ x)
    assert eigenvalues[0].abs() > 0  # rounding
    assert critical_outer_lr(eigenvalues, 0.0).item() == pytest.approx(2 / eigenvalues[-1].item())


def test_negative_eigenvalues():
    eigenvalues = torch.tensor([2.0, -0.5], dtype=torch.float64)
    assert critical_outer_lr(eigenvalues, 0.1).item() == 0
    assert critical_outer_lr(eigenvalues, 0.1, "maml").item() == 0
    assert critical_outer_lr(eigenvalues, 1.9, "positive_penalty").item() == 0
    # λ + αλ² of −0.5 becomes positive at α = 2: the penalty makes a minimum of the saddle.
    assert critical_outer_lr(eigenvalues, 2.5, "positive_penalty").item() == pytest.approx(2 / (2 + 2.5 * 4))
    assert critical_outer_lr(eigenvalues.clamp(min=0), 0.1).item() == pytest.approx(2 / (2 - 0.1 * 4))


def test_a_positive_penalty_turns_a_saddle_into_a_minimum_only_beyond_the_bound():
    """Gradient descent on ½ λ w² + (α/2)(λw)² with λ = −0.5."""
    for alpha, converges in ((1.9, False), (2.1, True)):
        w = torch.tensor(1.0, dtype=torch.float64)
        for _ in range(2000):
            w = w - 0.5 * (-0.5 * w + alpha * 0.25 * w)
        assert (w.abs() < 1).item() is converges


def test_several_environments_together_are_sufficient():
    """Mean objective of environments whose Hessians do not commute [T19, Eq. 26]."""
    torch.manual_seed(0)
    factors = torch.randn(5, 3, 3, dtype=torch.float64)
    hessians = factors @ factors.mT
    eigenvalues = torch.linalg.eigvalsh(hessians)
    alpha = 0.9 * critical_inner_lr(eigenvalues.flatten())
    assert alpha.item() == pytest.approx(0.9 * critical_inner_lr(eigenvalues).min().item())
    bound = critical_outer_lr(eigenvalues.flatten(), alpha)
    assert bound.item() == critical_outer_lr(eigenvalues, alpha).min().item()
    effective = torch.linalg.eigvalsh((hessians - alpha * hessians @ hessians).mean(0))
    assert effective.min() > 0
    assert bound <= 2 / effective.max()


def test_shapes_and_kinds_of_arrays():
    eigenvalues = torch.rand(4, 3) + 0.1
    assert critical_inner_lr(eigenvalues).shape == (4,)
    assert critical_outer_lr(eigenvalues, torch.rand(7, 1)).shape == (7, 4)
    alphas = np.array([0.0, 0.1])
    result = critical_outer_lr(np.array([2.0, 1.0]), alphas)
    assert isinstance(result, np.ndarray)
    np.testing.assert_allclose(result, [1.0, 2 / 1.6])
    assert critical_outer_lr([2, 1], 0.1).item() == pytest.approx(2 / 1.6)
    assert isinstance(critical_outer_lr([2, 1], 0.1), torch.Tensor)


def test_flat_losses_bound_nothing_and_nan_stays_nan():
    assert critical_inner_lr([0.0, -1.0]).isinf()
    assert critical_outer_lr([0.0, 0.0], 0.3).isinf()
    assert critical_inner_lr([float("nan"), 1.0]).isnan()
    assert critical_outer_lr([float("nan"), 1.0], 0.1).isnan()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner_lr": -0.1}, "inner rates must be at least 0"),
        ({"inner_lr": 0.1, "kind": "irm"}, "kind='irm' is unknown"),
        ({"inner_lr": 0.1, "inner_steps": 0}, "inner_steps=0"),
        ({"inner_lr": 0.1, "kind": "positive_penalty", "inner_steps": 2}, "a penalty has no inner steps"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        critical_outer_lr(torch.ones(2), **arguments)


def test_missing_eigenvalues_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        critical_inner_lr(torch.ones(2, 0))
    with pytest.raises(ValueError, match="at least one"):
        critical_outer_lr(3.0, 0.1)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("kind", ["fomaml", "maml", "positive_penalty"])
def test_two_eigenvalues_of_a_hundred_give_a_safe_bound(kind, steps):
    """Against all of them, dense below the second: two alone promise far too much near 1/λ_max."""
    steps = 1 if kind == "positive_penalty" else steps
    everything = torch.cat([torch.tensor([1.0, 0.9]), torch.linspace(0, 0.9, 5000)]).double()
    for alpha in (0.0, 0.3, 0.8, 0.99):
        exact = float(critical_outer_lr(everything, alpha, kind, steps))
        safe = float(critical_outer_lr(everything[:2], alpha, kind, steps, complete=False))
        assert safe <= exact * (1 + 1e-12)
        assert safe == pytest.approx(exact, rel=1e-3)  # and no smaller than it must be
    if kind == "fomaml" and steps == 1:
        assert float(critical_outer_lr(everything[:2], 0.99, kind)) > 2 * exact


def test_a_run_diverges_between_the_bound_of_two_eigenvalues_and_the_safe_one():
    hessian = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    top, alpha = hessian.flip(0)[:2], 0.97
    careless, safe = (float(critical_outer_lr(top, alpha, complete=complete)) for complete in (True, False))
    assert careless > 5 * safe
    for rate, diverges in ((0.99 * safe, False), (0.5 * careless, True)):
        weights = torch.ones(100, dtype=torch.float64)
        for _ in range(200):
            weights = weights - rate * hessian * (1 - alpha * hessian) * weights
        assert (float(weights.abs().max()) > 10) == diverges
