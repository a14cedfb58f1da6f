"""The inner loop seen as making prototypes: how close is the adapted classifier to the prototype classifier?

Source: "Enforcing zero-Hessian in meta-learning", 2022 [L22], appendix D. If f is linear in θ along the inner loop,
with features φ_c(x) = ∇_θ f_c(x|θ_0), the loop adds to θ_0 a multiple of V = Σ_i Σ_c β_ic φ_c(x_i) over the support
examples x_i, where β_ic = −∂L/∂f_c(x_i) at θ_0 says how much each example matters [L22, Eq. 13, 17, 18]. All scores
f_c(x|θ_0) being about equal before a task is known, the adapted network picks argmax_c ⟨V, φ_c(x)⟩ [L22, Eq. 19].

[L22] gives every class its own parameters, θ_c; here the classes share θ, of which that is a special case.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lightning_gp import checks
from lightning_gp.functional.adaptation import Trajectory, difference
from lightning_gp.functional.linearised import Linearisation, Predict


def prototype_scores(predict: Predict, trajectory: Trajectory, x: Tensor, steps: int = 1) -> Tensor:
    """⟨V, φ_c(x)⟩ = J_c(x) (θ_steps − θ_0), the scores of the prototype classifier in each environment.

    The first inner step makes the prototype: θ_1 − θ_0 = −α ∇L(θ_0) = α V [L22, Eq. 18], also where L22 takes more, as
    in a linear loop the gradient does not change. Of the trajectory of ``linearised_adapt``, the last step can be
    taken: its prototype counts that β_ic shrinks while the network learns.

    Args:
        predict: the logits (Q, C) of one environment.
        trajectory: from ``adapt`` or ``linearised_adapt``.
        x: query inputs (E, Q, *feature).
        steps: which point of the trajectory the prototype comes from, 1 … S.

    Returns:
        (E, Q, C), detached.

    Raises:
        ValueError: if the trajectory has no such step.
    """
    checks.whole(1, steps=steps)
    if steps > trajectory.steps:
        raise ValueError(f"steps={steps} must be at least 1 and at most {trajectory.steps}, the inner steps taken.")
    start = trajectory.parameters[0]
    prototype = {name: value.detach() for name, value in difference(trajectory.parameters[steps], start).items()}
    return Linearisation(predict, start, trajectory.shared, x).product(prototype)


def prototype_agreement(adapted: Tensor, scores: Tensor) -> Tensor:
    """The share of examples for which both classifiers pick the same class.

    Args:
        adapted: logits f(x|θ_S), (E, Q, C).
        scores: of the prototype classifier, (E, Q, C).

    Returns:
        (E,), in [0, 1].

    Raises:
        ValueError: if the shapes differ, or are not of at least two classes.

    Example:
        >>> import torch
        >>> one, other = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[9.0, 0.0], [0.0, 9.0]]])
        >>> prototype_agreement(one, other)
        tensor([0.5000])
    """
    _check_logits(adapted, scores)
    return (adapted.argmax(2) == scores.argmax(2)).to(adapted.dtype).mean(1)


def prototype_cosine(adapted: Tensor, scores: Tensor) -> Tensor:
    """The cosine between both classifiers' logits, less their mean over classes, averaged over examples.

    The mean of an example's logits is taken off because no class probability depends on it.

    Args:
        adapted: logits f(x|θ_S), (E, Q, C).
        scores: of the prototype classifier, (E, Q, C).

    Returns:
        (E,), in [−1, 1]. An example whose logits are all equal, on either side, counts as 0.

    Raises:
        ValueError: if the shapes differ, or are not of at least two classes.

    Example:
        >>> import torch
        >>> round(prototype_cosine(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[7.0, 5.0]]])).item(), 4)
        1.0
    """
    _check_logits(adapted, scores)
    left, right = (logits - logits.mean(2, keepdim=True) for logits in (adapted, scores))
    left, right = (logits / logits.abs().amax(2, keepdim=True).clamp(min=1e-37) for logits in (left, right))
    return F.cosine_similarity(left, right, dim=2).mean(1).clamp(-1, 1)


def _check_logits(adapted: Tensor, scores: Tensor) -> None:
    if adapted.shape != scores.shape or adapted.ndim != 3 or adapted.shape[2] < 2:
        raise ValueError(
            f"Both classifiers need logits of one shape (E, Q, classes) with at least 2 classes, got "
            f"{tuple(adapted.shape)} and {tuple(scores.shape)}. A regression has no prototypes."
        )
