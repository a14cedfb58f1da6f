"""Checkpoint files that are whole or not there, and a reason where one cannot be read."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import torch

from lightning_gp._lightning import NAMESPACE
from lightning_gp.files import replacing

_plugins: Any = importlib.import_module(f"{NAMESPACE}.plugins.io")


class WholeCheckpoints(_plugins.TorchCheckpointIO):  # type: ignore[misc]
    """Lightning's ``TorchCheckpointIO``, which survives a kill in the middle of writing; for ``Trainer(plugins=...)``.

    Lightning writes to the folder for temporary files and moves the file from there. Where the two are on different
    file systems, moving copies, and a kill leaves half a file under the checkpoint's name. Here the temporary file lies
    beside the checkpoint. The command line uses it.

    Example:
        >>> import tempfile
        >>> files = WholeCheckpoints()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files.save_checkpoint({"epoch": 3}, f"{folder}/last.ckpt")
        ...     files.load_checkpoint(f"{folder}/last.ckpt")
        {'epoch': 3}
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes ``checkpoint`` beside ``path`` and renames it; Lightning's own way for addresses as ``s3://``."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave a name without content

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint, from wherever it is; unless told otherwise, with the loader that runs no code.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not whole, is no checkpoint, or holds what only a loader that runs code could read.
        """
        source: Any = path
        if str(path).startswith(("http://", "https://")):
            source = _fetched(str(path))  # Lightning would take any file of this name that was fetched before
        elif "://" not in str(path):
            _check_file(Path(path))
        try:
            if source is path and "://" in str(path):
                content = super().load_checkpoint(path, map_location, weights_only is not False)
            else:
                content = torch.load(source, map_location=map_location, weights_only=weights_only is not False)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} cannot be read without running code that is in it: {_first_line(error)} If you trust the "
                "file, pass --weights_only false; otherwise give another ckpt_path."
            ) from error
        except (RuntimeError, EOFError, KeyError) as error:
            raise ValueError(_not_whole(path, _first_line(error))) from error
        if not isinstance(content, dict) or not {"state_dict", "epoch"} & content.keys():
            raise ValueError(f"{path} is no checkpoint of a Trainer; give a file that ModelCheckpoint has written.")
        return content


def _fetched(address: str) -> io.BytesIO:
    try:
        with urllib.request.urlopen(address) as answer:
            content = io.BytesIO(answer.read())
    except OSError as error:
        raise FileNotFoundError(f"There is no checkpoint at {address}: {error}; give another ckpt_path.") from error
    if not zipfile.is_zipfile(content):
        size = len(content.getvalue())
        raise ValueError(_not_whole(address, f"its {size} bytes do not end as a checkpoint does"))
    content.seek(0)
    return content


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no checkpoint {path.absolute()}; give the path of a .ckpt file, or leave out ckpt_path to start "
            "from the beginning."
        )
    if not zipfile.is_zipfile(path):  # so begins and ends what torch.save writes; a truncated file lacks the end
        raise ValueError(_not_whole(path, f"its {path.stat().st_size} bytes do not end as a checkpoint does"))


def _not_whole(path: Any, reason: str) -> str:
    return (
        f"{path} is not a whole checkpoint: {reason}. It may have been cut off while it was written or copied; give an "
        "earlier checkpoint as ckpt_path, or leave it out to start from the beginning."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
