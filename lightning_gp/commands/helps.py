"""The help of every command, without importing what it needs to run."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gp.runs.synopsis import help_of

TRAINING = """\
usage: lightning-gp {command} --config FILE.yaml [--config MORE.yaml] [options]

{does}

  --config FILE              trainer, model and data; later files count more. `lightning-gp configs` lists those that
                             come with the package, which are found by name: --config sinusoid_maml
{own}
  --seed_everything N        of weights and episodes
  --model CLASS              such as MAML; `lightning-gp algorithms` lists them, --model.help MAML says its options
  --model.NAME VALUE         an option of it, such as --model.inner_lr 0.1 or --model.network.channels 32
  --data CLASS               such as OmniglotDataModule; `lightning-gp data` lists them
  --data.NAME VALUE          an option of it, such as --data.root images
  --trainer.NAME VALUE       an option of Lightning's Trainer, such as --trainer.max_epochs 10, --trainer.devices 2,
                             --trainer.accelerator cpu, --trainer.callbacks+ GradientNorm
  --print_config             prints the whole config and stops
  --help-all                 every option, those of the Trainer included (some seconds)
"""
RESUME = """\
  --resume                   goes on with the run that is in the config's folder; without it a new run gets a new,
                             numbered folder
  --ckpt_path FILE           goes on with this checkpoint instead"""
WEIGHTS = """\
  --ckpt_path best|last|FILE the weights; by default the run's best, or else its last. initial: those that the config
                             builds, untrained"""
OWN = {
    "fit": ("Trains the model of a config on its data, with Lightning's Trainer.", RESUME),
    "validate": ("Evaluates a trained model on the validation episodes.", WEIGHTS),
    "test": ("Evaluates a trained model on the test episodes, with 95 % intervals.", WEIGHTS),
    "predict": ("Computes the outputs of a trained model on the data's predict loader.", WEIGHTS),
}
AS_FIT = "Every option of `lightning-gp fit` can follow, such as --model.inner_lr 0.1 or --trainer.accelerator cpu."
FUNCTIONS = {
    "demo": ("experiments.demo", "demo"),
    "map": ("commands.map", "train_map"),
    "map merge": ("commands.map", "merge_files"),
    "map plot": ("commands.map", "plot_file"),
    "tune": ("tuning.tuner", "LearningRateTuner"),
    "diagnose": ("commands.diagnose", "diagnose_config"),
    "theory": ("commands.theory", "theory"),
    "compare": ("commands.compare", "compare"),
    "report": ("reports.page", "report"),
    "init": ("commands.init", "init"),
    "cross-domain": ("commands.cross_domain", "cross_domain"),
    "data check": ("commands.data", "check"),
    "data show": ("commands.data", "show"),
}
"""Command → module and function whose signature is its command line."""
SKIPPED = {"tune": ("seed", "progress"), "compare": ("executor",)}
"""Arguments that are no options, besides the words of `fit`."""
LIKE_FIT = ("map", "tune", "diagnose", "compare", "cross-domain")


def help_for(words: Sequence[str]) -> str | None:
    """The help that ``words`` ask for; None if they ask for none, or for that of a class."""
    if not {"-h", "--help"} & {*words}:
        return None
    if words[0] in OWN:
        does, own = OWN[words[0]]
        return TRAINING.format(command=words[0], does=does, own=own)
    if words[0] == "data" and words[1] not in ("check", "show"):
        rows = [
            f"  lightning-gp data {does}" for does in ("check --config FILE.yaml | FOLDER", "show --config FILE.yaml")
        ]
        return "\n".join([*rows, "  lightning-gp data    lists the data modules", "--help behind one says more.", ""])
    command = next((name for name in (" ".join(words[:2]), words[0]) if name in FUNCTIONS), None)
    if command is None:
        return None
    prog = f"lightning-gp {command}"
    more = f"{AS_FIT} --config FILE.yaml is required." if command in LIKE_FIT else ""
    if command == "map":
        more += " `map merge` joins the files of shards, `map plot` draws a file again."
    return help_of(*FUNCTIONS[command], prog, ("words", *SKIPPED.get(command, ())), more)
