"""Optimizers of ``torch.optim`` as differentiable steps of the inner loop, on all environments at once."""

from lightning_gp.functional.inner_optimizers.by_higher import higher_step
from lightning_gp.functional.inner_optimizers.step import check_inner_optimizer, differentiable_step

__all__ = ["check_inner_optimizer", "differentiable_step", "higher_step"]
