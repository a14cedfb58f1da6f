"""``lightning-gp fit``, ``validate``, ``test`` and ``predict``: LightningCLI over any module and data module."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lightning_gp._lightning import NAMESPACE, LightningDataModule, LightningModule


def main(args: Sequence[str]) -> None:
    """Runs the subcommand that ``args`` starts with."""
    from lightning_gp.allocator import keep_freed_memory

    keep_freed_memory()
    lightning_cli(
        args,
        prog="lightning-gp",
        save_config_kwargs={"overwrite": True},  # `fit` and then `test` of one config write to one folder
    )


def lightning_cli(
    args: Sequence[str], prog: str, add_arguments: Callable[[Any], None] | None = None, **options: Any
) -> Any:
    """A LightningCLI that knows this package's classes by name.

    Args:
        args: the words of the command line.
        prog: the command as help shows it.
        add_arguments: called with the parser, to add options of a command's own.
        options: as for ``LightningCLI``; ``run=False`` builds trainer, model and data without running anything.

    Returns:
        The LightningCLI, with ``trainer``, ``model``, ``datamodule`` and ``config``.
    """
    import lightning_gp.datamodules as datamodules
    import lightning_gp.modules as modules

    for package in (modules, datamodules):  # known classes can be named without their path
        for name in package.__all__:
            getattr(package, name)
    base: Any = importlib.import_module(f"{NAMESPACE}.cli").LightningCLI

    class CLI(base):  # type: ignore[misc]
        def add_arguments_to_parser(self, parser: Any) -> None:
            if add_arguments is not None:
                add_arguments(parser)

    return CLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=None if list(args) == sys.argv[1:] else list(args),
        auto_configure_optimizers=False,  # our modules take `optimizer` and `lr_scheduler` themselves
        parser_kwargs={"prog": prog},
        **options,
    )
