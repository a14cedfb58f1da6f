"""A ``lightning-gp fit`` small enough to be killed many times, and what its last checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

STEPS_PER_EPOCH = 6  # every second checkpoint falls on the end of an epoch


def write_config(folder: Path, epochs: int) -> Path:
    """MAML on sinusoids with every callback, saving every third step and the best by validation."""
    callbacks = "lightning_gp.callbacks."

    def saving(name: str, **arguments: Any) -> dict[str, Any]:
        return {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(folder / name), **arguments}}

    config = {
        "seed_everything": 3,
        "model": {
            "class_path": "lightning_gp.MAML",
            "init_args": {
                "network": {"class_path": "lightning_gp.networks.SinusoidMLP", "init_args": {"hidden": [6, 5]}},
                "inner_lr": 0.01,
                "inner_steps": 2,
                "learn_inner_lr": True,
                "criterion": "torch.nn.functional.mse_loss",
                "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
                "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 2}},
            },
        },
        "data": {
            "class_path": "lightning_gp.datamodules.SinusoidDataModule",
            "init_args": {
                "shots": 4,
                "queries": 5,
                "noise": 0.1,
                "environments_per_batch": 3,
                "iterations_per_epoch": STEPS_PER_EPOCH,
                "val_episodes": 6,
            },
        },
        "trainer": {
            "max_epochs": epochs,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder),
            "logger": {
                "class_path": "tests.robustness.journal.Journal",
                "init_args": {"path": str(folder / "journal.jsonl")},
            },
            "callbacks": [
                {"class_path": "tests.robustness.journal.Episodes"},
                {"class_path": callbacks + "CosineSimilarity"},
                {"class_path": callbacks + "GradientNorm", "init_args": {"every_n_steps": 2}},
                {"class_path": callbacks + "PhaseAmplitudeConsistency"},
                {"class_path": callbacks + "HessianEigenvalues"},
                {
                    "class_path": callbacks + "HessianEigenvalues",
                    "init_args": {"every_n_steps": 3, "prefix": "steps/", "k": 1},
                },
                {"class_path": callbacks + "LearningRateBounds"},
                saving("checkpoints", every_n_train_steps=3, save_last=True),
                saving("best", monitor="val/loss"),
            ],
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def whole_checkpoints(folder: Path) -> list[Path]:
    """Every checkpoint in ``folder``, read by the loader that runs no code.

    Raises:
        Exception: whatever torch raises for a file that is not whole.
    """
    paths = sorted(folder.rglob("*.ckpt"))
    for path in paths:
        torch.load(path, weights_only=True)
    return paths


def final_state(folder: Path) -> dict[str, Any]:
    """The last checkpoint without what tells a resumed run from another: paths and the counters of attempts."""
    state: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    for key in [key for key in state["callbacks"] if key.startswith("ModelCheckpoint")]:
        kept = ("monitor", "best_model_score", "kth_value")  # it does not restore current_score
        state["callbacks"][key] = {name: state["callbacks"][key][name] for name in kept}
    return {
        key: state[key]
        for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "callbacks")
    }
