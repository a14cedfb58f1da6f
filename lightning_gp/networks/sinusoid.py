"""The regression network of the sinusoid experiments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_gp import checks


class SinusoidMLP(nn.Module):
    """A fully connected ReLU network for one-dimensional regression (C. Finn et al., 2017, section 5.1).

    Args:
        hidden: widths of the hidden layers.
        in_features: input dimension.
        out_features: output dimension.

    Raises:
        ValueError: if there is no hidden layer, or a width is below 1.

    Example:
        >>> import torch
        >>> SinusoidMLP()(torch.zeros(10, 1)).shape
        torch.Size([10, 1])
    """

    def __init__(self, hidden: Sequence[int] = (40, 40), in_features: int = 1, out_features: int = 1) -> None:
        super().__init__()
        checks.whole(1, in_features=in_features, out_features=out_features)
        if isinstance(hidden, (int, str)) or not hidden or min(hidden) < 1:
            raise ValueError(
                f"hidden={hidden!r} must be a list of widths, as in hidden=(40, 40), and every number at least 1."
            )
        widths = [in_features, *hidden]
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., in_features) to (..., out_features)."""
        out: Tensor = self.head(self.body(x))
        return out
