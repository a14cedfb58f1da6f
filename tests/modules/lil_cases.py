"""What a LIL module computes, as one vector."""

from __future__ import annotations

import torch

from tests.cases import flat


def gradient(module, environments) -> torch.Tensor:
    module.zero_grad()
    module.training_loss(environments).backward()
    return flat(parameter.grad for parameter in module.parameters())


def terms_of(module, environments) -> torch.Tensor:
    terms = module.environment_terms(module.network_parameters(), environments)
    return torch.stack([terms[name].mean() for name in ("task_loss", "phase_loss", "amplitude_loss")]).detach()
