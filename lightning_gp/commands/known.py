"""The commands of ``lightning-gp``."""

COMMANDS = {
    "fit": "commands.training",
    "validate": "commands.training",
    "test": "commands.training",
    "predict": "commands.training",
    "demo": "experiments.demo",
    "map": "commands.map",
    "tune": "commands.tune",
    "diagnose": "commands.diagnose",
    "theory": "commands.theory",
    "reproduce": "commands.reproduce",
    "compare": "commands.compare",
    "report": "commands.report",
    "init": "commands.init",
    "cross-domain": "commands.cross_domain",
    "data": "commands.data",
    "dashboard": "dashboards",
    "algorithms": "commands.names",
    "networks": "commands.names",
    "callbacks": "commands.names",
    "configs": "commands.names",
    "completion": "commands.completion",
}
"""Command → the module of this package whose ``main(words)`` runs it; imported only when it is asked for."""
