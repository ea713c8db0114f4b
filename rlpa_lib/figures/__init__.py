"""Figures: each function takes data and returns the figure and the DataFrame that was drawn."""
# ruff: noqa: F401, I001

from rlpa_lib.figures.data import (
    judge_confusion, overlap_counts, profile_card, reveal_curve, score_bars, slot_distribution,
)  # fmt: skip
from rlpa_lib.figures.evaluation import (
    alignment_over_seeds, personal_part, profile_progress, score_and_cost, turnwise_panels,
)  # fmt: skip
from rlpa_lib.figures.training import (
    cohort_rewards, learning_curves, reward_by_samples, reward_progress, reward_rows, training_curve,
)  # fmt: skip
