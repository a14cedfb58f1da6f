import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp.functional.penalties import gradient_penalty, irmv1_penalty, scale_gradient
from lightning_gp.functional.processes import sum_over_processes

EXAMPLES = 7


def logits_of(shape, seed=0):
    torch.manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def soft_labels():
    return torch.rand(EXAMPLES, 4, dtype=torch.float64)  # rows need not add up to one


CASES = {
    "cross-entropy": (F.cross_entropy, (EXAMPLES, 4), lambda: torch.randint(4, (EXAMPLES,))),
    "cross-entropy, module": (nn.CrossEntropyLoss(), (EXAMPLES, 4), lambda: torch.randint(4, (EXAMPLES,))),
    "cross-entropy, pixels": (F.cross_entropy, (EXAMPLES, 4, 3, 2), lambda: torch.randint(4, (EXAMPLES, 3, 2))),
    "cross-entropy, ignored": (F.cross_entropy, (EXAMPLES, 4), lambda: torch.tensor([0, 1, -100, 2, 3, -100, 1])),
    "cross-entropy, soft": (F.cross_entropy, (EXAMPLES, 4), soft_labels),
    "cross-entropy, smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), (EXAMPLES, 4), lambda: torch.arange(7) % 4),
    "cross-entropy, weighted": (
        nn.CrossEntropyLoss(weight=torch.arange(1.0, 5, dtype=torch.float64)),
        (EXAMPLES, 4),
        lambda: torch.arange(7) % 4,
    ),
    "binary": (F.binary_cross_entropy_with_logits, (EXAMPLES, 1), lambda: torch.rand(EXAMPLES, 1).round().double()),
    "binary, module": (nn.BCEWithLogitsLoss(), (EXAMPLES,), lambda: torch.rand(EXAMPLES).round().double()),
    "binary, weighted": (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0, dtype=torch.float64)),
        (EXAMPLES,),
        lambda: torch.rand(EXAMPLES).round().double(),
    ),
    "squared": (F.mse_loss, (EXAMPLES, 3), lambda: torch.randn(EXAMPLES, 3).double()),
    "squared, module": (nn.MSELoss(), (EXAMPLES, 3), lambda: torch.randn(EXAMPLES, 3).double()),
    "absolute": (F.smooth_l1_loss, (EXAMPLES, 3), lambda: torch.randn(EXAMPLES, 3).double()),
}


def by_autograd(logits, targets, criterion):
    scale = torch.ones((), dtype=logits.dtype, requires_grad=True)
    return torch.autograd.grad(criterion(scale * logits, targets), scale, create_graph=True)[0]


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_autograd(name):
    criterion, shape, make_targets = CASES[name]
    logits = logits_of(shape)
    targets = make_targets()
    penalty = irmv1_penalty(logits, targets, criterion)
    reference = by_autograd(logits, targets, criterion).square()
    torch.testing.assert_close(penalty, reference, rtol=1e-12, atol=1e-15)
    ours, theirs = (torch.autograd.grad(value, logits, create_graph=True)[0] for value in (penalty, reference))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
    direction = torch.randn_like(logits)
    second = [torch.autograd.grad((g * direction).sum(), logits)[0] for g in (ours, theirs)]
    torch.testing.assert_close(*second, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_definition_by_finite_differences(name):
    criterion, shape, make_targets = CASES[name]
    logits = logits_of(shape).detach()
    targets = make_targets()
    step = 1e-5
    difference = criterion((1 + step) * logits, targets) - criterion((1 - step) * logits, targets)
    torch.testing.assert_close(
        scale_gradient(logits, targets, criterion), difference / (2 * step), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("name", ["cross-entropy", "binary", "squared"])
def test_penalty_gradient_by_finite_differences(name):
    criterion, shape, make_targets = CASES[name]
    logits, targets = logits_of(shape), make_targets()
    assert torch.autograd.gradcheck(lambda z: irmv1_penalty(z, targets, criterion), (logits,))
    assert torch.autograd.gradcheck(lambda z: irmv1_penalty(z, targets, criterion, unbiased=True), (logits,))


def test_environments_by_vmap():
    logits = logits_of((3, EXAMPLES, 1))
    targets = torch.rand(3, EXAMPLES, 1).round().double()
    criterion = F.binary_cross_entropy_with_logits
    stacked = torch.vmap(lambda z, y: irmv1_penalty(z, y, criterion))(logits, targets)
    single = [irmv1_penalty(z, y, criterion) for z, y in zip(logits, targets, strict=True)]
    torch.testing.assert_close(stacked, torch.stack(single), rtol=1e-14, atol=0)


def test_unbiased_estimator_has_the_mean_of_the_square():
    torch.manual_seed(0)
    population = torch.randn(4, 1, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)
    exact = irmv1_penalty(*population, F.mse_loss)
    draws = torch.cartesian_prod(*[torch.arange(4)] * 4)  # every batch of four, drawn with replacement
    batches = [(population[0][rows], population[1][rows]) for rows in draws]
    unbiased = torch.stack([irmv1_penalty(z, y, F.mse_loss, unbiased=True) for z, y in batches]).mean()
    biased = torch.stack([irmv1_penalty(z, y, F.mse_loss) for z, y in batches]).mean()
    torch.testing.assert_close(unbiased, exact, rtol=1e-12, atol=0)
    assert biased > 1.01 * exact


def test_gradient_penalty_and_its_gradient():
    torch.manual_seed(0)
    matrix = torch.randn(5, 5, dtype=torch.float64)
    hessian = matrix @ matrix.T
    w = torch.randn(5, dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty(lambda p: 0.5 * p["w"] @ hessian @ p["w"], {"w": w})
    gradient = hessian @ w.detach()
    torch.testing.assert_close(penalty, gradient.square().sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(penalty, w)[0], 2 * hessian @ gradient, rtol=1e-12, atol=0)


def test_bad_input():
    with pytest.raises(ValueError, match=r"\(7, 1\).*\(7,\)"):
        irmv1_penalty(torch.zeros(7, 1), torch.zeros(7), F.binary_cross_entropy_with_logits)
    with pytest.raises(ValueError, match="must be equal"):
        irmv1_penalty(torch.zeros(7, 1), torch.zeros(7), F.mse_loss)
    with pytest.raises(ValueError, match="class labels"):
        irmv1_penalty(torch.zeros(7), torch.zeros(7).long(), F.cross_entropy)
    with pytest.raises(ValueError, match="at least 2 examples"):
        irmv1_penalty(torch.zeros(1, 1), torch.zeros(1, 1), F.mse_loss, unbiased=True)
    with pytest.raises(ValueError, match="requires a gradient"):
        gradient_penalty(lambda p: p["w"].sum(), {"w": torch.zeros(2)})


def test_sum_over_one_process_is_the_identity():
    values = torch.ones(2)
    assert sum_over_processes(values) is values
