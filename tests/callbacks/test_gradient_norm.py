import pytest
import torch
from torch.nn import functional as F

from lightning_gp.callbacks import GradientNorm
from tests.callbacks.callback_cases import Classifier, Manual, build, fit, loaders, sinusoid_data, sinusoid_maml


def flat(gradients):
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def environment_norms(module, batch):
    """One environment at a time, through the network itself."""
    norms = []
    for x, y in zip(*batch.query, strict=True):
        gradients = torch.autograd.grad(F.mse_loss(module.network(x), y), list(module.network.parameters()))
        norms.append(flat(gradients).norm())
    return torch.stack(norms)


def test_environment_module_logs_the_mean_of_the_environments_norms(tmp_path):
    module, callback = sinusoid_maml().double(), GradientNorm(groups=1, histogram=True)
    trainer = fit(tmp_path, module, sinusoid_data(dtype="float64"), [callback], precision="64-true")
    assert [len(batch.query[0]) for batch in callback.batch.batches] == [6, 2]  # 8 environments, from two batches
    expected = torch.cat([environment_norms(module, batch) for batch in callback.batch.batches])
    assert callback.values["gradients/norm"] == pytest.approx(expected.mean().item(), rel=1e-10)
    assert set(callback.values) == {"gradients/norm", "gradients/norm/body", "gradients/norm/head"}
    assert trainer.callback_metrics["gradients/norm"].item() == pytest.approx(expected.mean().item(), rel=1e-6)
    assert trainer.callback_metrics["cost_seconds/GradientNorm"] > 0


def test_plain_module_logs_the_mean_norm_before_clipping(tmp_path):
    module, callback, seen = build(Classifier, dtype=torch.float64), GradientNorm(), []
    module.on_before_optimizer_step = lambda optimizer: seen.append(flat([p.grad for p in module.parameters()]).norm())
    data = loaders(dtype=torch.float64)
    fit(tmp_path, module, data, [callback], precision="64-true", gradient_clip_val=1e-3, max_epochs=1)
    assert len(seen) == 4
    assert callback.values["gradients/norm"] == pytest.approx(torch.stack(seen).mean().item(), rel=1e-10)


def test_accumulation_counts_optimizer_steps(tmp_path):
    callback, seen = GradientNorm(), []
    module = build(Classifier)
    module.on_before_optimizer_step = lambda optimizer: seen.append(flat([p.grad for p in module.parameters()]).norm())
    fit(tmp_path, module, loaders(), [callback], accumulate_grad_batches=2, max_epochs=1)
    assert len(seen) == 2
    assert callback.values["gradients/norm"] == pytest.approx(torch.stack(seen).mean().item(), rel=1e-6)


def test_several_optimizers_get_a_key_each_without_any_loss(tmp_path):
    callback = GradientNorm(groups=1)
    fit(tmp_path, build(Manual), loaders(), [callback])
    assert set(callback.values) == {
        "gradients/norm_0", "gradients/norm_1", "gradients/norm_0/a", "gradients/norm_1/b",
    }  # fmt: skip
    assert callback.values["gradients/norm_0"] == pytest.approx(callback.values["gradients/norm_0/a"])


def test_probe_on_a_plain_module_is_the_gradient_of_its_training_step(tmp_path):
    module, callback = build(Classifier, dropout=0.0, dtype=torch.float64), GradientNorm(at="probe", probe_size=13)
    fit(tmp_path, module, loaders(dtype=torch.float64), [callback], precision="64-true")
    pieces = callback.batch.batches
    assert [len(x) for x, _ in pieces] == [8, 5]
    loss = sum(len(x) / 13 * F.cross_entropy(module.network.train()(x), y) for x, y in pieces)
    expected = flat(torch.autograd.grad(loss, list(module.parameters()))).norm()
    assert callback.values["gradients/norm"] == pytest.approx(expected.item(), rel=1e-10)


def test_loss_fn_of_one_loss_per_environment(tmp_path):
    def losses(module, batch):
        return F.cross_entropy(module.network(batch[0]), batch[1], reduction="none")

    module = build(Classifier, dropout=0.0, dtype=torch.float64)
    callback = GradientNorm(loss_fn=losses, probe_size=4)
    fit(tmp_path, module, loaders(dtype=torch.float64), [callback], precision="64-true")
    ((x, y),) = callback.batch.batches
    each = F.cross_entropy(module.network.train()(x), y, reduction="none")
    parameters = list(module.parameters())
    norms = [flat(torch.autograd.grad(loss, parameters, retain_graph=True)).norm() for loss in each]
    assert callback.values["gradients/norm"] == pytest.approx(torch.stack(norms).mean().item(), rel=1e-10)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="at='sometimes'"):
        GradientNorm(at="sometimes")
    with pytest.raises(ValueError, match="groups=0"):
        GradientNorm(groups=0)
    with pytest.raises(ValueError, match="every_n_epochs=0"):
        GradientNorm(every_n_epochs=0)
    with pytest.raises(TypeError, match=r"probe_size=1\.5"):
        GradientNorm(probe_size=1.5)
    with pytest.raises(TypeError, match="loss_fn='x'"):
        GradientNorm(loss_fn="x")
