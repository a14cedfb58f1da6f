"""``lightning-gp fit``, ``validate``, ``test`` and ``predict``: LightningCLI over any module and data module."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_gp._lightning import NAMESPACE, LightningDataModule, LightningModule, pl
from lightning_gp.files import replacing


def main(args: Sequence[str]) -> None:
    """Runs the subcommand that ``args`` starts with."""
    from lightning_gp.allocator import keep_freed_memory

    exceptions: Any = importlib.import_module(f"{NAMESPACE}.utilities.exceptions")
    keep_freed_memory()
    try:
        lightning_cli(args, prog="lightning-gp")
    except exceptions.MisconfigurationException as error:
        raise ValueError(str(error)) from error  # Lightning's word for a user's mistake
    except exceptions.SIGTERMException as stop:
        raise SystemExit(128 + signal.SIGTERM) from stop  # Lightning's own status would be 0, as if it had finished


def lightning_cli(
    args: Sequence[str], prog: str, add_arguments: Callable[[Any], None] | None = None, **options: Any
) -> Any:
    """A LightningCLI that knows this package's classes by name.

    Args:
        args: the words of the command line.
        prog: the command as help shows it.
        add_arguments: called with the parser, to add options of a command's own.
        options: as for ``LightningCLI``; ``run=False`` builds trainer, model and data without running anything,
            ``description`` is what help says first.

    Returns:
        The LightningCLI, with ``trainer``, ``model``, ``datamodule`` and ``config``.

    Raises:
        ValueError: if there is no option at all.
    """
    if not any(word.startswith("-") for word in args):
        raise ValueError(
            f"{prog} needs a config: add --config FILE.yaml (examples/sinusoid_maml.yaml shows one), or --help for "
            "all options."
        )
    from lightning_gp.checkpoints import WholeCheckpoints
    from lightning_gp.runs.config import known_classes

    description = options.pop("description", "Trains and tests what a config names, with Lightning's Trainer.")
    known_classes()
    _check_encoding(args)
    module: Any = importlib.import_module(f"{NAMESPACE}.cli")

    class SaveConfig(module.SaveConfigCallback):  # type: ignore[misc]
        """Saves the configuration whole or not at all, and beside that of another run instead of over it."""

        already_saved: bool

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            folder = trainer.log_dir  # on all processes: this broadcasts
            if trainer.is_global_zero and not self.already_saved:
                save_beside(Path(folder) / self.config_filename, self.parser.dump(self.config, skip_none=False))
            self.already_saved = True

    class CLI(module.LightningCLI):  # type: ignore[misc]
        def add_arguments_to_parser(self, parser: Any) -> None:
            if add_arguments is not None:
                add_arguments(parser)

        def _parse_ckpt_path(self) -> None:
            # Lightning would let what the checkpoint says of the model override the config and the command line. Here
            # these count, and a module that does not fit the checkpoint refuses it.
            pass

        def instantiate_trainer(self, **settings: Any) -> Any:
            trainer = super().instantiate_trainer(**settings)
            if options.get("run", True):
                _keep_metrics(trainer)
            if type(trainer.strategy.checkpoint_io) is not WholeCheckpoints.__base__:
                return trainer  # the user's own, or that of a strategy that writes a folder
            trainer.strategy.checkpoint_io = WholeCheckpoints()
            return trainer

    return CLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=None if list(args) == sys.argv[1:] else list(args),
        auto_configure_optimizers=False,  # our modules take `optimizer` and `lr_scheduler` themselves
        parser_kwargs={"prog": prog, "description": description},
        **{"save_config_callback": SaveConfig, **options},
    )


def save_beside(path: Path, text: str) -> Path:
    """Writes ``text`` whole or not at all; where ``path`` holds something else, under the next free numbered name.

    Args:
        path: where it belongs.
        text: the content.

    Returns:
        Where it is.
    """
    place, count = path, 0
    while place.is_file() and place.read_text("utf-8", errors="replace") not in ("", text):
        count += 1
        place = path.with_name(f"{path.stem}_{count}{path.suffix}")
    if place != path:
        print(f"{path} is the configuration of another run and stays; that of this one is {place}.", file=sys.stderr)
    if not place.is_file() or not place.stat().st_size:  # an older run was killed while it wrote
        with replacing(place) as temporary:
            temporary.write_text(text, "utf-8")
    return place


def _check_encoding(args: Sequence[str]) -> None:
    """Refuses configurations that are no YAML in UTF-8.

    Raises:
        ValueError: naming the file, what is wrong and how to mend it.
    """
    words = [word.partition("=") for word in args]
    files = [after for name, equals, after in words if name == "--config" and equals]
    files += [after for before, after in zip(args, args[1:], strict=False) if before in ("--config", "-c")]
    for path in (Path(file) for file in files if Path(file).is_file()):
        content = path.read_bytes()
        try:
            lines = content.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not encoded in UTF-8 ({error.reason}); save it again as UTF-8.") from None
        if "\0" in "".join(lines):
            raise ValueError(f"{path} is not encoded in UTF-8 (it looks like UTF-16); save it again as UTF-8.")
        for number, line in enumerate(lines, 1):
            if "\t" in line[: len(line) - len(line.lstrip())]:
                raise ValueError(f"{path}, line {number}, is indented with a tab; YAML takes spaces only.")


def _keep_metrics(trainer: Any) -> None:
    """Renames what an earlier run has logged: Lightning's CSVLogger would delete it, also to resume or to test."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if not isinstance(logger, pl.loggers.CSVLogger):
            continue
        path = Path(logger.log_dir) / "metrics.csv"
        if path.is_file():
            count = 1
            while (kept := path.with_name(f"metrics_{count}.csv")).exists():
                count += 1
            path.rename(kept)
            print(f"The metrics of the last run there are now {kept}; this run writes {path}.", file=sys.stderr)
