"""Judges by rule. They parse a text with the world's grammar, so that single words earn nothing.

RuleJudge gives training rewards (eq. 2-4), RuleEvaluationJudge scores against the true persona (C.3),
RuleRevealJudge says what a user has told (section 5.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.judging import Verdict
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.reveal import words
from rlpa_lib.mini import language
from rlpa_lib.mini import lexicon as lex
from rlpa_lib.mini.user import read_temperament
from rlpa_lib.settings.kinds import EVALUATION_CRITERIA, REWARD_CRITERIA

TURNING_ACTS = ("ask", "open", "detail", "invite")
MAX_SENTENCES, MAX_WORDS, BRIEF_WORDS = 4, 60, 26


@dataclass(frozen=True)
class Wishes:
    """How the user wants to be talked to."""

    brief: bool = False
    calm: bool = False
    private: str | None = None
    advice: bool = False


@dataclass(frozen=True)
class Evidence:
    """What a response is judged by: known facts (slot -> phrase), slots told, wishes, earlier responses."""

    facts: dict[str, str]
    told: frozenset[str]
    wishes: Wishes
    earlier: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Has the user told anything that a sentence of the grammar can refer to?"""
        return any(language.list_frame_slots(slot) for slot in self.told)


def gather_evidence(dialogue: Dialogue) -> Evidence:
    """What the transcript alone tells: facts from the user's ledger, wishes from what the user said."""
    acts = [s.template for text in words(dialogue) for s in _understand(text)]
    private = next((t.slots[0] for t in acts if t.act == "private"), None)
    last = {s.template.act for s in _understand(dialogue.pending.text)} if dialogue.pending else set()
    said = {template.act for template in acts}
    wishes = Wishes("brief" in said, "calm" in said, private, "advice" in last)
    earlier = tuple(t.reply.response for t in dialogue.turns)
    return Evidence(dialogue.facts(), frozenset(dialogue.ledger()), wishes, earlier)


def _understand(text: str, names: Iterable[str] = ("user_train", "user_test")) -> list[language.Sentence]:
    # Every reading counts: "My age is off limits, please." also has the form of "My age is {Age}."
    return [sentence for name in names for options in language.parse(text, name) for sentence in options]


def find_support(fact: tuple[str, str], facts: dict[str, str]) -> str | None:
    """The slot whose known value a claim rests on, or None when nothing that is known supports it."""
    slot, phrase = fact
    fitting = (s for s in facts if slot in language.list_frame_slots(s))
    return next((s for s in fitting if _names_whole_value(slot, phrase, facts[s])), None)


def _names_whole_value(slot: str, phrase: str, known: str) -> bool:
    """Is the phrase the whole known value, as it was said or in another listed phrasing?"""
    said = phrase.casefold()
    if said == known.casefold():
        return True
    if slot in ("Age", "Gender"):
        return lex.same_value(slot, phrase, known) and said in language.list_forms(slot, known)
    value = lex.load_lexicon().find(phrase)
    listed = value is not None and said in map(str.casefold, value.forms)
    return listed and lex.same_value(slot, phrase, known)


def _is_phrase(fact: tuple[str, str], facts: dict[str, str]) -> bool:
    """Is it something the user said, or a value of the world that fits the frame?"""
    slot, phrase = fact
    if slot in ("Age", "Gender"):
        return (lex.parse_age if slot == "Age" else lex.find_gender)(phrase) is not None
    value = lex.load_lexicon().find(phrase)
    fits = value is not None and slot in language.list_frame_slots(value.slot)
    return fits or find_support(fact, facts) is not None


@dataclass(frozen=True)
class Reading:
    """A response as the judge understands it: its sentences, and the facts that it uses (slot -> phrase)."""

    response: str
    sentences: tuple[language.Sentence, ...]
    used: dict[str, str]
    evidence: Evidence

    @property
    def acts(self) -> list[str]:
        """What its sentences do."""
        return [sentence.template.act for sentence in self.sentences]


def find_malformation(response: str) -> str | None:
    """Why it cannot be understood; None for 1-4 different sentences of the grammar, at most 60 words."""
    sentences = language.split_sentences(response)
    if not sentences or " ".join(sentences) != response.strip():
        return "empty or oddly spaced"
    broken = [s for s, options in zip(sentences, language.parse(response), strict=True) if not options]
    if broken:
        return f"not a well-formed sentence: {broken[0]!r}"
    if len(sentences) > MAX_SENTENCES or len(response.split()) > MAX_WORDS:
        return "too long"
    if len({s.lower() for s in sentences}) < len(sentences):
        return "says the same sentence twice"
    return None


def judge_naturalness(reading: Reading) -> tuple[bool, str]:
    """N: well formed, and every hole is filled with a phrase that fits."""
    facts = [fact for sentence in reading.sentences for fact in sentence.facts]
    odd = next((fact[1] for fact in facts if not _is_phrase(fact, reading.evidence.facts)), None)
    return (True, "well formed") if odd is None else (False, f"{odd!r} is no phrase that fits there")


def judge_relevance(reading: Reading) -> tuple[bool, str]:
    """R: uses something known about this user once there is anything, and gives advice when asked for it."""
    if reading.evidence.wishes.advice and not {"suggest", "info"} & set(reading.acts):
        return False, "the user asked for advice and got none"
    if reading.evidence.usable and not reading.used:
        return False, "would suit any user: nothing known of this one is used"
    return True, "fits what is known"


def judge_logic(reading: Reading) -> tuple[bool, str]:
    """L: claims nothing unsupported, asks for nothing that was told, respects what the user asked for."""
    evidence, wishes = reading.evidence, reading.evidence.wishes
    for sentence in reading.sentences:
        for fact in sentence.facts:
            if find_support(fact, evidence.facts) is None:
                return False, f"claims {fact[0]} {fact[1]!r} without support"
        if sentence.template.act == "ask" and sentence.template.slots[0] in evidence.told:
            return False, f"asks for {sentence.template.slots[0]}, which was told"
        if sentence.template.act == "ask" and sentence.template.slots[0] == wishes.private:
            return False, f"asks for {wishes.private}, which the user wants left alone"
    if wishes.calm and "!" in reading.response:
        return False, "shouts at a user who wants a calm tone"
    if wishes.brief and len(reading.response.split()) > BRIEF_WORDS:
        return False, f"more than {BRIEF_WORDS} words for a user who wants short answers"
    return True, "consistent"


def judge_engagement(reading: Reading) -> tuple[bool, str]:
    """G: hands the turn back, without flattery, a quiz, a sentence said before or the same question again."""
    if "flatter" in reading.acts:
        return False, "flatters"
    if not set(reading.acts) & set(TURNING_ACTS):
        return False, "does not hand the turn back"
    if sum(act in language.QUESTION_ACTS for act in reading.acts) > 2:
        return False, "a quiz"
    said = [s for text in reading.evidence.earlier for s in _understand(text, ["assistant"])]
    before = {(s.template.id, s.facts) for s in said}
    # A question counts as the same whatever its wording: the slot was asked for already.
    asked = {s.template.slots for s in said if s.template.act == "ask"}
    for s in reading.sentences:
        if (s.template.id, s.facts) in before or (s.template.act == "ask" and s.template.slots in asked):
            return False, "repeats itself"
    return True, "invites an answer"


def judge_informativeness(reading: Reading) -> tuple[bool, str]:
    """F: has content; before anything usable is known, a question is enough."""
    wanted = {*language.CONTENT_ACTS, *(() if reading.evidence.usable else ("ask", "open"))}
    if not set(reading.acts) & wanted or len(reading.response.split()) < 6:
        return False, "says nothing of content"
    return True, "says something"


# The rule for each criterion of settings.kinds.
RULES: dict[str, Callable[[Reading], tuple[bool, str]]] = {
    "N": judge_naturalness, "R": judge_relevance, "L": judge_logic, "G": judge_engagement,
    "F": judge_informativeness,
}


def judge_response(response: str, evidence: Evidence, criteria: Iterable) -> tuple[Verdict, dict[str, str]]:
    """The marks of these criteria (eq. 4, appendix C.3), and the facts used (slot -> phrase)."""
    if malformation := find_malformation(response):
        # What cannot be understood cannot be credited for anything else.
        return Verdict(dict.fromkeys(criteria, False), dict.fromkeys(criteria, malformation)), {}
    sentences = tuple(_choose_reading(options, evidence.facts) for options in language.parse(response))
    facts = [fact for sentence in sentences for fact in sentence.facts]
    used = {slot: fact[1] for fact in facts if (slot := find_support(fact, evidence.facts))}
    reading = Reading(response, sentences, used, evidence)
    marks, reasons = {}, {}
    for name in criteria:
        marks[name], reasons[name] = RULES[name](reading)
    return Verdict(marks, reasons), used


def _choose_reading(options: tuple[language.Sentence, ...], facts: dict[str, str]) -> language.Sentence:
    """The derivation with the most known facts."""
    return max(options, key=lambda s: sum(find_support(f, facts) is not None for f in s.facts))


def _mean_same(one: tuple[str, str], true: tuple[str, str]) -> bool:
    return lex.are_compatible(one[0], true[0]) and lex.same_value(true[0], one[1], true[1])


@dataclass(frozen=True)
class RuleJudge:
    """The training judge: knows the transcript and the inferred profile, never the true one (section 3.3)."""

    def match(self, inferred: Profile, true: Profile) -> tuple[tuple[int, int], ...]:
        """One-to-one pairs (index inferred, index true) of items that mean the same: |P^ n P| of eq. 2."""
        if not len(inferred) or not len(true):
            return ()
        same = np.array([[_mean_same(a, b) for b in true.items] for a in inferred.items], dtype=int)
        rows, columns = linear_sum_assignment(-same)
        return tuple((int(i), int(j)) for i, j in zip(rows, columns, strict=True) if same[i, j])

    def matches(self, pairs: Sequence[tuple[Profile, Profile]]) -> list[tuple[tuple[int, int], ...]]:
        """`match` for a batch, in order."""
        return [self.match(inferred, true) for inferred, true in pairs]

    def responses(self, cases: Sequence[tuple[Dialogue, Reply]]) -> list[Verdict]:
        """A verdict per (dialogue with a pending utterance, candidate reply)."""
        return [self._judge(dialogue, reply) for dialogue, reply in cases]

    def _judge(self, dialogue: Dialogue, reply: Reply) -> Verdict:
        verdict, used = judge_response(reply.response, gather_evidence(dialogue), REWARD_CRITERIA)
        if not used or any(_mean_same(item, fact) for fact in used.items() for item in reply.profile.items):
            return verdict
        reason = "nothing in the inferred profile supports what it uses"
        return Verdict(verdict.marks | {"R": False}, verdict.reasons | {"R": reason})


@dataclass(frozen=True)
class RuleEvaluationJudge:
    """The evaluation judge: sees the full true persona, told or not, and marks 0 or 1 (appendix C.3)."""

    def evaluate(self, cases: Sequence[tuple[Persona, Dialogue, str]]) -> list[Verdict]:
        """A verdict per (persona, dialogue with a pending utterance, response)."""
        return [self._judge(*case) for case in cases]

    def _judge(self, persona: Persona, dialogue: Dialogue, response: str) -> Verdict:
        told, mood, true = gather_evidence(dialogue), read_temperament(persona), dict(persona.profile.items)
        wishes = Wishes(mood.brief, mood.calm, mood.private, told.wishes.advice)
        # What the user said counts only where true of this persona: a reply for somebody else must fail.
        said = {s: p for s, p in told.facts.items() if s in true and lex.same_value(s, p, true[s])}
        evidence = Evidence(true | said, told.told, wishes, told.earlier)
        return judge_response(response, evidence, EVALUATION_CRITERIA)[0]


@dataclass(frozen=True)
class RuleRevealJudge:
    """A slot is told when a sentence that tells it holds the value that the persona has now."""

    def find_revealed(self, cases: Sequence[tuple[Persona, Dialogue]]) -> list[frozenset[str] | None]:
        """As in `reveal.RevealJudge`; never None."""
        return [self._judge(*case) for case in cases]

    def _judge(self, persona: Persona, dialogue: Dialogue) -> frozenset[str]:
        told: set[str] = set()
        for text in words(dialogue):
            sentences = _understand(text, ("user_train", "user_test", "changes_train", "changes_test"))
            facts = [fact for s in sentences if s.template.act in ("say", "changed") for fact in s.facts]
            told |= {s for s, phrase in facts if lex.same_value(s, phrase, persona.profile.get(s) or "")}
            # A slot without sentence frames is told by its name.
            for slot, value in persona.profile.items:
                if any(language.name_slot(slot, form) in text for form in language.list_forms(slot, value)):
                    told.add(slot)
        return frozenset(told)
