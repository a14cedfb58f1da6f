from lightning_gp.diagnosis.card import Card as Card
from lightning_gp.diagnosis.measuring import diagnose as diagnose

__all__: list[str]
