import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp.datamodules import ExampleEnvironments
from lightning_gp.environments import Environments
from lightning_gp.modules.gradient_penalty import GradientPenalty
from lightning_gp.testing import on_processes


def network():
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("body", nn.Sequential(nn.Linear(3, 5), nn.Tanh()))
    net.add_module("head", nn.Linear(5, 2))
    return net.double()


def batch(environments=3, examples=6):
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(environments, examples, size, dtype=torch.float64, generator=generator) for size in (3, 2))
    return Environments((x, y))


def gradient(module, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.network.parameters()))])


def reference(module, environments, alphas, sign):
    """The definition, environment by environment, with autograd through autograd."""
    parameters = dict(module.network.named_parameters())
    terms = []
    for x, y in zip(*environments.support, strict=True):
        loss = F.mse_loss(module.network(x), y)
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        penalty = sum(alphas(name) * g.square().sum() for name, g in zip(parameters, gradients, strict=True))
        terms.append(loss + sign * penalty)
    return torch.stack(terms).mean()


GROUPS = {
    "all": (0.3, lambda name: 0.3),
    "head": ({"head": 0.3}, lambda name: 0.3 if name.startswith("head") else 0.0),
    "two": ({"head": 0.3, "body.0.weight": 0.1}, lambda name: {"h": 0.3, "b": 0.1}[name[0]] * (name != "body.0.bias")),
}


@pytest.mark.parametrize("vectorize", [True, 2, False])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("groups", GROUPS)
def test_value_and_gradient_are_the_definition(groups, sign, vectorize):
    coefficient, alphas = GROUPS[groups]
    module = GradientPenalty(network(), coefficient, sign, criterion=F.mse_loss, vectorize=vectorize)
    expected = reference(module, batch(), alphas, sign)
    plain = module.environment_objectives(module.network_parameters(), batch()).mean()
    for loss in (module.training_loss(batch()), plain):
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        exact = gradient(module, reference(module, batch(), alphas, sign))
        torch.testing.assert_close(gradient(module, loss), exact, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sign", [-1, 1])
def test_gradient_by_finite_differences(sign):
    module = GradientPenalty(network(), 0.3, sign, criterion=F.mse_loss)
    ours = gradient(module, module.training_loss(batch()))
    parameters = list(module.network.parameters())
    start = nn.utils.parameters_to_vector(parameters).detach().clone()
    differences = []
    for index in range(len(start)):
        values = []
        for step in (1e-5, -1e-5):
            moved = start.clone()
            moved[index] += step
            nn.utils.vector_to_parameters(moved, parameters)
            values.append(module.training_loss(batch()).item())
        differences.append((values[0] - values[1]) / 2e-5)
    torch.testing.assert_close(ours, torch.tensor(differences, dtype=torch.float64), rtol=1e-6, atol=1e-8)


def test_environments_of_unequal_size_and_frozen_parameters():
    module = GradientPenalty(network(), 0.3, 1, criterion=F.mse_loss)
    whole = batch()
    parts = [
        Environments((whole.support[0][:1], whole.support[1][:1])),
        Environments((whole.support[0][1:2, :4], whole.support[1][1:2, :4])),
    ]
    expected = torch.stack([reference(module, part, lambda _: 0.3, 1) for part in parts]).mean()
    torch.testing.assert_close(gradient(module, module.training_loss(parts)), gradient(module, expected))

    frozen = network()
    frozen.body.requires_grad_(False)
    module = GradientPenalty(frozen, 0.3, 1, criterion=F.mse_loss)
    loss = module.training_loss(whole)
    loss.backward()
    assert frozen.body[0].weight.grad is None
    assert sorted(module.coefficients) == ["head.bias", "head.weight"]


def test_objectives_without_graph_of_the_caller():
    module = GradientPenalty(network(), 0.3, 1, criterion=F.mse_loss)
    with torch.no_grad():
        values = module.environment_objectives(module.network_parameters(), batch())
    assert values.shape == (3,)


def test_linear_loss_has_no_curvature():
    module = GradientPenalty(nn.Linear(3, 1).double(), 0.3, 1, criterion=lambda z, y: (z * y).mean())
    examples = Environments((batch().support[0], batch().support[1][:, :, :1]))
    plain = module.environment_losses(module.network_parameters(), examples).mean()
    torch.testing.assert_close(gradient(module, module.training_loss(examples)), gradient(module, plain))


def rank_gradients(rank):
    x, y = batch(environments=2).support
    half, one = slice(3 * rank, 3 * rank + 3), slice(rank, rank + 1)
    parts = {"shares": Environments((x[:, half], y[:, half])), "episodes": Environments((x[one], y[one]))}
    gradients = []
    for share, part in parts.items():
        module = GradientPenalty(network(), 0.3, -1, criterion=F.mse_loss, dealt=share)
        gradients.append(gradient(module, module.training_loss(part)).tolist())
    return gradients


def test_two_processes_give_the_gradient_of_the_global_penalty():
    ranks = torch.tensor(on_processes(rank_gradients), dtype=torch.float64)
    module = GradientPenalty(network(), 0.3, -1, criterion=F.mse_loss)
    expected = gradient(module, module.training_loss(batch(environments=2)))
    for average in ranks.mean(0):  # what DDP takes; by examples, then by environments
        torch.testing.assert_close(average, expected, rtol=1e-12, atol=1e-14)


def test_sign_moves_the_gradient_norm(tmp_path):
    def norm_after(sign):
        torch.manual_seed(0)
        module = GradientPenalty(
            network(), 0.02, sign, criterion=F.mse_loss, optimizer=lambda p: torch.optim.SGD(p, lr=0.05)
        )
        data = ExampleEnvironments({str(i): pair for i, pair in enumerate(zip(*batch().support, strict=True))})
        pl.Trainer(
            accelerator="cpu", max_epochs=20, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        ).fit(module, data)  # fmt: skip
        return sum(
            gradient(module, F.mse_loss(module.network(x), y)).norm().item()
            for x, y in zip(*batch().support, strict=True)
        )

    assert norm_after(1) < norm_after(-1)


def test_bad_arguments():
    with pytest.raises(ValueError, match="sign=2"):
        GradientPenalty(network(), 0.1, 2)
    with pytest.raises(ValueError, match=r"coefficient=-0\.1"):
        GradientPenalty(network(), -0.1)
    with pytest.raises(ValueError, match="picks none"):
        GradientPenalty(network(), {"tail": 0.1})
    with pytest.raises(ValueError, match="disjoint"):
        GradientPenalty(network(), {"head": 0.1, "head.bias": 0.2})
    with pytest.raises(ValueError, match="dealt"):
        GradientPenalty(network(), dealt="rows")
