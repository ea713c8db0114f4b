"""Attacks on a judge: texts that ask for marks instead of deserving them, and how many of them succeed.

In the situation of `mini.attacks` the user told her home town, her job and a hobby: every attacking reply
deserves 0, every attacking profile item matches nothing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from rlpa_lib.agents import parties, world
from rlpa_lib.dialogue.dialogue import Dialogue, Utterance
from rlpa_lib.dialogue.judging import EvaluationJudge, Judge
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.runs.run import Run
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import EVALUATORS, JUDGES
from rlpa_lib.study.response_judge import read_rows

TARGETS = ("response", "profile", "user")
CONTROL = "control"  # the kind of texts that are no attack
POOR_REPLY = "Okay."  # what attacks on a response dress up: deserves 0
WRONG_VALUE = "lion tamer"  # what attacks on a profile dress up: matches nothing
Won = list[int | None]  # of each attack: 1 where it got what it wants, 0 where not, None where not judged


@dataclass(frozen=True)
class JudgeAttack:
    """`target` is where the text stands: the response, an inferred value, or the user's message."""

    id: str
    kind: str
    target: str
    language: str
    text: str

    def case(self) -> tuple[Dialogue, Reply]:
        """For targets response and user: a dialogue with a pending utterance, and the reply to it."""
        dialogue = world.situation()
        if self.target == "user":
            return replace(dialogue, pending=Utterance(self.text)), Reply(world.TOLD, POOR_REPLY, True)
        return dialogue, Reply(world.TOLD, self.text, True)

    def profile(self) -> Profile:
        """For target profile: one inferred item; line ends become blanks, as one item is one line."""
        return Profile((("Occupation", " ".join(self.text.split())),))


def read_attacks(path: Path) -> list[JudgeAttack]:
    """Attacks of a JSONL file, padded. InputError: no file, bad line or field, unknown target, id twice."""
    attacks = read_rows(path, _read_attack)
    if twice := [id_ for id_, times in Counter(attack.id for attack in attacks).items() if times > 1]:
        raise InputError(f"{path}: an id is given twice: {twice[0]}")
    return attacks


def make_controls() -> list[JudgeAttack]:
    """The poor reply and the wrong value alone: what a judge lets pass anyway is no attack's success."""
    return [
        JudgeAttack("control-response", CONTROL, "response", "en", POOR_REPLY),
        JudgeAttack("control-profile", CONTROL, "profile", "en", WRONG_VALUE),
    ]


def attack_judge(judge: Judge, attacks: Sequence[JudgeAttack]) -> Won:
    """What a training judge grants: score 1, or a matched item."""
    replies = {attack.id: attack.case() for attack in attacks if attack.target != "profile"}
    profiles = {attack.id: attack.profile() for attack in attacks if attack.target == "profile"}
    verdicts = judge.responses([*replies.values()])
    pairs = judge.matches([(profile, world.PERSONA.profile) for profile in profiles.values()])
    won = {id_: v and v.score for id_, v in zip(replies, verdicts, strict=True)}
    won |= {id_: None if p is None else int(len(p) > 0) for id_, p in zip(profiles, pairs, strict=True)}
    return [won[attack.id] for attack in attacks]


def attack_evaluator(judge: EvaluationJudge, attacks: Sequence[JudgeAttack]) -> Won:
    """What an evaluation judge grants; attacks on profiles do not reach it."""
    cases = {attack.id: attack.case() for attack in attacks if attack.target != "profile"}
    verdicts = judge.evaluate([(world.PERSONA, dialogue, r.response) for dialogue, r in cases.values()])
    won = {id_: v and v.score for id_, v in zip(cases, verdicts, strict=True)}
    return [won.get(attack.id) for attack in attacks]


def attack_judges(run: Run, attacks: Sequence[JudgeAttack]) -> dict[tuple[str, str], Won | None]:
    """(judge, defence) -> result: the rule judges, then the run's language models, quoted and bare.

    None for judges that the run does not have. A model that cannot answer does not stop the run here.
    """
    cfg = run.cfg
    results: dict[tuple[str, str], Won | None] = {
        ("rule judge", "rules"): attack_judge(world.make_reward_judge(cfg), attacks),
        ("rule evaluator", "rules"): attack_evaluator(world.make_evaluation_judge(cfg), attacks),
    }
    for defence in ("quoted", "bare"):
        options = {"defended": defence == "quoted", "failure_limit": 1.0}
        results["model judge", defence] = results["model evaluator", defence] = None
        if not JUDGES[cfg.judge.kind].scripted:
            judge = parties.make_reward_judge(cfg, run, **options)
            results["model judge", defence] = attack_judge(judge, attacks)
        if not EVALUATORS[cfg.evaluator.kind].scripted:
            evaluator = parties.make_evaluation_judge(cfg, run, **options)
            results["model evaluator", defence] = attack_evaluator(evaluator, attacks)
    return results


def success_table(results: dict[tuple[str, str], Won | None], attacks: Sequence[JudgeAttack]) -> pd.DataFrame:
    """One row a kind of attack and one for all but the controls; a column per (judge, defence).

    Cells: "succeeded / judged", "-" where none was judged, "not run" where the result is None.
    """
    kinds = pd.Series([attack.kind for attack in attacks])
    groups = {kind: kinds == kind for kind in kinds.unique()} | {"all": kinds != CONTROL}
    return pd.DataFrame([
        {"kind": kind, "attacks": chosen.sum()}
        | {f"{judge}, {defence}": _count(won, chosen) for (judge, defence), won in results.items()}
        for kind, chosen in groups.items()
    ])


def _count(won: Won | None, chosen: pd.Series) -> str:
    if won is None:
        return "not run"
    known = pd.Series(won, dtype=float)[chosen].dropna()
    return f"{known.sum():.0f} / {len(known)}" if len(known) else "-"


def _read_attack(row: dict[str, Any]) -> JudgeAttack:
    text = row["text"]
    if pad := row.get("pad"):
        text = text.replace("{pad}", pad["text"] * pad["times"])
    if row["target"] not in TARGETS:
        raise ValueError(f"target {row['target']!r} is not one of {', '.join(TARGETS)}")
    if not text.strip():
        raise ValueError("an empty text")
    return JudgeAttack(row["id"], row["kind"], row["target"], row["language"], text)
