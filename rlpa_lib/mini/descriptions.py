"""Prose about a persona: the description and the personality text that a simulated user is told."""

from __future__ import annotations

import random
import re

from rlpa_lib.mini.language import article
from rlpa_lib.mini.lexicon import GENDERS, Value

# Pronouns as (subject, possessive, reflexive). Where no gender is in the profile the text must not give one away: "they".
PRONOUNS = {
    "male": ("he", "his", "himself"),
    "female": ("she", "her", "herself"),
    "non-binary": ("they", "their", "themselves"),
}
IRREGULAR = {"is": "are", "has": "have", "does": "do"}

# A predicate tells one slot behind a subject: <verb> agrees with it, {v} is the value, {a} the value behind "a" or "an",
# {p} the possessive and {r} the reflexive pronoun, {slot} the slot's name in lower case.
PREDICATES = {
    "Age": ("<is> {v} years old", "<is> {v}", "<is> aged {v}", "<has> reached the age of {v}", "<has> turned {v}"),
    "Interests": (
        "<enjoys> {v}", "<loves> {v}", "<has> a passion for {v}", "<finds> joy in {v}", "<is> fond of {v}",
        "<spends> free hours on {v}"
    ),
    "Educational Background": (
        "<has> {v}", "<holds> {v}", "finished {p} studies with {v}", "earned {v}", "<is> proud to have {v}"
    ),
    "Personality Traits": (
        "<is> {v}", "<comes> across as {v}", "<tends> to be {v}", "<is> seen as {v}", "<describes> {r} as {v}"
    ),
    "Occupation": (
        "<works> as {a}", "<is> employed as {a}", "<earns> a living as {a}", "<makes> a career as {a}",
        "<spends> {p} working days as {a}"
    ),
    "Marital Status": (
        "<is> {v}", "<is> currently {v}", "<is> {v} at present", "<is> these days {v}", "<is> known to be {v}"
    ),
    "Family Background": (
        "<has> {v}", "<speaks> of having {v}", "<is> somebody with {v}", "<is> known to have {v}",
        "<mentions> having {v}"
    ),
    "Location": (
        "<lives> in {v}", "<is> based in {v}", "<resides> in {v}", "<has> made a home in {v}",
        "<has> settled in {v}", "<stays> in {v}"
    ),
    "Others": (
        "<has> {v}", "also <has> {v}", "<happens> to have {v}", "<admits> to having {v}",
        "<likes> to mention having {v}"
    ),
    "Favorite Food": (
        "<loves> to eat {v}", "<orders> {v} at every chance", "<names> {v} as {p} favorite food",
        "<would> eat {v} every day", "<is> always hungry for {v}"
    ),
    "Favorite Music": (
        "<listens> to {v}", "<likes> {v} best", "<plays> {v} at home all evening",
        "<names> {v} as {p} favorite music", "<relaxes> with {v}"
    ),
    "Life Goal": (
        "<dreams> of {v}", "<has> the goal of {v}", "<hopes> for the day of {v}", "<thinks> a lot about {v}",
        "<has> set {p} heart on {v}"
    ),
    "Way to Work": (
        "<gets> to work {v}", "<travels> to work {v}", "<goes> to work {v}", "<commutes> {v}", "<reaches> work {v}"
    ),
    "Fear": (
        "<is> afraid of {v}", "<has> a fear of {v}", "<is> scared of {v}", "<feels> nervous about {v}",
        "<shudders> at the thought of {v}"
    ),
    "Favorite Drink": (
        "<likes> to drink {v}", "<starts> the day with {v}", "<names> {v} as {p} favorite drink",
        "<is> rarely seen without {v}", "<orders> {v} whenever thirsty"
    ),
    "Dream Trip": (
        "<dreams> of a trip to {v}", "<wants> to travel to {v} one day", "<saves> money for a journey to {v}",
        "<would> love to see {v}", "<has> {v} at the top of {p} travel list"
    ),
    "Language": (
        "<learns> {v}", "<is> learning {v}", "<takes> lessons in {v}", "<studies> {v} in the evenings",
        "<is> taking a course in {v}"
    ),
    "Favorite Film Genre": (
        "<loves> to watch {v}", "<is> a fan of watching {v}", "<picks> {v} for movie nights",
        "<goes> to the cinema for {v}", "<enjoys> watching {v}"
    ),
    "Sport to Watch": (
        "<follows> {v} on television", "<likes> to watch {v} as a fan", "never <misses> {v} on a screen",
        "<watches> {v} every season", "<cheers> along with {v}"
    ),
}
ANY_SLOT = (
    "<names> {v} as {p} {slot}",
    "<has> this {slot}: {v}",
    "<gives> {v} as {p} {slot}",
    "<says> about {p} {slot}: {v}",
    "<puts> {v} down as {p} {slot}",
)
# The first sentence: {aged} is "a 34-year-old woman", {noun} is "a woman", {p1} a predicate, {w1} the same behind "who".
LEADS = (
    "{S} <is> {aged} who {w1}.",
    "{S} <is> {aged}. {S} {p1}.",
    "{S} <is> {noun} of {age} who {w1}.",
    "{S} <is> {noun} aged {age} and {p1}.",
    "At {age}, {s} <is> {noun} who {w1}.",
    "Meet {aged} who {w1}.",
)
AGELESS_LEADS = ("{S} <is> {noun} who {w1}.", "{S} <is> {noun} and {p1}.", "Meet {noun} who {w1}.")
OPENERS = ("In addition, {s} ", "On top of that, {s} ", "Besides, {s} ", "As for the rest, {s} ")
TRAITS = (
    "{S} <is> {v}.",
    "{S} <comes> across as {v}.",
    "Friends would say that {s} <is> {v}.",
    "By nature {s} <is> {v}.",
    "In conversation {s} <seems> {v}.",
)
PACES = {
    "talkative": ("{S} <likes> to talk and <shares> things freely.", "{S} <tells> a lot without being asked."),
    "balanced": ("{S} <talks> about as much as {s} <listens>.", "{S} <answers> openly and at an even pace."),
    "reserved": ("{S} <keeps> answers short.", "{S} <opens> up slowly and <waits> for questions."),
}
NEUTRAL = (
    "They talk in a plain and friendly way.",
    "They answer in everyday words and at an even pace.",
    "They chat politely and keep to the subject.",
    "They speak calmly and say what they mean.",
)


def _agree(text: str, plural: bool) -> str:
    """Resolve every <verb>, written in the third person singular, for a singular or plural subject."""

    def verb(match: re.Match) -> str:
        word = match[1]
        if not plural or not word.endswith("s"):
            return word
        if word in IRREGULAR:
            return IRREGULAR[word]
        if word.endswith("ies"):
            return word[:-3] + "y"
        return word[:-2] if word.endswith(("ches", "sses", "oes", "xes")) else word[:-1]

    return re.sub(r"<(\w+)>", verb, text)


def _predicate(slot: str, value: str, gender: str, rng: random.Random) -> str:
    """One of the slot's predicates with its value, verbs still open."""
    _, possessive, reflexive = PRONOUNS[gender]
    template = rng.choice(PREDICATES.get(slot, ANY_SLOT))
    return template.format(v=value, a=article(value), p=possessive, r=reflexive, slot=slot.lower())


def _lead(facts: dict[str, str], first: str, with_age: bool, rng: random.Random) -> str:
    gender, age = facts["Gender"], facts["Age"]
    subject, noun = PRONOUNS[gender][0], GENDERS[gender][0]
    # "an 18-year-old": the article follows the spoken number.
    aged = f"{'an' if age.startswith('8') or age in ('11', '18') else 'a'} {age}-year-old {noun}"
    text = rng.choice(LEADS if with_age else AGELESS_LEADS).format(
        S=subject.capitalize(), s=subject, aged=aged, noun=article(noun), age=age, p1=first, w1=_agree(first, plural=False)
    )
    return _agree(text, subject == "they")


def _join(parts: list[str]) -> str:
    return " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])}, and {parts[-1]}"


def _sentences(predicates: list[str], subject: str, rng: random.Random) -> list[str]:
    """Sentences of one to three predicates each, in the order given; no opener comes twice."""
    openers, sentences = list(OPENERS), []
    rng.shuffle(openers)
    while predicates:
        size = rng.choice((1, 2, 2, 3))
        opener = openers.pop() if sentences and openers and rng.random() < 0.4 else "{S} "
        sentence = f"{opener.format(S=subject.capitalize(), s=subject)}{_join(predicates[:size])}."
        sentences.append(_agree(sentence, subject == "they"))
        predicates = predicates[size:]
    return sentences


def describe(items: tuple[tuple[str, str], ...], rng: random.Random) -> str:
    """A text that says every (slot, value) item once, gender as "man" or "woman"; without a Gender item it speaks of "they"."""
    facts = dict(items)
    gender = facts.get("Gender", "non-binary")
    with_age = "Gender" in facts and rng.random() < 0.75
    told = {"Gender", "Age"} if with_age else {"Gender"}
    rest = [(slot, value) for slot, value in items if slot not in told]
    rng.shuffle(rest)
    predicates = [_predicate(slot, value, gender, rng) for slot, value in rest]
    lead = [_lead(facts, predicates.pop(0), with_age, rng)] if "Gender" in facts else []
    return " ".join(lead + _sentences(predicates, PRONOUNS[gender][0], rng))


def personality_text(trait: Value | None, gender: str, rng: random.Random) -> str:
    """One or two sentences from a Personality Traits value (and its pace, where it has one); neutral without a trait."""
    if trait is None:
        return rng.choice(NEUTRAL)
    subject = PRONOUNS[gender][0]
    chosen = [rng.choice(TRAITS), *([rng.choice(PACES[trait.attrs["pace"]])] if "pace" in trait.attrs else [])]
    text = " ".join(chosen).format(S=subject.capitalize(), s=subject, v=trait.canonical)
    return _agree(text, subject == "they")
