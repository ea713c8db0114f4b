"""What a run will cost, and whether it fits."""
