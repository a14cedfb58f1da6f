"""The gradient norm under penalties of both signs: two figures, every number measured by callbacks in a Trainer.

    python -m lightning_gp.experiments.gradient_norms omniglot --root data
    python -m lightning_gp.experiments.gradient_norms signs --root data

The first compares MAML with its own α = 0 on Omniglot [T21, Figs. 2a and 3a]. The second puts MAML, which pulls towards
large gradients, beside penalties that pull towards small ones [T21, Eq. 1-2 and section VI]. Each writes a picture, the
curves as CSV and a summary as JSON. The gradient norm is mean_τ ‖∇L_τ(θ)‖ at the unadapted parameters.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_gp._lightning import pl
from lightning_gp.allocator import keep_freed_memory
from lightning_gp.callbacks.base import Probe
from lightning_gp.callbacks.cosine_similarity import CosineSimilarity
from lightning_gp.callbacks.gradient_norm import GradientNorm
from lightning_gp.datamodules.omniglot import OmniglotDataModule
from lightning_gp.experiments.curves import Row, check_every, measured, write_results
from lightning_gp.experiments.penalty_signs import NORM, Signs, signs
from lightning_gp.modules.maml import MAML
from lightning_gp.networks.conv4 import Conv4
from lightning_gp.plots import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSINE = "gradients/cosine"


def omniglot(
    root: str = "data",
    iterations: int = 1500,
    every: int = 50,
    seed: int = 0,
    output: str | Path = "runs/gradient_norms",
    inner_lr: float = 0.4,
    channels: int = 64,
    ways: int = 5,
    environments: int = 8,
) -> dict[str, Any]:
    """MAML and its own α = 0 on Omniglot, 1 shot, 15 queries: the same weights to start from, the same episodes.

    Args:
        root: folder of the Omniglot data; see ``OmniglotDataModule``.
        iterations: outer Adam steps of each run.
        every: iterations between measurements.
        seed: of weights and episodes.
        output: folder for ``omniglot.png``, ``.csv`` and ``.json``.
        inner_lr: α of the MAML run.
        channels: of Conv4.
        ways: classes per episode.
        environments: in a meta-batch, and in the fixed probe batch (the first meta-batch).

    Returns:
        The summary that is written as JSON.

    Raises:
        ValueError: if ``every`` is not in 1 … ``iterations``.
        FileNotFoundError: if there are no data.
    """
    check_every(iterations, every)
    require_matplotlib()
    keep_freed_memory()
    start = time.perf_counter()
    curves: dict[str, list[Row]] = {}
    for name, alpha in (("maml", inner_lr), ("alpha_0", 0.0)):
        pl.seed_everything(seed, verbose=False)
        module = MAML(Conv4(ways, channels, downsample="stride"), inner_lr=alpha)
        data = OmniglotDataModule(
            root, ways=ways, environments_per_batch=environments, iterations_per_epoch=iterations, seed=seed
        )
        kinds: tuple[Callable[..., Probe], ...] = (GradientNorm, CosineSimilarity)
        probes = [kind(every_n_steps=every, probe_size=environments) for kind in kinds]
        curves[name] = measured(module, data, iterations, every, probes, f"Omniglot, inner rate {alpha:g}")
    cosines = [row[COSINE] for row in curves["maml"]]
    norms = {name: statistics.fmean(row[NORM] for row in rows[len(rows) // 2 :]) for name, rows in curves.items()}
    pairs = list(zip(curves["maml"], curves["alpha_0"], strict=True))
    summary = {
        "command": f"python -m lightning_gp.experiments.gradient_norms omniglot --root <omniglot> "
        f"--iterations {iterations} --every {every} --seed {seed}",
        "inner_lr": inner_lr,
        "environments_per_batch": environments,
        "measurements": len(cosines),
        "share_of_positive_cosines": statistics.fmean(cosine > 0 for cosine in cosines),
        "smallest_cosine": min(cosines),
        "norm_mean_later_half": norms,
        "norm_ratio_later_half": norms["maml"] / norms["alpha_0"],
        "share_of_measurements_with_larger_norm": statistics.fmean(one[NORM] > other[NORM] for one, other in pairs),
        "seconds": round(time.perf_counter() - start),
        "torch": torch.__version__,
    }
    rows = [{"run": name, **row} for name, each in curves.items() for row in each]
    write_results(Path(output), "omniglot", rows, summary, lambda panels: _draw_omniglot(panels, curves, inner_lr))
    return summary


def _draw_omniglot(panels: Sequence[Axes], curves: Mapping[str, list[Row]], inner_lr: float) -> None:
    styles = {"maml": (f"MAML, α = {inner_lr:g}", "tab:orange"), "alpha_0": ("α = 0", "tab:blue")}
    left, right = panels
    for name, (label, colour) in styles.items():
        steps = [row["iteration"] for row in curves[name]]
        right.plot(steps, [row[NORM] for row in curves[name]], color=colour, label=label)
        if name == "maml":
            left.plot(steps, [row[COSINE] for row in curves[name]], color=colour, label=label)
    left.axhline(0.0, color="black", linestyle="--", linewidth=1, label="zero")
    left.set(xlabel="iteration", ylabel="cosine similarity", title="query against support gradient")
    left.set_ylim(bottom=min(-0.1, left.get_ylim()[0]))
    right.set(xlabel="iteration", ylabel="gradient norm at the unadapted parameters", title="norm of query gradient")
    right.set_ylim(bottom=0.0)
    for panel in panels:
        panel.legend()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m lightning_gp.experiments.gradient_norms", description="Figures of the gradient norm; see the module."
    )
    commands = parser.add_subparsers(dest="figure", required=True)
    maml = commands.add_parser(
        "omniglot", help="MAML against its own inner rate 0 on Omniglot, some 20 minutes on one core"
    )
    maml.add_argument("--root", default="data", help="folder of the Omniglot data (default: %(default)s)")
    maml.add_argument("--iterations", type=int, default=1500, help="of each run (default: %(default)s)")
    maml.add_argument("--seed", type=int, default=0, help="of weights and episodes (default: %(default)s)")
    both = commands.add_parser("signs", help="MAML beside positive penalties, some 40 minutes on one core")
    both.add_argument("--root", default="data", help="folder that holds MNIST/raw (default: %(default)s)")
    both.add_argument("--omniglot-root", default="data", help="folder of the Omniglot data (default: %(default)s)")
    both.add_argument("--iterations", type=int, default=Signs.iterations, help="of each run (default: %(default)s)")
    both.add_argument("--seeds", type=int, default=Signs.seeds, help="runs per point (default: %(default)s)")
    both.add_argument("--examples", type=int, default=Signs.examples, help="per environment (default: %(default)s)")
    for each, every in ((maml, 50), (both, Signs.every)):
        each.add_argument("--every", type=int, default=every, help="iterations between values (default: %(default)s)")
        each.add_argument("--output", type=Path, default=Path("runs/gradient_norms"), help="(default: %(default)s)")
    options = vars(parser.parse_args(arguments))
    torch.set_num_threads(1)  # as the stated times are meant; a step is too small to gain from more
    if options.pop("figure") == "omniglot":
        omniglot(**options)
        return
    root, omniglot_root, output = (options.pop(name) for name in ("root", "omniglot_root", "output"))
    signs(root, Signs(**options), output, omniglot_root)


if __name__ == "__main__":
    main()
