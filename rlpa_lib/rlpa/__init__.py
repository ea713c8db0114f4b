"""The paper's method (sections 2.1, 3 and appendix B). To be read in this order:

1. `rewards`: profile reward (eq. 2-3), response reward (eq. 4) and their sum (eq. 5), of a reply and a batch.
2. `rollout`: a cohort of dialogues takes one turn, N samples a prompt, one of which goes on.
3. `credit`: which later rewards a turn's tokens answer for (eq. 1), by two schemes.
4. `ppo`: advantages, KL to the reference (eq. 6), clipped surrogate (eq. 7), value loss, schedule.
5. `packing`, `networks`: how samples become batches; policy, reference and critic on one backbone.
6. `learner`, `experience`: one optimiser step; one update, from scored turns to minibatches.
7. `trainer`, `checkpoints`: the loop over cohorts, and what it leaves on disk to go on exactly.
8. `training`, `warmup`, `processes`: a run from its settings, the step before PPO, one run on many processes.

What a trained policy is worth is measured elsewhere: AL(k) and eq. 8 in `rlpa_lib.evaluation.metrics`.
"""
