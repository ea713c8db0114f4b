"""The offline world: persona grammar, agenda user, rule judge and the tiny model. Results here are about the miniature."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"  # of the tiny model
