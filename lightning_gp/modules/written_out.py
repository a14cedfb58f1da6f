"""The gradient of an objective after an inner loop, written out: less memory (``recompute``) or compiled."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_gp.environments import Environments
from lightning_gp.functional.inner_loop import check_plain, differentiate
from lightning_gp.functional.precomputed import Evaluated, Evaluation
from lightning_gp.loops import InnerLoop
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.modules.inner_rates import InnerRates
from lightning_gp.types import MetaGradient, Parameters, Rates


class WrittenOut(EnvironmentModule):
    """An ``EnvironmentModule`` with an inner loop, of which ``MAML`` says what it is.

    Attributes:
        inner_rates: the inner rates, by parameter name.
        recompute: compute inner steps again in place of storing them.
        compile_step: compile the whole gradient.
    """

    inner_rates: InnerRates
    recompute: bool
    compile_step: bool
    _meta_gradient: Callable[..., MetaGradient]

    @property
    @abstractmethod
    def adapted(self) -> list[str]: ...  # noqa: D102

    @property
    @abstractmethod
    def learns_rates(self) -> bool: ...  # noqa: D102

    @abstractmethod
    def inner_loop(self) -> InnerLoop: ...  # noqa: D102

    def explicit(self, total: int) -> Evaluation[Environments] | None:
        """The written-out gradient, with ``recompute`` or ``compile``."""
        if not (self.recompute or self.compile_step):
            return None

        def evaluated(environments: Environments) -> Evaluated:
            parameters, rates = self.network_parameters(), self.inner_rates(self.adapted)
            result = self.meta_gradient(parameters, environments, weight=1 / total)
            gradients = {id(tensor): result.parameters[name] for name, tensor in parameters.items()}
            for name, gradient in result.rates.items():
                rate = rates[name]
                assert isinstance(rate, Tensor)
                gradient = gradient.sum_to_size(rate.shape)
                gradients[id(rate)] = gradients[id(rate)] + gradient if id(rate) in gradients else gradient
            known = [gradients.get(id(each), torch.zeros_like(each)) for each in self.trained_parameters()]
            return Evaluated(result.losses.sum() / total, known, {"loss": result.losses.sum() / total})

        return evaluated

    def meta_gradient(
        self,
        parameters: Parameters,
        environments: Environments,
        rates: Rates | None = None,
        function: Callable[..., MetaGradient] | None = None,
        **options: Any,
    ) -> MetaGradient:
        """The gradient of the query losses at θ_S, written out; see ``functional.meta_gradient``.

        Args:
            parameters: θ_0, (*shape).
            environments: with a query set, or without.
            rates: in place of the module's.
            function: what to run, in place of ``functional.meta_gradient`` (compiled, with ``compile=True``).
            **options: of ``functional.meta_gradient``.
        """
        loop = self.inner_loop()
        with self._naming_compilation():
            return differentiate(
                loop if rates is None else replace(loop, rates=rates),
                parameters,
                environments.support,
                environments.split("query"),
                function=function or self._meta_gradient,
                rate_gradients=self.learns_rates and rates is None,
                traceable=self.compile_step,
                **options,
            )

    @contextmanager
    def _naming_compilation(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self.compile_step or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise RuntimeError(
                f"torch {torch.__version__} could not compile the step of {type(self).__name__}, with "
                f"{type(error).__name__}: leave compile False, or try a newer torch. Above is torch's own message."
            ) from error

    def check_written_out(self, known: type[EnvironmentModule]) -> None:
        """Refuses what the written-out gradient does not follow.

        Args:
            known: the class whose objective it is the gradient of.

        Raises:
            ValueError: if a subclass of it changed the objective, or the inner loop is not plain.
        """
        for name in ("environment_objectives", "environment_terms", "adaptation"):
            if getattr(type(self), name) is not getattr(known, name):
                raise ValueError(
                    f"{type(self).__name__} overrides {name}, whose gradient recompute=True and compile=True do not "
                    "know; leave both False, or override inner_loop(), which changes every way to differentiate it."
                )
        check_plain(self.inner_loop())
