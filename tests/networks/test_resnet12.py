from __future__ import annotations

import pytest
import torch

from lightning_gp import MAML, Environments
from lightning_gp.networks import ResNet12, load_pretrained, select_parameters
from lightning_gp.networks.parts import running_statistics

WIDTHS = (4, 4, 6, 8)


def test_the_papers_size():
    """The trunk's 8.0 million weights of widths 64 to 512, counted by hand from the layers' shapes."""
    count, before = 0, 3
    for width in (64, 128, 256, 512):
        count += 9 * (before * width + 2 * width * width) + before * width + 2 * 4 * width
        before = width
    network = ResNet12(5)
    assert sum(parameter.numel() for parameter in network.body.parameters()) == count
    assert network.head.weight.shape == (5, 512)


@pytest.mark.parametrize("size", [16, 21, 84])
def test_shapes_and_parts(size):
    network = ResNet12(5, WIDTHS)
    assert network(torch.rand(2, 3, size, size)).shape == (2, 5)
    assert not running_statistics(network)
    assert select_parameters(network, "head") == ["head.weight", "head.bias"]
    assert all(name.startswith("body.") for name in select_parameters(network, "body"))


def test_it_is_the_published_order_of_layers():
    """Convolution, norm, activation three times; the shortcut added before the last activation; pooling after it."""
    torch.manual_seed(0)
    network, x = ResNet12(5, WIDTHS), torch.rand(6, 3, 16, 16)
    hidden = x
    for block in list(network.body)[:4]:
        residual = hidden
        for index in range(3):
            convolution, norm = block.residual[3 * index], block.residual[3 * index + 1]
            residual = norm(convolution(residual))
            if index < 2:
                residual = torch.nn.functional.leaky_relu(residual, 0.1)
        total = residual + block.shortcut[1](block.shortcut[0](hidden))
        hidden = torch.nn.functional.max_pool2d(torch.nn.functional.leaky_relu(total, 0.1), 2)
    assert torch.equal(network.head(hidden.mean((2, 3))), network(x))


def test_second_order_meta_gradient_against_finite_differences():
    torch.manual_seed(0)
    network = ResNet12(3, WIDTHS).double()
    for layer in network.modules():  # no kinks for the differences to meet
        if isinstance(layer, torch.nn.LeakyReLU):
            layer.forward = torch.tanh
        if isinstance(layer, torch.nn.MaxPool2d):
            layer.forward = lambda x: torch.nn.functional.avg_pool2d(x, 2)
    module = MAML(network, inner_lr=0.1, inner_steps=2, vectorize=True)
    y = torch.arange(3).repeat(2).expand(2, -1)
    batch = Environments(*[(torch.rand(2, 6, 3, 16, 16, dtype=torch.float64), y) for _ in range(2)])
    module.training_loss(batch).backward()
    direction = [torch.randn_like(parameter) for parameter in network.parameters()]
    slope = sum((p.grad * d).sum() for p, d in zip(network.parameters(), direction, strict=True))
    values = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for parameter, along in zip(network.parameters(), direction, strict=True):
                parameter += step * along
        values.append(module.training_loss(batch).item())
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ways": 0}, "ways=0"),
        ({"ways": 5, "widths": (4, 4)}, "four"),
        ({"ways": 5, "widths": (4, 0, 4, 4)}, "widths=0"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet12(**arguments)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 1, 16, 16)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="3 channels and at least 16x16 pixels"):
        ResNet12(5, WIDTHS)(torch.zeros(shape))


def test_load_pretrained_reads_state_dicts_and_names_what_differs(tmp_path):
    saved = ResNet12(5, WIDTHS)
    path = tmp_path / "weights.pt"
    torch.save(saved.state_dict(), path)
    loaded = load_pretrained(ResNet12(5, WIDTHS), path)
    assert all(map(torch.equal, loaded.state_dict().values(), saved.state_dict().values()))
    with pytest.raises(ValueError, match=r"head\.weight is \(5, 8\) in the checkpoint but \(3, 8\) here"):
        load_pretrained(ResNet12(3, WIDTHS), path)
    with pytest.raises(ValueError, match="is only in the checkpoint"):
        load_pretrained(torch.nn.Linear(2, 2), path)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_pretrained(saved, tmp_path / "missing.ckpt")
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read"):
        load_pretrained(saved, path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="holds no weights"):
        load_pretrained(saved, path)
