"""``lightning-gp fit``, ``validate``, ``test`` and ``predict``: LightningCLI over any module and data module."""

from __future__ import annotations

import contextlib
import importlib
import io
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning_gp._lightning import NAMESPACE, LightningDataModule, LightningModule
from lightning_gp.runs.config import check_encoding, found_config, known_classes, save_beside
from lightning_gp.runs.ending import Episodes, beginning, ending, metrics, results
from lightning_gp.runs.mistakes import explained, shortened
from lightning_gp.runs.prepared import prepare
from lightning_gp.runs.quiet import quiet
from lightning_gp.runs.run_folder import keep_metrics
from lightning_gp.runs.versions import write_versions


def main(args: Sequence[str]) -> None:
    """Runs the subcommand that ``args`` starts with."""
    from lightning_gp.allocator import keep_freed_memory

    exceptions: Any = importlib.import_module(f"{NAMESPACE}.utilities.exceptions")
    keep_freed_memory()
    words = ["--ckpt_path=last" if word == "--resume" and args[0] == "fit" else word for word in args]
    try:
        if any(word.partition("=")[0].endswith(".help") for word in words):
            _print_help(words)
        else:
            lightning_cli(words, prog="lightning-gp")
    except exceptions.MisconfigurationException as error:
        raise ValueError(str(error)) from error  # Lightning's word for a user's mistake
    except exceptions.SIGTERMException as stop:
        raise SystemExit(128 + signal.SIGTERM) from stop  # Lightning's own status would be 0, as if it had finished


def _print_help(words: Sequence[str]) -> None:
    written = io.StringIO()
    try:
        with contextlib.redirect_stdout(written):
            lightning_cli(words, prog="lightning-gp")
    finally:
        print(shortened(written.getvalue()), end="")


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
            f"{prog} needs a config: add --config FILE.yaml, or the name of one that comes with the package (--config "
            "sinusoid_maml; `lightning-gp configs` lists them), or --help for all options."
        )
    description = options.pop("description", "Trains and tests what a config names, with Lightning's Trainer.")
    quiet()
    known_classes()
    words = with_configs(args)
    check_encoding(words)
    return _class(add_arguments, options.get("run", True))(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=None if words == sys.argv[1:] else words,
        auto_configure_optimizers=False,  # our modules take `optimizer` and `lr_scheduler` themselves
        parser_kwargs={"prog": prog, "description": description},
        **options,
    )


def with_configs(words: Sequence[str]) -> list[str]:
    """The words with configs of the package found by name, and ``--help`` for ``--help-all``."""
    found = ["--help" if word == "--help-all" else word for word in words]
    for index, word in enumerate(found):
        if word.startswith("--config="):
            found[index] = f"--config={found_config(word.partition('=')[2])}"
        elif index and found[index - 1] in ("--config", "-c"):
            found[index] = str(found_config(word))
    return found


def _class(add_arguments: Callable[[Any], None] | None, runs: bool) -> Any:
    """The class, made when it is needed: Lightning's imports what is needed for its help."""
    module: Any = importlib.import_module(f"{NAMESPACE}.cli")

    class Parser(module.LightningArgumentParser):  # type: ignore[misc]
        """Says what is wrong in a line or two, and what may have been meant."""

        def error(self, message: str, ex: Exception | None = None) -> Any:
            if not self.exit_on_error:
                return super().error(message, ex)
            print(f"lightning-gp: error: {explained(message, self)}", file=sys.stderr)
            self.exit(2)

    class SaveConfig(module.SaveConfigCallback):  # type: ignore[misc]
        """Saves the configuration whole or not at all, and beside that of another run instead of over it."""

        already_saved: bool
        place: Path | None = None

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            folder = trainer.log_dir  # on all processes: this broadcasts
            if trainer.is_global_zero and not self.already_saved:
                config = self.config.clone()
                config.pop("ckpt_path", None)  # the run's own weights, whoever uses the file
                text = self.parser.dump(config, skip_none=False, skip_validation=True)
                self.place = save_beside(Path(folder) / self.config_filename, text)
                if stage == "fit":
                    write_versions(Path(folder))
            self.already_saved = True

    class CLI(module.LightningCLI):  # type: ignore[misc]
        def init_parser(self, **settings: Any) -> Any:
            self.parser_class = Parser
            return super().init_parser(**settings)

        def config_files(self) -> list[Path]:
            return [Path(str(each)) for each in self.config[self.subcommand].get("config") or ()]

        def add_arguments_to_parser(self, parser: Any) -> None:
            if add_arguments is not None:
                add_arguments(parser)

        def _parse_ckpt_path(self) -> None:
            # Lightning would let what the checkpoint says of the model override the config and the command line. Here
            # these count, and a module that does not fit the checkpoint refuses it.
            pass

        def before_instantiate_classes(self) -> None:
            if runs:
                prepare(self.config[self.subcommand], self.subcommand, self.config_files())

        def instantiate_trainer(self, **settings: Any) -> Any:
            from lightning_gp.checkpoints import WholeCheckpoints

            trainer = super().instantiate_trainer(**settings)
            if type(trainer.strategy.checkpoint_io) is not WholeCheckpoints.__base__:
                return trainer  # the user's own, or that of a strategy that writes a folder
            trainer.strategy.checkpoint_io = WholeCheckpoints()
            return trainer

        def fit(self, **arguments: Any) -> None:
            resumed = arguments.get("ckpt_path")
            if resumed and Path(resumed).is_file():
                keep_metrics(self.trainer, Path(resumed))
            self.say(beginning(self.model, self.datamodule, self.trainer))
            self.trainer.fit(**arguments)
            if not self.trainer.fast_dev_run:
                saved = [each.place for each in self.trainer.callbacks if isinstance(each, SaveConfig)]
                self.say(ending(self.trainer, next(iter(saved), None)))

        def validate(self, **arguments: Any) -> None:
            self.evaluate(self.trainer.validate, **arguments)

        def test(self, **arguments: Any) -> None:
            self.evaluate(self.trainer.test, **arguments)

        def evaluate(self, run: Callable[..., Any], verbose: bool = True, **arguments: Any) -> None:
            counted = Episodes()
            self.trainer.callbacks.append(counted)
            found = {key: value for values in run(verbose=False, **arguments) for key, value in values.items()}
            if verbose and found:
                self.say("\n".join([results(found, counted.count), *metrics(self.trainer)]))

        def say(self, text: str) -> None:
            if self.trainer.is_global_zero:
                print(text, flush=True)

    return partial(CLI, save_config_callback=SaveConfig)
