"""The numbered notebooks: where they are, and which one waits for which."""

from pathlib import Path

from rlpa_lib.runs.record import REPOSITORY
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import METHODS

NOTEBOOKS = REPOSITORY / "notebooks"
LIVE = "9"  # notebooks 90-99 wait for a person and are not part of a run
# train the models in the evaluation's rows
ROWS = tuple(sorted({method.notebook for method in METHODS.values() if method.trained}))
TRAINING = tuple(sorted({*ROWS, "21_ablations"}))  # train weights of the policy
# what each of these trains beside PPO: `python -m rlpa_lib train --stage`
STAGES = {"11_sft": "sft", "12_dpo": "dpo", "22_grpo": "grpo"}
_INDEPENDENT = (
    "00_replication_map 01_profiles_and_data 02_simulated_user 03_rewards_and_judges "
    "10_prompting_baselines 11_sft 20_ppo 40_paper_audit"
).split()
# The notebooks whose results each one reads. A notebook that is not listed waits for all before it.
NEEDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_INDEPENDENT, ()),
    "12_dpo": ("11_sft",),  # dpo.start: sft
    "21_ablations": ("20_ppo",),
    "22_grpo": ("20_ppo",),  # PPO's curve stands beside GRPO's
    "30_evaluation": ROWS,  # beside 10 it plays the rows that 10 has not begun
    "31_preference_conflict": ("30_evaluation",),
    "32_long_term": ROWS,
    "33_reasoning_models": ("30_evaluation",),
    "34_user_and_reward_model_evaluation": ("20_ppo",),
    "35_difficult_users": ("30_evaluation",),
}


def list_notebooks(folder: Path = NOTEBOOKS) -> list[Path]:
    """Notebooks 00-89 of a folder in order. InputError if there are none."""
    found = sorted(path for path in folder.glob("[0-9][0-9]_*.ipynb") if not path.name.startswith(LIVE))
    if not found:
        raise InputError(f"{folder}: no numbered notebooks there")
    return found
