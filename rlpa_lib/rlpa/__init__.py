"""The paper's method (sections 2.1, 3 and appendix B). To be read in this order, which is that of the calls:

1. `training`: a run from its settings, then the loop over cohorts; `warmup`: the step before PPO.
2. `rollout`: a cohort of dialogues takes one turn, N samples a prompt, one of which goes on.
3. `rewards`: profile reward (eq. 2-3), response reward (eq. 4) and their sum (eq. 5), of a reply and a batch.
4. `experience`: one update, from scored turns to optimiser steps.
5. `ppo`: credit (eq. 1), KL to the reference (eq. 6), clipped surrogate (eq. 7), value loss, schedule.
6. `learner`, `networks`, `packing`, `tree`: optimisers, state on disk; policy, reference and critic on one
   backbone; batches; what sequences begin with alike, run once.
7. `processes`: one run on many processes.

What a trained policy is worth is measured elsewhere: AL(k) and eq. 8 in `rlpa_lib.evaluation.metrics`.
"""
