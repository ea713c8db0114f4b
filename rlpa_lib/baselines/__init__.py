"""The trained rows that are not RLPA: SFT and DPO on preference conversations, GRPO on PPO's rewards, all through TRL with LoRA adapters."""

from rlpa_lib.baselines.trainers import row_name, train_dpo, train_sft

__all__ = ["row_name", "train_dpo", "train_sft"]
