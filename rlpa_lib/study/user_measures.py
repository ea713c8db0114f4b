"""Simulated users under test (appendix G): short dialogues with every user model, and what can be measured in them without people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd

from rlpa_lib.agents import parties
from rlpa_lib.dialogue.dialogue import Dialogue, Utterance, judge_view
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.protocols import SimulatedUser
from rlpa_lib.dialogue.reveal import SHARE_PER_TURN, said_before
from rlpa_lib.methods.prompting import Method
from rlpa_lib.mini import lexicon as lex
from rlpa_lib.runs.run import Run
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.study.annotation import Item

if TYPE_CHECKING:
    from rlpa_lib.study.study_models import Claim

IMPOSTOR = "impostor control"


@dataclass(frozen=True)
class Impostor:
    """A control: everybody speaks as somebody else of `cast`. What is said is as fluent as ever and fits the persona no better than chance."""

    user: SimulatedUser
    cast: tuple[Persona, ...]

    def reply(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue]) -> list[Utterance]:
        """The next utterance of each user, spoken by the next persona of the cast."""
        places = {persona.id: place for place, persona in enumerate(self.cast)}
        return self.user.reply([self.cast[(places[p.id] + 1) % len(self.cast)] for p in personas], dialogues)


def make_user_models(run: Run, people: Sequence[Persona]) -> dict[str, SimulatedUser]:
    """Name -> user: the run's own, those of study.user_models, and the impostor control made of the run's own."""
    cfg = run.cfg
    own = parties.make_user(cfg, "test", run.seed, run)
    name = "agenda user" if cfg.user.kind == "agenda" else str(cfg.user.model)
    settings = {key: cfg.model_copy(update={"user": given}) for key, given in cfg.study.user_models.items()}
    others = {key: parties.make_user(given, "test", run.seed, run) for key, given in settings.items()}
    return {name: own, **others, IMPOSTOR: Impostor(own, tuple(people))}


def play_dialogues(run: Run, name: str, user: SimulatedUser, people: Sequence[Persona], partner: Method) -> list[Dialogue]:
    """`study.turns` turns of every persona with one partner, the same for all user models; read back when the run has them."""
    file, key = f"dialogues/study-{name.replace(' ', '_').replace('/', '_')}.jsonl", run.fingerprint("study", name, partner.name)
    if run.done(f"study/{name}", key):
        return [Dialogue.from_json(row) for row in run.read_jsonl(file)]
    now = [Dialogue(f"study-{p.id}", p.id) for p in people]
    for turn in range(1, run.cfg.study.turns + 1):
        now = [d.hear(u) for d, u in zip(now, user.reply(people, now), strict=True)]
        answers = partner.respond(people, now, derive_seed(run.seed, "study", turn))
        now = [d.answer(a.completion, a.reply, run.cfg.rollout.fallback) for d, a in zip(now, answers, strict=True)]
    run.write_jsonl(file, [d.to_json() for d in now])
    run.mark_done(f"study/{name}", key)
    return now


def reports_words(dialogue: Dialogue) -> bool:
    """Whether the user says in which words it tells its facts; the miniature's users do, models behind a server do not."""
    return not any(turn.user.stated and not turn.user.phrases for turn in dialogue.turns)


def find_claims(run: Run, found: Mapping[str, Sequence[tuple[Persona, Dialogue]]]) -> dict[tuple[str, str], list[Claim]]:
    """(user model, dialogue) -> what the user says about itself, by a judge model, for dialogues whose users do not report their words."""
    silent = {name: talks for name, talks in found.items() if not all(reports_words(dialogue) for _, dialogue in talks)}
    if not silent:
        return {}
    from rlpa_lib.study import study_models  # behind a server

    return {(name, d.id): told for name, talks in silent.items() for (_, d), told in zip(talks, study_models.find_claims(run, talks), strict=True)}


def measure_dialogue(persona: Persona, dialogue: Dialogue, claimed: Sequence[Claim] | None = None) -> dict[str, float]:
    """One dialogue's counts, from the user's ledger and words.

    `stated` facts with their words, `contradicted`: not the persona's value of that slot; `inconsistent`: not what the user said of it
    before; `told`: slots revealed; `over_limit`: turns after which more than 15 % a turn had been told (section 3.1); `repeated`: utterances
    nearly the same as an earlier one (letter triples); `words`. Users who do not report their words are judged by what a model `claimed`
    to have found; without that these three are NaN.
    """
    utterances = [turn.user for turn in dialogue.turns]
    spoken = [(slot, phrase) for u in utterances for slot, phrase in zip(u.stated, u.phrases, strict=False)]
    said: dict[str, str] = {}
    inconsistent = 0
    for slot, phrase in spoken:
        inconsistent += slot in said and not lex.same_value(slot, phrase, said[slot])
        said.setdefault(slot, phrase)
    wrong = sum(not any(lex.slots_compatible(s, slot) and lex.same_value(s, phrase, v) for s, v in persona.profile.items) for slot, phrase in spoken)
    facts: tuple[float, float, float] = (len(spoken), wrong, inconsistent)
    if claimed is not None:
        facts = (len(claimed), sum(c.against_persona for c in claimed), sum(c.against_earlier for c in claimed))
    elif not reports_words(dialogue):
        facts = (float("nan"),) * 3
    first, n, told, over = dialogue.ledger(), len(persona.profile), 0, 0
    for k in range(1, len(utterances) + 1):
        told = sum(turn <= k for turn in first.values())
        over += told > max(1, -(-SHARE_PER_TURN * n * (k - 1) // 1))
    texts = [u.text for u in utterances]
    return {
        "turns": len(utterances), "slots": n, "told": told, "over_limit": over,
        **dict(zip(("stated", "contradicted", "inconsistent"), facts, strict=True)),
        "repeated": sum(said_before(texts[: k + 1]) for k in range(1, len(texts))), "words": sum(len(t.split()) for t in texts),
    }  # fmt: skip


def measure_table(
    found: Mapping[str, Sequence[tuple[Persona, Dialogue]]], claimed: Mapping[tuple[str, str], Sequence[Claim]] | None = None
) -> pd.DataFrame:
    """The automatic measures, a row a user model: contradiction_rate and inconsistency_rate of stated facts (NaN where none was stated),
    share_per_turn of the profile, over_limit_rate of turns, repetition_rate of utterances after the first, words_per_turn."""
    rows = []
    for name, talks in found.items():
        total = pd.DataFrame([measure_dialogue(persona, dialogue, (claimed or {}).get((name, dialogue.id))) for persona, dialogue in talks])
        n = total.sum(skipna=False)
        stated = n["stated"] or float("nan")
        rows.append({
            "model": name, "dialogues": len(total), "stated": n["stated"], "contradiction_rate": n["contradicted"] / stated,
            "inconsistency_rate": n["inconsistent"] / stated, "share_per_turn": (total["told"] / total["slots"] / total["turns"]).mean(),
            "over_limit_rate": n["over_limit"] / n["turns"], "repetition_rate": n["repeated"] / max(1, n["turns"] - len(total)),
            "words_per_turn": n["words"] / n["turns"],
        })  # fmt: skip
    return pd.DataFrame(rows)


def make_items(found: dict[str, Sequence[tuple[Persona, Dialogue]]]) -> list[Item]:
    """One item a dialogue: the persona, then the talk; the model's name is hidden."""
    return [
        Item(f"{name}|{dialogue.id}", (
            ("Persona", (("description", persona.description), ("manner", persona.personality), *persona.profile.items)),
            ("Conversation", tuple(judge_view(dialogue))),
        ), {"model": name})
        for name, talks in found.items()
        for persona, dialogue in talks
    ]  # fmt: skip


def make_partner(run: Run) -> Method:
    """Who talks with every user model: the run's untrained policy, prompted to keep a profile."""
    from rlpa_lib.evaluation import rows

    row = rows.Row("rlpa_prompting")
    return replace(rows.Stage(run, [row]).method(row, "vanilla"), name="study-partner")
