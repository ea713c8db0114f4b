"""Simulated users under test (appendix G): short dialogues, and what is measured in them without people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from rlpa_lib.agents import parties, world
from rlpa_lib.dialogue.dialogue import Dialogue, Utterance, judge_view
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.protocols import SimulatedUser
from rlpa_lib.dialogue.reveal import SHARE_PER_TURN, said_before
from rlpa_lib.dialogue.turns import play_turns
from rlpa_lib.evaluation import rows
from rlpa_lib.methods.table import Answer, Method
from rlpa_lib.runs.run import Run
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.kinds import USERS
from rlpa_lib.study import models
from rlpa_lib.study.annotation import Item

IMPOSTOR = "impostor control"
Talks = Mapping[str, Sequence[tuple[Persona, Dialogue]]]  # by user model
Claims = Mapping[tuple[str, str], Sequence[models.Claim]]  # by user model and dialogue


@dataclass(frozen=True)
class Impostor:
    """A control: everybody speaks as somebody else of `cast`, as fluent as ever, but fits by chance."""

    user: SimulatedUser
    cast: tuple[Persona, ...]

    def reply(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue]) -> list[Utterance]:
        """The next utterance of each user, spoken by the next persona of the cast."""
        following = dict(zip((p.id for p in self.cast), self.cast[1:] + self.cast[:1], strict=True))
        return self.user.reply([following[persona.id] for persona in personas], dialogues)


def make_user_models(run: Run, people: Sequence[Persona]) -> dict[str, SimulatedUser]:
    """Name -> user: the run's own, those of study.user_models, and the run's own as impostor."""
    cfg = run.cfg
    own = parties.make_user(cfg, "test", run.seed, run)
    others = {
        name: parties.make_user(cfg.model_copy(update={"user": section}), "test", run.seed, run)
        for name, section in cfg.study.user_models.items()
    }
    name = USERS[cfg.user.kind].label or str(cfg.user.model)
    return {name: own, **others, IMPOSTOR: Impostor(own, tuple(people))}


def make_partner(run: Run) -> Method:
    """Who talks with every user model: the run's untrained policy, prompted to keep a profile."""
    row = rows.Row("rlpa_prompting")
    return replace(rows.Stage(run, [row]).method(row, "vanilla"), name="study-partner")


def play_dialogues(
    run: Run, name: str, user: SimulatedUser, people: Sequence[Persona], partner: Method
) -> list[Dialogue]:
    """`study.turns` turns of every persona with one partner; read back when the run has them."""
    file = f"dialogues/study-{name.replace(' ', '_').replace('/', '_')}.jsonl"
    key = run.fingerprint("study", name, partner.name)
    if run.done(f"study/{name}", key):
        return [Dialogue.from_json(row) for row in run.read_jsonl(file)]

    def answer(personas: Sequence[Persona], heard: Sequence[Dialogue]) -> list[Answer]:
        return partner.respond(personas, heard, derive_seed(run.seed, "study", len(heard[0].turns) + 1))

    dialogues = [Dialogue(f"study-{p.id}", p.id) for p in people]
    options = {"turns": run.cfg.study.turns, "fallback": run.cfg.rollout.fallback}
    for played in play_turns(people, dialogues, user, answer, **options):
        dialogues = played.dialogues
    run.write_jsonl(file, [dialogue.to_json() for dialogue in dialogues])
    run.mark_done(f"study/{name}", key)
    return dialogues


def reports_words(dialogue: Dialogue) -> bool:
    """Whether the user says in which words it tells facts: the miniature's users do, models do not."""
    return not any(turn.user.stated and not turn.user.phrases for turn in dialogue.turns)


def find_claims(run: Run, talks: Talks) -> Claims:
    """What users say about themselves, by a judge model, for user models that do not report their words."""
    return {
        (name, dialogue.id): claims
        for name, some in talks.items()
        if not all(reports_words(dialogue) for _, dialogue in some)
        for (_, dialogue), claims in zip(some, models.find_claims(run, some), strict=True)
    }


def measure_dialogue(
    persona: Persona, dialogue: Dialogue, claimed: Sequence[models.Claim] | None = None
) -> dict[str, float]:
    """One dialogue's counts, from the user's ledger and words.

    `stated` facts with their words; `contradicted`: not the persona's value of that slot; `inconsistent`: not
    what was said of it before; `told`: slots revealed; `over_limit`: turns after which more than 15 % a turn
    had been told (section 3.1); `repeated`: utterances nearly the same as an earlier one (letter triples);
    `words`. A model's `claimed` stand in for words not reported; without either the first three are NaN.
    """
    texts, n = [turn.user.text for turn in dialogue.turns], len(persona.profile)
    told_at = dialogue.ledger().values()
    told = [sum(turn <= k for turn in told_at) for k in range(len(texts) + 1)]  # after k turns
    facts = (float("nan"),) * 3
    if claimed is not None:
        facts = len(claimed), sum(c.against_persona for c in claimed), sum(c.against_earlier for c in claimed)
    elif reports_words(dialogue):
        facts = _check_words(persona, dialogue)
    return {
        "turns": len(texts), "slots": n, "told": told[-1],
        "over_limit": sum(now > max(1, -(-SHARE_PER_TURN * n * k // 1)) for k, now in enumerate(told[1:])),
        **dict(zip(("stated", "contradicted", "inconsistent"), facts, strict=True)),
        "repeated": sum(said_before(texts[: k + 1]) for k in range(1, len(texts))),
        "words": sum(len(text.split()) for text in texts),
    }  # fmt: skip


def measure_table(talks: Talks, claimed: Claims | None = None) -> pd.DataFrame:
    """The automatic measures, a row a user model: contradiction_rate and inconsistency_rate of stated facts
    (NaN where none was stated), share_per_turn of the profile, over_limit_rate of turns, repetition_rate of
    utterances after the first, words_per_turn."""
    lines = []
    for name, some in talks.items():
        each = pd.DataFrame([measure_dialogue(p, d, (claimed or {}).get((name, d.id))) for p, d in some])
        n = each.sum(skipna=False)
        stated = n["stated"] or float("nan")
        lines.append({
            "model": name, "dialogues": len(each), "stated": n["stated"],
            "contradiction_rate": n["contradicted"] / stated,
            "inconsistency_rate": n["inconsistent"] / stated,
            "share_per_turn": (each["told"] / each["slots"] / each["turns"]).mean(),
            "over_limit_rate": n["over_limit"] / n["turns"],
            "repetition_rate": n["repeated"] / max(1, n["turns"] - len(each)),
            "words_per_turn": n["words"] / n["turns"],
        })  # fmt: skip
    return pd.DataFrame(lines)


def make_items(talks: Talks) -> list[Item]:
    """One item a dialogue: the persona, then the talk; the model's name is hidden."""
    return [
        Item(f"{name}|{d.id}", (
            ("Persona", (("description", p.description), ("manner", p.personality), *p.profile.items)),
            ("Conversation", judge_view(d)),
        ), {"model": name})
        for name, some in talks.items()
        for p, d in some
    ]  # fmt: skip


def _check_words(persona: Persona, dialogue: Dialogue) -> tuple[int, int, int]:
    """How many facts were told, how many contradict the persona, and how many what was said before."""
    facts = [fact for t in dialogue.turns for fact in zip(t.user.stated, t.user.phrases, strict=False)]
    said: dict[str, str] = {}
    wrong = inconsistent = 0
    for slot, phrase in facts:
        alike = [(s, v) for s, v in persona.profile.items if world.are_compatible(s, slot)]
        wrong += not any(world.same_value(s, phrase, v) for s, v in alike)
        inconsistent += slot in said and not world.same_value(slot, phrase, said[slot])
        said.setdefault(slot, phrase)
    return len(facts), wrong, inconsistent
