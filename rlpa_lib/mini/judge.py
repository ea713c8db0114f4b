"""Judges by rule. They parse a text with the world's grammar, so that single words earn nothing.

RuleJudge gives training rewards (eq. 2-4), RuleEvaluationJudge scores against the true persona (C.3),
RuleRevealJudge says what a user has told (section 5.3).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

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

USERS = ("user_train", "user_test")
TURNING_ACTS = {"ask", "open", "detail", "invite"}
MAX_SENTENCES, MAX_WORDS, BRIEF_WORDS = 4, 60, 26


@dataclass(frozen=True)
class Evidence:
    """What a response is judged by: known facts (slot -> phrase), slots told, earlier responses, and the
    user's wishes: short answers, a calm tone, a slot left alone, advice now."""

    facts: dict[str, str]
    told: frozenset[str]
    earlier: tuple[str, ...]
    brief: bool
    calm: bool
    private: str | None
    advice: bool

    @property
    def usable(self) -> bool:
        """Has the user told anything that a sentence of the grammar can refer to?"""
        return any(map(language.list_frame_slots, self.told))


def gather_evidence(dialogue: Dialogue) -> Evidence:
    """What the transcript alone tells: facts from the user's ledger, wishes from what the user said."""
    said = [s.template for text in words(dialogue) for s in _understand(text)]
    acts, earlier = {template.act for template in said}, tuple(t.reply.response for t in dialogue.turns)
    private = next((template.slots[0] for template in said if template.act == "private"), None)
    last = _understand(dialogue.pending.text) if dialogue.pending else []
    wishes = {"brief": "brief" in acts, "calm": "calm" in acts, "private": private}
    wishes["advice"] = any(s.template.act == "advice" for s in last)
    return Evidence(dialogue.facts(), frozenset(dialogue.ledger()), earlier, **wishes)


def _understand(text: str, names: Iterable[str] = USERS) -> list[language.Sentence]:
    # Every reading counts: "My age is off limits, please." also has the form of "My age is {Age}."
    return [sentence for name in names for options in language.parse(text, name) for sentence in options]


def find_support(fact: tuple[str, str], facts: dict[str, str]) -> str | None:
    """The slot whose whole known value a claim names, as said or in another listed phrasing; else None."""
    (slot, phrase), value = fact, lex.find_value(fact[1])
    for own, known in facts.items():
        forms = language.list_forms(slot, known) if slot in lex.READERS else value.forms if value else ()
        listed = phrase.casefold() in map(str.casefold, forms) and lex.same_value(slot, phrase, known)
        if slot in language.list_frame_slots(own) and (listed or phrase.casefold() == known.casefold()):
            return own
    return None


def _is_phrase(fact: tuple[str, str], facts: dict[str, str]) -> bool:
    """Is it something the user said, or a value of the world that fits the frame?"""
    slot, phrase = fact
    if read := lex.READERS.get(slot):
        return read(phrase) is not None
    value = lex.find_value(phrase)
    fits = value is not None and slot in language.list_frame_slots(value.slot)
    return fits or find_support(fact, facts) is not None


@dataclass(frozen=True)
class Reading:
    """A response as the judge understands it: its sentences, their acts, and the slots that it uses."""

    response: str
    sentences: tuple[language.Sentence, ...]
    acts: set[str]
    used: dict[str, str]
    evidence: Evidence


def find_malformations(response: str) -> Iterator[str]:
    """Why it cannot be understood; nothing for 1-4 different sentences of the grammar, at most 60 words."""
    sentences = language.split_sentences(response)
    if not sentences or " ".join(sentences) != response.strip():
        yield "empty or oddly spaced"
    for sentence in sentences:
        if not language.parse_sentence(sentence):
            yield f"not a well-formed sentence: {sentence!r}"
    if len(sentences) > MAX_SENTENCES or len(response.split()) > MAX_WORDS:
        yield "too long"
    if len({s.lower() for s in sentences}) < len(sentences):
        yield "says the same sentence twice"


def find_odd_phrases(reading: Reading) -> Iterator[str]:
    """N: well formed, and every hole is filled with a phrase that fits."""
    for fact in (fact for sentence in reading.sentences for fact in sentence.facts):
        if not _is_phrase(fact, reading.evidence.facts):
            yield f"{fact[1]!r} is no phrase that fits there"


def find_irrelevance(reading: Reading) -> Iterator[str]:
    """R: uses something known about this user once there is anything, and gives advice when asked for it."""
    if reading.evidence.advice and not {"suggest", "info"} & reading.acts:
        yield "the user asked for advice and got none"
    if reading.evidence.usable and not reading.used:
        yield "would suit any user: nothing known of this one is used"


def find_contradictions(reading: Reading) -> Iterator[str]:
    """L: claims nothing unsupported, asks for nothing that was told, respects what the user asked for."""
    evidence = reading.evidence
    for sentence in reading.sentences:
        for slot, phrase in sentence.facts:
            if find_support((slot, phrase), evidence.facts) is None:
                yield f"claims {slot} {phrase!r} without support"
        for slot in sentence.template.slots if sentence.template.act == "ask" else ():
            if slot in evidence.told:
                yield f"asks for {slot}, which was told"
            if slot == evidence.private:
                yield f"asks for {slot}, which the user wants left alone"
    if evidence.calm and "!" in reading.response:
        yield "shouts at a user who wants a calm tone"
    if evidence.brief and len(reading.response.split()) > BRIEF_WORDS:
        yield f"more than {BRIEF_WORDS} words for a user who wants short answers"


def find_dullness(reading: Reading) -> Iterator[str]:
    """G: hands the turn back, without flattery, a quiz, a sentence said before or the same question again."""
    if "flatter" in reading.acts:
        yield "flatters"
    if not TURNING_ACTS & reading.acts:
        yield "does not hand the turn back"
    if sum(s.template.act in ("ask", "open", "detail") for s in reading.sentences) > 2:
        yield "a quiz"
    said = [s for text in reading.evidence.earlier for s in _understand(text, ["assistant"])]
    if {s.key for s in said} & {s.key for s in reading.sentences}:
        yield "repeats itself"


def find_emptiness(reading: Reading) -> Iterator[str]:
    """F: has content; before anything usable is known, a question is enough."""
    wanted = language.CONTENT_ACTS | (set() if reading.evidence.usable else {"ask", "open"})
    if not wanted & reading.acts or len(reading.response.split()) < 6:
        yield "says nothing of content"


# The rule for each criterion of settings.kinds: what finds faults, and what is said where there are none.
RULES: dict[str, tuple[Callable[[Reading], Iterator[str]], str]] = {
    "N": (find_odd_phrases, "well formed"), "R": (find_irrelevance, "fits what is known"),
    "L": (find_contradictions, "consistent"), "G": (find_dullness, "invites an answer"),
    "F": (find_emptiness, "says something"),
}  # fmt: skip


def judge_response(response: str, evidence: Evidence, criteria: Iterable) -> tuple[Verdict, dict[str, str]]:
    """The marks of these criteria (eq. 4, appendix C.3), and the facts used (slot -> phrase)."""
    if malformation := next(find_malformations(response), None):
        # What cannot be understood cannot be credited for anything else.
        return Verdict(dict.fromkeys(criteria, False), dict.fromkeys(criteria, malformation)), {}

    def count_known(sentence: language.Sentence) -> int:
        return sum(find_support(fact, evidence.facts) is not None for fact in sentence.facts)

    sentences = tuple(max(options, key=count_known) for options in language.parse(response))
    facts = [fact for sentence in sentences for fact in sentence.facts]
    used = {slot: fact[1] for fact in facts if (slot := find_support(fact, evidence.facts))}
    reading = Reading(response, sentences, {s.template.act for s in sentences}, used, evidence)
    faults = {name: next(RULES[name][0](reading), None) for name in criteria}
    marks = {name: fault is None for name, fault in faults.items()}
    return Verdict(marks, {name: fault or RULES[name][1] for name, fault in faults.items()}), used


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
        verdicts = []
        for dialogue, reply in cases:
            verdict, used = judge_response(reply.response, gather_evidence(dialogue), REWARD_CRITERIA)
            noted = reply.profile.items
            if used and not any(_mean_same(item, fact) for fact in used.items() for item in noted):
                reason = "nothing in the inferred profile supports what it uses"
                verdict = Verdict(verdict.marks | {"R": False}, verdict.reasons | {"R": reason})
            verdicts.append(verdict)
        return verdicts


@dataclass(frozen=True)
class RuleEvaluationJudge:
    """The evaluation judge: sees the full true persona, told or not, and marks 0 or 1 (appendix C.3)."""

    def evaluate(self, cases: Sequence[tuple[Persona, Dialogue, str]]) -> list[Verdict]:
        """A verdict per (persona, dialogue with a pending utterance, response)."""
        verdicts = []
        for persona, dialogue, response in cases:
            told, mood = gather_evidence(dialogue), read_temperament(persona)
            true = dict(persona.profile.items)
            # What the user said counts only where true of this persona: a reply for somebody else must fail.
            said = {s: p for s, p in told.facts.items() if s in true and lex.same_value(s, p, true[s])}
            wishes = {"brief": mood.brief, "calm": mood.calm, "private": mood.private}
            evidence = replace(told, facts=true | said, **wishes)
            verdicts.append(judge_response(response, evidence, EVALUATION_CRITERIA)[0])
        return verdicts


@dataclass(frozen=True)
class RuleRevealJudge:
    """A slot is told when a sentence that tells it holds the value that the persona has now."""

    def find_revealed(self, cases: Sequence[tuple[Persona, Dialogue]]) -> list[frozenset[str] | None]:
        """As in `reveal.RevealJudge`; never None."""
        return [frozenset(_list_revealed(*case)) for case in cases]


def _list_revealed(persona: Persona, dialogue: Dialogue) -> Iterable[str]:
    for text in words(dialogue):
        for sentence in _understand(text, (*USERS, "changes_train", "changes_test")):
            if sentence.template.act in ("say", "changed"):
                facts = sentence.facts
                yield from (s for s, p in facts if lex.same_value(s, p, persona.profile.get(s) or ""))
        # A slot without sentence frames is told by its name.
        for slot, value in persona.profile.items:
            if any(language.name_slot(slot, form) in text for form in language.list_forms(slot, value)):
                yield slot
