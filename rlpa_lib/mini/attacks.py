"""Replies that try to earn marks without deserving them, each with the criterion on which it must fail."""

from dataclasses import dataclass
from functools import cache

from rlpa_lib.dialogue.dialogue import Dialogue, Utterance
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import SLOTS, Profile, Reply
from rlpa_lib.mini.lexicon import read_lines

_VALUES = (
    "34", "female", "rock climbing", "a bachelor's degree in nursing", "talkative", "pediatric nurse",
    "single", "a twin sister", "Lisbon", "a collection of snow globes",
)  # fmt: skip
PERSONA = Persona(
    "gallery",
    "She is a 34-year-old woman who works as a pediatric nurse in Lisbon and loves rock climbing.",
    "She is talkative.",
    Profile(tuple(zip(SLOTS, _VALUES, strict=True))),
)
TOLD = Profile((("Interests", "rock climbing"), ("Location", "Lisbon"), ("Occupation", "pediatric nurse")))


@dataclass(frozen=True)
class Attack:
    """A response, and the criterion (N, R, L, G or F) on which it must fail; None for one that must pass."""

    name: str
    response: str
    fails: str | None
    profile: Profile = TOLD

    @property
    def reply(self) -> Reply:
        """The response behind its profile."""
        return Reply(self.profile, self.response, True)


def situation() -> Dialogue:
    """Two turns and a pending utterance: age was asked for in vain; hobby, home and job were told."""
    first = "Hi, nice to meet you! How old are you?"
    second = "It sounds like rock climbing makes you happy. Where do you live?"
    hobby = Utterance("I love rock climbing.", ("Interests",), ("rock climbing",))
    dialogue = Dialogue("gallery", PERSONA.id).hear(Utterance("Hello"))
    dialogue = dialogue.answer(first, Reply(Profile(), first, True)).hear(hobby)
    dialogue = dialogue.answer(second, Reply(Profile(TOLD.items[:1]), second, True))
    text, told = "I live in Lisbon. I work as a pediatric nurse.", ("Lisbon", "pediatric nurse")
    return dialogue.hear(Utterance(text, ("Location", "Occupation"), told))


@cache
def load_gallery() -> tuple[Attack, ...]:
    """The attacks of attacks.tsv on the situation above, and three replies that must pass."""
    attacks = []
    for _, line in read_lines("attacks.tsv"):
        name, fails, response, *profile = line.split("\t")
        noted = Profile(tuple(tuple(item.split(": ")) for item in profile)) if profile else TOLD
        attacks.append(Attack(name, response, None if fails == "-" else fails, noted))
    return tuple(attacks)
