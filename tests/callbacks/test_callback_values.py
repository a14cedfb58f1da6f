"""Logged values against independent computations in float64."""

from itertools import pairwise

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_gp import ERM
from lightning_gp.callbacks import (
    CosineSimilarity,
    HessianEigenvalues,
    PhaseAmplitudeConsistency,
)
from lightning_gp.environments import Environments
from lightning_gp.functional import hessian_eigenvalues
from lightning_gp.networks import SinusoidMLP
from tests.callbacks.callback_cases import Classifier, build, fit, loaders, sinusoid_data, sinusoid_maml

DOUBLE = {"precision": "64-true"}


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def gradient(network, x, y):
    return flat(torch.autograd.grad(F.mse_loss(network(x), y), list(network.parameters())))


def each_environment(callback, split):
    for batch in callback.batch.batches:
        yield from zip(*getattr(batch, split), strict=True)


def maml_run(tmp_path, *callbacks, **options):
    module = sinusoid_maml(**options).double()
    trainer = fit(tmp_path, module, sinusoid_data(dtype="float64"), callbacks, **DOUBLE)
    return module, trainer


def dense_hessian(loss, parameters):
    gradients = flat(torch.autograd.grad(loss, parameters, create_graph=True))
    rows = [flat(torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True)) for g in gradients]
    return torch.stack(rows)


def test_cosine_of_query_and_support(tmp_path):
    callback = CosineSimilarity()
    module, _ = maml_run(tmp_path, callback)
    query, support = (
        torch.stack([gradient(module.network, *each) for each in each_environment(callback, split)])
        for split in ("query", "support")
    )
    assert len(query) == 8
    assert callback.values == {
        "gradients/cosine": pytest.approx(F.cosine_similarity(query, support).mean().item(), rel=1e-9),
        "gradients/inner_product": pytest.approx((query * support).sum(1).mean().item(), rel=1e-9),
    }


def no_query(environments=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(environments, 6, 1, generator=generator, dtype=dtype)
    y = torch.randn(environments, 6, 1, generator=generator, dtype=dtype)
    return DataLoader([0], batch_size=1, collate_fn=lambda _: Environments(support=(x, y)))


def erm():
    torch.manual_seed(0)
    return ERM(SinusoidMLP([4]), criterion=F.mse_loss).double()


def test_cosines_between_environments_without_a_query_set(tmp_path):
    callback, module = CosineSimilarity(matrix=True), erm()
    fit(tmp_path, module, no_query(), [callback], logger=CSVLogger(tmp_path), log_every_n_steps=1, **DOUBLE)
    rows = [gradient(module.network, *example) for example in each_environment(callback, "support")]
    pairs = torch.stack([F.cosine_similarity(rows[i], rows[j], dim=0) for i in range(4) for j in range(i)])
    assert callback.values["gradients/cosine"] == pytest.approx(pairs.mean().item(), rel=1e-9)
    assert callback.values["gradients/cosine_min"] == pytest.approx(pairs.min().item(), rel=1e-9)
    assert len(list(tmp_path.rglob("figures/gradients_cosine_matrix*.png"))) == 2


def test_a_single_environment_without_query_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="single environment"):
        fit(tmp_path, erm(), no_query(environments=1), [CosineSimilarity()], **DOUBLE)


def test_cosine_of_training_and_validation_batch(tmp_path):
    module, callback = build(Classifier, dropout=0.0, dtype=torch.float64), CosineSimilarity()
    fit(tmp_path, module, loaders(dtype=torch.float64), [callback], **DOUBLE)

    def of(batch):
        loss = F.cross_entropy(module.network.train()(batch[0]), batch[1])
        return flat(torch.autograd.grad(loss, list(module.parameters())))

    ((training,), (validation,)) = callback.batch.batches, callback.validation.batches
    expected = F.cosine_similarity(of(training), of(validation), dim=0)
    assert callback.values["gradients/cosine"] == pytest.approx(expected.item(), rel=1e-9)


def test_without_validation_batches_the_cosine_says_so(tmp_path):
    with pytest.warns(UserWarning, match="no validation batch"):
        fit(tmp_path, build(Classifier), loaders()[0], [CosineSimilarity()])


def test_consistencies_of_the_inner_loop(tmp_path):
    callback = PhaseAmplitudeConsistency()
    module, _ = maml_run(tmp_path, callback, inner_steps=3, inner_lr=0.05)
    phases, amplitudes = [], []
    names = [name for name, _ in module.network.named_parameters()]
    for x, y in each_environment(callback, "support"):
        path = [flat(module.network.parameters()).detach()]
        norms = []
        for step in range(4):
            theta, start = {}, 0
            for name, parameter in module.network.named_parameters():
                theta[name] = path[-1][start : start + parameter.numel()].view_as(parameter).requires_grad_()
                start += parameter.numel()
            loss = F.mse_loss(torch.func.functional_call(module.network, theta, (x,)), y)
            g = flat(torch.autograd.grad(loss, [theta[name] for name in names]))
            norms.append(g.norm())
            if step < 3:
                path.append((path[-1] - 0.05 * g).detach())
        lengths = sum((b - a).norm() for a, b in pairwise(path))
        phases.append(lengths / (path[-1] - path[0]).norm())
        amplitudes.append(sum(norms[1:]) / 3 / norms[0])
    assert callback.values["linearity/phase_consistency"] == pytest.approx(torch.stack(phases).mean().item(), rel=1e-9)
    expected = torch.stack(amplitudes).mean().item()
    assert callback.values["linearity/loss_gradient_ratio"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("objective", ["loss", "training"])
def test_eigenvalues_of_the_dense_hessian(tmp_path, objective):
    callback = HessianEigenvalues(k=2, objective=objective, tol=1e-9)
    module, _ = maml_run(tmp_path, callback)
    losses = []
    for batch in callback.batch.batches:
        if objective == "loss":
            losses += [F.mse_loss(module.network(x), y) for x, y in zip(*batch.query, strict=True)]
        else:
            losses += list(module.environment_objectives(module.network_parameters(), batch))
    hessian = dense_hessian(torch.stack(losses).mean(), list(module.network.parameters()))
    expected = torch.linalg.eigvalsh(hessian).flip(0)[:2]
    found = [callback.values[f"curvature/eigenvalue_{i}"] for i in (1, 2)]
    assert found == pytest.approx(expected.tolist(), rel=1e-8)
    assert all(callback.values[f"curvature/residual_{i}"] < 1e-4 for i in (1, 2))


def test_eigenvalues_of_a_strangers_training_step_start_warm(tmp_path):
    module = build(Classifier, dropout=0.0, dtype=torch.float64)
    callback = HessianEigenvalues(k=1, tol=1e-8)
    fit(tmp_path, module, loaders(dtype=torch.float64), [callback], max_epochs=3, **DOUBLE)
    ((x, y),) = callback.batch.batches
    loss = F.cross_entropy(module.network.train()(x), y)
    expected = torch.linalg.eigvalsh(dense_hessian(loss, list(module.parameters())))[-1].item()
    assert callback.values["curvature/eigenvalue_1"] == pytest.approx(expected, rel=1e-7)
    assert callback._start is not None


@pytest.mark.parametrize("warm_start", [True, False])
def test_a_search_may_start_anew_each_time(tmp_path, warm_start):
    callback = HessianEigenvalues(warm_start=warm_start)
    _, trainer = maml_run(tmp_path, callback)
    assert (callback._start is None) != warm_start
    loss = lambda theta: torch.cat(  # noqa: E731
        [trainer.lightning_module.environment_losses(theta, batch) for batch in callback.batch.batches]
    ).mean()
    cold = hessian_eigenvalues(loss, trainer.lightning_module.network_parameters())
    assert (callback.values["curvature/products"] == cold.products) != warm_start
    found = [callback.values[f"curvature/eigenvalue_{i}"] for i in (1, 2)]
    assert found == pytest.approx(cold.values.tolist(), rel=1e-3)


def test_trace_and_spectral_density(tmp_path):
    callback = HessianEigenvalues(trace=True, density=True)
    module, logger = erm(), CSVLogger(tmp_path)
    fit(tmp_path, module, no_query(), [callback], logger=logger, log_every_n_steps=1, **DOUBLE)
    loss = torch.stack([F.mse_loss(module.network(x), y) for x, y in each_environment(callback, "support")]).mean()
    hessian = dense_hessian(loss, list(module.network.parameters()))
    error = abs(callback.values["curvature/trace"] - hessian.trace().item())
    assert error <= 4 * callback.values["curvature/trace_standard_error"] + 1e-6
    assert len(list(tmp_path.rglob("figures/curvature_spectral_density*.png"))) == 2
