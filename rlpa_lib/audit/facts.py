"""Claims whose verdict needs no computation: values given only in figures, and statements that the text itself answers.

Each entry: key, place, our paraphrase, stated value, verdict, evidence, charitable reading.
"""

from __future__ import annotations

_NO = "cannot be checked"
_FALSE = "does not hold"

# The kindest reading that fits, for claims that audit_claims computes and finds contradicted.
CHARITABLE = {
    "beats-gpt4o": "The introduction says on par, which the intervals allow; among the metrics of table 1, N-IR and N-R² are higher",
    "best-avg-both": "Meant, perhaps, among methods on the same backbone, where it holds",
    "best-n-ir": "Meant, perhaps, among methods on the same backbone, where it holds",
    "gain-dpo": "It follows from the printed average of DPO (45.27), which its ten turns do not give",
    "gain-extended": "It holds for SFT; for DPO perhaps another row was read",
    "leads-extended": "N-IR and N-R² lead under the reading that table 5 used; the average leads on the same backbone",
    "users-extended": "One persona may have been dropped after sampling",
    "user-model-score": "Its rank is as stated; the sentence may stem from an earlier version of the table",
    "user-model-kappa": "Its rank is as stated; the sentence may stem from an earlier version of the table",
}

FIGURE_CLAIMS = (
    (
        "conflict-rlpa",
        "section 5.2, fig. 4a",
        "RLPA drops little when preferences change at turn 6 and recovers by turn 9",
        "70.27, 82.43",
        _NO,
        "figure only; both values are whole numbers of 74 users (52, 61), 95 % intervals about 10 points either way; turn 5 is not given",
        "",
    ),
    (
        "conflict-dpo",
        "section 5.2, fig. 4a",
        "DPO falls when preferences change and hardly recovers",
        "71.62 to 25.68",
        _NO,
        "figure only; both are whole numbers of 74 users (53, 19), and the fall is far beyond chance if so",
        "",
    ),
    (
        "long-term",
        "section 5.3, fig. 4b",
        "The profile score rises to turn 50, then stays, near its ceiling",
        "9.26, 52.54, 50.32, 49.07",
        _NO,
        "figure only, number of dialogues not given; the three later values fall by 3.5 points; the ceiling is not printed",
        "",
    ),
    ("checkpoints", "section 5.3", "Eight checkpoints from turn 1 to 70", "8", "holds", "1, 10, 20, ..., 70 are eight", ""),
    (
        "reasoning",
        "section 5.4, fig. 5",
        "RLPA scores higher than reasoning models with fewer reasoning tokens; QwQ-32B uses over 300 per turn",
        "> 300 tokens",
        _NO,
        "figure only; neither number of users, intervals nor token counts are printed",
        "",
    ),
    (
        "curves",
        "section 5.1, fig. 18",
        "Training is stable under every reward",
        "smooth curves",
        _NO,
        "figure only, one run each as far as stated",
        "",
    ),
)

TEXT_CLAIMS = (
    (
        "gpus",
        "section 4.1",
        "All experiments ran on 8 A100 80GB",
        "8",
        _FALSE,
        "appendix E.2 says 4 GPUs for RLPA",
        "Perhaps 8 in the machine and 4 for the trainer",
    ),
    (
        "five-shot",
        "appendix D.2",
        "Chain of thought used five examples",
        "5",
        _FALSE,
        "the prompt printed there has three examples",
        "Perhaps the printed prompt was shortened",
    ),
    (
        "error-bars",
        "checklist 7",
        "Statistical significance is reported in an appendix",
        "yes",
        _FALSE,
        "no table or sentence gives an interval, a test or a number of seeds",
        "The checklist's appendix letters are one off, so perhaps a section was cut",
    ),
    (
        "training-set",
        "appendix C.1",
        "3,821 training samples from ALOE's training set",
        "3,821",
        _NO,
        "ALOE's public files hold 331 profiles and 71 personalities; the rule of combination is not given",
        "",
    ),
    (
        "test-set",
        "appendix C.2",
        "ALOE's complete test set of 74 users",
        "74",
        _NO,
        "table 4 fits 74 users; ALOE's public held-out files hold 20 profiles and 7 personalities, and the rule of combination is not given",
        "",
    ),
    (
        "user-model-choice",
        "section 3.1",
        "GPT-4o-mini simulates users, weighing quality and cost",
        "chosen on balance",
        _NO,
        "third of four in table 6 (4.04 against 4.26); costs are not given",
        "",
    ),
    (
        "judge-choice",
        "section 3.3",
        "GPT-4o agrees best with people; results in appendix H.2",
        "GPT-4o first",
        _NO,
        "appendix H.2 has one confusion table, without a model's name; no comparison of models",
        "",
    ),
    (
        "profile-judge",
        "appendix H.1",
        "The most suitable model counts overlaps",
        "not named",
        _NO,
        "the paper does not name it; the released code uses GPT-4o-mini, last in all four columns of table 8 (exact 35 %, within one 68 %)",
        "",
    ),
    (
        "user-agreement",
        "appendix G",
        "Cohen's kappa among three annotators",
        "kappa",
        _NO,
        "Cohen's kappa is for two raters and needs cases rated by both; each annotator is said to hold their own dialogues",
        "",
    ),
    (
        "judge-dimensions",
        "appendix H.2",
        "Agreement with people on every dimension",
        "all dimensions",
        _NO,
        "tables 9 and 10 are about the product of the five criteria only",
        "",
    ),
)
