"""Networks of the papers. Each has two submodules, ``body`` (features) and ``head`` (the last linear layer)."""

from __future__ import annotations

from lightning_gp._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ColoredMNISTMLP": "colored_mnist",
        "Conv4": "conv4",
        "ResNet12": "resnet12",
        "SinusoidMLP": "sinusoid",
        "load_pretrained": "pretrained",
        "select_parameters": "parts",
        "use_batch_statistics": "parts",
    },
)
