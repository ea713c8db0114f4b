"""Where the tiny model that ships with the package lies."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
