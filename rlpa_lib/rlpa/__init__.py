"""The paper's method: rewards (eq. 2-5), rollouts, credit (eq. 1), PPO (eq. 6-7) and the trainer."""
