"""FOMAML, ANIL, BOIL and MetaSGD: MAML with other defaults of what is adapted and differentiated.

Sources: C. Finn, P. Abbeel, S. Levine, "Model-agnostic meta-learning for fast adaptation of deep networks", ICML 2017
(FOMAML); A. Raghu et al., "Rapid learning or feature reuse?", ICLR 2020 (ANIL); J. Oh et al., "BOIL: towards
representation change for few-shot learning", ICLR 2021 (BOIL); Z. Li et al., "Meta-SGD: learning to learn quickly for
few-shot learning", 2017 (MetaSGD).
"""

from __future__ import annotations

from torch import nn
from typing_extensions import Unpack

from lightning_gp.modules.inner_rates import InnerLR
from lightning_gp.modules.maml import MAML
from lightning_gp.types import InnerLoopOptions, ParameterChoice


class FOMAML(MAML):
    """First-order MAML: the gradient of L_τ^te at θ_S, the inner loop's Jacobian dropped (Finn et al., 2017).

    Arguments as for ``MAML``, with ``first_order=True``.
    """

    def __init__(
        self,
        network: nn.Module,
        inner_lr: InnerLR = 0.01,
        inner_steps: int = 1,
        first_order: bool = True,
        adapt: ParameterChoice = "all",
        **kwargs: Unpack[InnerLoopOptions],
    ) -> None:
        super().__init__(network, inner_lr, inner_steps, first_order, adapt, **kwargs)


class ANIL(MAML):
    """Almost no inner loop: only the head is adapted, everything is meta-learned (Raghu et al., 2020).

    Arguments as for ``MAML``, with ``adapt="head"``.
    """

    def __init__(
        self,
        network: nn.Module,
        inner_lr: InnerLR = 0.01,
        inner_steps: int = 1,
        first_order: bool = False,
        adapt: ParameterChoice = "head",
        **kwargs: Unpack[InnerLoopOptions],
    ) -> None:
        super().__init__(network, inner_lr, inner_steps, first_order, adapt, **kwargs)


class BOIL(MAML):
    """Body only update in the inner loop: the head is meta-learned but never adapted (Oh et al., 2021).

    Arguments as for ``MAML``, with ``adapt="body"``.
    """

    def __init__(
        self,
        network: nn.Module,
        inner_lr: InnerLR = 0.01,
        inner_steps: int = 1,
        first_order: bool = False,
        adapt: ParameterChoice = "body",
        **kwargs: Unpack[InnerLoopOptions],
    ) -> None:
        super().__init__(network, inner_lr, inner_steps, first_order, adapt, **kwargs)


class MetaSGD(MAML):
    """MAML whose inner rates are learned, one for each entry of each adapted parameter (Z. Li et al., 2017).

    Arguments as for ``MAML``, with ``learn_inner_lr=True`` and ``inner_lr_per="element"``, from ``inner_lr`` on. (The
    paper starts from rates that are drawn at random.)
    """

    def __init__(
        self,
        network: nn.Module,
        inner_lr: InnerLR = 0.01,
        inner_steps: int = 1,
        first_order: bool = False,
        adapt: ParameterChoice = "all",
        **kwargs: Unpack[InnerLoopOptions],
    ) -> None:
        kwargs = {"learn_inner_lr": True, "inner_lr_per": "element", **kwargs}
        super().__init__(network, inner_lr, inner_steps, first_order, adapt, **kwargs)
