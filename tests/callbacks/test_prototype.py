"""``PhaseAmplitudeConsistency(prototype=True)``: the logged numbers are those of the definitions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp
from torch.nn import functional as F

from lightning_gp import MAML
from lightning_gp._lightning import pl
from lightning_gp.callbacks import PhaseAmplitudeConsistency
from tests.callbacks.callback_cases import Classifier, build, fit, loaders, sinusoid_data, sinusoid_maml
from tests.cases import images


def classes(environments):
    return torch.utils.data.DataLoader([environments], batch_size=None)


@pytest.mark.parametrize("vectorize", [True, False])
def test_the_values_are_those_of_each_environment(tmp_path, vectorize):
    setting = images()
    module = MAML(setting.fresh(), 0.4, 3, vectorize=vectorize, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    callback = PhaseAmplitudeConsistency(prototype=True)
    fit(tmp_path, module, classes(setting.environments), [callback], max_epochs=1, precision="64-true")
    (xs, ys), (xq, _) = setting.environments
    start = {n: p.detach() for n, p in module.network.named_parameters()}
    agreements, cosines = [], []
    for e in range(3):
        theta, first = {n: p.clone().requires_grad_() for n, p in start.items()}, None
        for _ in range(3):
            loss = F.cross_entropy(functional_call(module.network, theta, (xs[e],)), ys[e])
            g = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
            first = g if first is None else first
            theta = {n: (p - 0.4 * g[n]).detach().requires_grad_() for n, p in theta.items()}
        adapted = functional_call(module.network, theta, (xq[e],)).detach()
        down = {n: -g for n, g in first.items()}
        _, scores = jvp(lambda p, x=xq[e]: functional_call(module.network, p, (x,)), (start,), (down,))
        agreements.append((adapted.argmax(1) == scores.argmax(1)).double().mean())
        left, right = (z - z.mean(1, keepdim=True) for z in (adapted, scores))
        cosines.append(((left * right).sum(1) / left.norm(dim=1) / right.norm(dim=1)).mean())
    agreement, cosine = (torch.stack(values).mean().item() for values in (agreements, cosines))
    assert callback.values["linearity/prototype_agreement"] == pytest.approx(agreement, abs=1e-12)
    assert callback.values["linearity/prototype_cosine"] == pytest.approx(cosine, rel=1e-9)
    assert 0 < agreement <= 1


def test_without_it_nothing_of_it_is_measured(tmp_path):
    callback = PhaseAmplitudeConsistency()
    fit(tmp_path, sinusoid_maml(), sinusoid_data(), [callback], max_epochs=1)
    assert not any("prototype" in key for key in callback.values)


def test_a_module_without_inner_loop_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Classifier lacks the methods inner_loop and predict"):
        fit(tmp_path, build(Classifier), loaders()[0], [PhaseAmplitudeConsistency(prototype=True)])


def test_a_regression_is_refused(tmp_path):
    with pytest.raises(ValueError, match="A regression has no prototypes"):
        fit(tmp_path, sinusoid_maml(), sinusoid_data(), [PhaseAmplitudeConsistency(prototype=True)], max_epochs=1)


def test_training_goes_on_as_without_it(tmp_path):
    runs = []
    for callbacks in ([], [PhaseAmplitudeConsistency(prototype=True, every_n_steps=1)]):
        pl.seed_everything(0, verbose=False)
        setting = images()
        module = MAML(nn.Sequential(setting.fresh(), nn.Dropout(0.2)), 0.4, 2)
        fit(tmp_path, module, classes(setting.environments), callbacks, max_epochs=2, precision="64-true")
        runs.append(module.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
