"""Judges by rule. Both understand a response by parsing it with the world's grammar, so words alone earn nothing:
RuleJudge gives the training rewards (eq. 2-4), RuleEvaluationJudge the alignment score against the true persona (C.3)."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.judging import CRITERIA, Verdict
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.mini import language
from rlpa_lib.mini import lexicon as lex
from rlpa_lib.mini.user import temperament

CONTENT_ACTS = ("ack", "suggest", "info")
TURNING_ACTS = ("ask", "open", "detail", "invite")
MAX_SENTENCES, MAX_WORDS, BRIEF_WORDS = 4, 60, 26


@dataclass(frozen=True)
class Wishes:
    """What the user wants of the other's manner."""

    brief: bool = False
    calm: bool = False
    private: str | None = None
    advice: bool = False


@dataclass(frozen=True)
class Evidence:
    """What a judge may hold a response against: facts that support a claim (slot -> phrase), the slots that the user
    has told, the user's wishes, and earlier responses."""

    facts: dict[str, str]
    told: frozenset[str]
    wishes: Wishes
    earlier: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Has the user told anything that a sentence of this world could take up?"""
        return any(language.frame_slots(slot) for slot in self.told)


def match_profiles(inferred: Profile, true: Profile) -> tuple[tuple[int, int], ...]:
    """One-to-one pairs (index inferred, index true) of items that mean the same: |P^ n P| of eq. 2 is their number."""
    if not len(inferred) or not len(true):
        return ()
    same = np.array([[lex_match(a, b) for b in true.items] for a in inferred.items], dtype=int)
    rows, columns = linear_sum_assignment(-same)
    return tuple((int(i), int(j)) for i, j in zip(rows, columns, strict=True) if same[i, j])


def lex_match(inferred: tuple[str, str], true: tuple[str, str]) -> bool:
    return lex.slots_compatible(inferred[0], true[0]) and lex.same_value(true[0], inferred[1], true[1])


def transcript_evidence(dialogue: Dialogue) -> Evidence:
    """What the transcript alone tells: facts from the user's ledger, wishes from what the user said."""
    acts = [s.template for u in _user_texts(dialogue) for s in _understood(u)]
    private = next((t.slots[0] for t in acts if t.act == "private"), None)
    last = {s.template.act for s in _understood(dialogue.pending.text)} if dialogue.pending else set()
    wishes = Wishes(any(t.act == "brief" for t in acts), any(t.act == "calm" for t in acts), private, "advice" in last)
    return Evidence(dialogue.facts(), frozenset(dialogue.ledger()), wishes, tuple(t.reply.response for t in dialogue.turns))


def _user_texts(dialogue: Dialogue) -> list[str]:
    return [t.user.text for t in dialogue.turns] + ([dialogue.pending.text] if dialogue.pending else [])


def _understood(text: str) -> list[language.Sentence]:
    parsed = [options for name in ("user_train", "user_test") for options in language.parse(text, name)]
    # Every reading counts: "My age is off limits, please." also has the form of "My age is {Age}."
    return [sentence for options in parsed for sentence in options]


def grounded(fact: tuple[str, str], facts: dict[str, str]) -> str | None:
    """The slot whose known value a claim rests on, or None when nothing that is known supports it."""
    slot, phrase = fact
    return next((s for s, known in facts.items()
                 if slot in language.frame_slots(s) and _whole(slot, phrase, known)), None)


def _whole(slot: str, phrase: str, known: str) -> bool:
    """The phrase must be, word for word, the value as it was said or another phrasing of it, never a piece of it or more than it."""
    said = phrase.casefold()
    if said == known.casefold():
        return True
    if slot in ("Age", "Gender"):
        return lex.same_value(slot, phrase, known) and said in language.spoken_forms(slot, known)
    value = lex.lexicon().find(phrase)
    return value is not None and said in map(str.casefold, value.forms) and lex.same_value(slot, phrase, known)


def _phrase(fact: tuple[str, str], facts: dict[str, str]) -> bool:
    """Is what stands in a hole a phrase at all: something the user said, or a value of the world that fits the frame?"""
    slot, phrase = fact
    if slot in ("Age", "Gender"):
        return lex.parse_age(phrase) is not None if slot == "Age" else lex.gender_of(phrase) is not None
    value = lex.lexicon().find(phrase)
    return grounded(fact, facts) is not None or (value is not None and slot in language.frame_slots(value.slot))


def naturalness(response: str) -> tuple[bool, str]:
    """N: every sentence derives from the grammar; 1-4 different sentences, at most 60 words."""
    sentences = language.split_sentences(response)
    if not sentences or " ".join(sentences) != response.strip():
        return False, "empty or oddly spaced"
    broken = [s for s, options in zip(sentences, language.parse(response), strict=True) if not options]
    if broken:
        return False, f"not a well-formed sentence: {broken[0]!r}"
    if len(sentences) > MAX_SENTENCES or len(response.split()) > MAX_WORDS:
        return False, "too long"
    if len({s.lower() for s in sentences}) < len(sentences):
        return False, "says the same sentence twice"
    return True, "well formed"


def relevance(used: dict, acts: list[str], evidence: Evidence) -> tuple[bool, str]:
    """R: rests on something that is known of this user as soon as there is something, and does what was asked for."""
    if evidence.wishes.advice and not {"suggest", "info"} & set(acts):
        return False, "the user asked for advice and got none"
    if evidence.usable and not used:
        return False, "would suit any user: nothing known of this one is used"
    return True, "fits what is known"


def logic(sentences, response: str, evidence: Evidence) -> tuple[bool, str]:
    """L: claims nothing that is unsupported, asks for nothing that was told, respects what the user asked for."""
    for sentence in sentences:
        for fact in sentence.facts:
            if grounded(fact, evidence.facts) is None:
                return False, f"claims {fact[0]} {fact[1]!r} without support"
        if sentence.template.act == "ask" and sentence.template.slots[0] in evidence.told:
            return False, f"asks for {sentence.template.slots[0]}, which was told"
        if sentence.template.act == "ask" and sentence.template.slots[0] == evidence.wishes.private:
            return False, f"asks for {evidence.wishes.private}, which the user wants left alone"
    if evidence.wishes.calm and "!" in response:
        return False, "shouts at a user who wants a calm tone"
    if evidence.wishes.brief and len(response.split()) > BRIEF_WORDS:
        return False, f"more than {BRIEF_WORDS} words for a user who wants short answers"
    return True, "consistent"


def engagement(sentences, evidence: Evidence) -> tuple[bool, str]:
    """G: hands the turn back, without flattery, a quiz, a sentence said before, or the same question a second time."""
    acts = [s.template.act for s in sentences]
    if "flatter" in acts:
        return False, "flatters"
    if not set(acts) & set(TURNING_ACTS):
        return False, "does not hand the turn back"
    if sum(a in language.QUESTION_ACTS for a in acts) > 2:
        return False, "a quiz"
    said = [sentence for text in evidence.earlier for options in language.parse(text) for sentence in options]
    before = {(s.template.id, s.facts) for s in said}
    # A question counts as the same whatever its wording: the slot was asked for already.
    asked = {s.template.slots for s in said if s.template.act == "ask"}
    for s in sentences:
        if (s.template.id, s.facts) in before or (s.template.act == "ask" and s.template.slots in asked):
            return False, "repeats itself"
    return True, "invites an answer"


def informativeness(sentences, response: str, evidence: Evidence) -> tuple[bool, str]:
    """F: says something of content; before anything is known that could be used, a question is content enough."""
    acts = {s.template.act for s in sentences}
    wanted = set(CONTENT_ACTS) if evidence.usable else {*CONTENT_ACTS, "ask", "open"}
    if not acts & wanted or len(response.split()) < 6:
        return False, "says nothing of content"
    return True, "says something"


def judge_response(response: str, evidence: Evidence) -> tuple[Verdict, dict[str, str]]:
    """The five criteria of eq. 4, and the facts used (slot -> phrase)."""
    natural = naturalness(response)
    if not natural[0]:
        # What cannot be understood cannot be credited for anything else.
        return Verdict(dict.fromkeys(CRITERIA, False), dict.fromkeys(CRITERIA, natural[1])), {}
    sentences = [_best(options, evidence.facts) for options in language.parse(response)]
    used = {slot: f[1] for s in sentences for f in s.facts if (slot := grounded(f, evidence.facts))}
    acts = [s.template.act for s in sentences]
    odd = next((f[1] for s in sentences for f in s.facts if not _phrase(f, evidence.facts)), None)
    if odd is not None:
        natural = False, f"{odd!r} is no phrase that fits there"
    results = (natural, relevance(used, acts, evidence), logic(sentences, response, evidence),
               engagement(sentences, evidence), informativeness(sentences, response, evidence))
    marks = {c: bool(r[0]) for c, r in zip(CRITERIA, results, strict=True)}
    return Verdict(marks, {c: r[1] for c, r in zip(CRITERIA, results, strict=True)}), used


def _best(options: tuple[language.Sentence, ...], facts: dict[str, str]) -> language.Sentence:
    """Of several derivations the one whose facts are known."""
    return max(options, key=lambda s: sum(grounded(f, facts) is not None for f in s.facts))


def _failed(verdict: Verdict, criterion: str, reason: str) -> Verdict:
    return Verdict(verdict.marks | {criterion: False}, verdict.reasons | {criterion: reason})


@dataclass(frozen=True)
class RuleJudge:
    """The training judge: knows the transcript and the inferred profile, never the true one (section 3.3)."""

    def match(self, inferred: Profile, true: Profile) -> tuple[tuple[int, int], ...]:
        return match_profiles(inferred, true)

    def matches(self, pairs: Sequence[tuple[Profile, Profile]]) -> list[tuple[tuple[int, int], ...]]:
        return [match_profiles(a, b) for a, b in pairs]

    def responses(self, cases: Sequence[tuple[Dialogue, Reply]]) -> list[Verdict]:
        """A verdict per (dialogue with a pending utterance, candidate reply)."""
        return [self._one(dialogue, reply) for dialogue, reply in cases]

    def _one(self, dialogue: Dialogue, reply: Reply) -> Verdict:
        verdict, used = judge_response(reply.response, transcript_evidence(dialogue))
        for slot, phrase in used.items():
            own = [v for s, v in reply.profile.items if lex.slots_compatible(s, slot) and lex.same_value(slot, v, phrase)]
            if own:
                return verdict
        if used:
            return _failed(verdict, "R", "nothing in the inferred profile supports what it uses")
        return verdict


@dataclass(frozen=True)
class RuleEvaluationJudge:
    """The evaluation judge: sees the full true persona, told or not, and marks 0 or 1 (appendix C.3)."""

    def evaluate(self, cases: Sequence[tuple[Persona, Dialogue, str]]) -> list[Verdict]:
        return [self._one(*case) for case in cases]

    def _one(self, persona: Persona, dialogue: Dialogue, response: str) -> Verdict:
        told = transcript_evidence(dialogue)
        mood = temperament(persona)
        wishes = Wishes(mood.brief, mood.calm, mood.private, told.wishes.advice)
        true = dict(persona.profile.items)
        # What the transcript says counts only as far as it is so of this persona: a reply that suits somebody else must fail.
        facts = true | {s: phrase for s, phrase in told.facts.items() if s in true and lex.same_value(s, phrase, true[s])}
        return judge_response(response, Evidence(facts, told.told, wishes, told.earlier))[0]
