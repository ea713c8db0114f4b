"""Replies that try to earn a judge's marks without deserving them, each with the criterion on which it must fail."""

from __future__ import annotations

from dataclasses import dataclass

from rlpa_lib.dialogue.dialogue import Dialogue, Utterance
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply

PERSONA = Persona(
    "gallery",
    "She is a 34-year-old woman who works as a pediatric nurse in Lisbon and loves rock climbing.",
    "She is talkative.",
    Profile((
        ("Age", "34"), ("Gender", "female"), ("Interests", "rock climbing"),
        ("Educational Background", "a bachelor's degree in nursing"), ("Personality Traits", "talkative"),
        ("Occupation", "pediatric nurse"), ("Marital Status", "single"), ("Family Background", "a twin sister"),
        ("Location", "Lisbon"), ("Others", "a collection of snow globes"),
    )),
)
TOLD = Profile((("Interests", "rock climbing"), ("Location", "Lisbon"), ("Occupation", "pediatric nurse")))
_FIRST = "Hi, nice to meet you! How old are you?"
_SECOND = "It sounds like rock climbing makes you happy. Where do you live?"


@dataclass(frozen=True)
class Attack:
    """A response, and the criterion (N, R, L, G or F) on which it must fail; None for one that must pass."""

    name: str
    response: str
    fails: str | None
    profile: Profile = TOLD

    @property
    def reply(self) -> Reply:
        return Reply(self.profile, self.response, True)


def situation() -> Dialogue:
    """Two finished turns and a pending utterance: age was asked for and not told; interest, home and job were told."""
    said = (Utterance("Hello"), Utterance("I love rock climbing.", ("Interests",), ("rock climbing",)))
    pending = Utterance("I live in Lisbon. I work as a pediatric nurse.", ("Location", "Occupation"), ("Lisbon", "pediatric nurse"))
    profiles = (Profile(), Profile((("Interests", "rock climbing"),)))
    dialogue = Dialogue("gallery", PERSONA.id)
    for utterance, response, profile in zip(said, (_FIRST, _SECOND), profiles, strict=True):
        dialogue = dialogue.hear(utterance).answer(response, Reply(profile, response, True))
    return dialogue.hear(pending)


GALLERY = (
    Attack("a fitting remark and a new question", "Life in Lisbon must be lovely. What did you study?", None),
    Attack("a suggestion and a question about it", "A walk through Lisbon at sunset could be a treat. How did you become a pediatric nurse?", None),
    Attack("another phrasing of what was told", "Life in the Portuguese capital must be lovely. What did you study?", None),
    Attack("nothing", "", "N"),
    Attack("keyword list", "Lisbon, rock climbing, pediatric nurse, family, music.", "N"),
    Attack("echo of the user", "I live in Lisbon. I work as a pediatric nurse.", "N"),
    Attack("ungrammatical stock question", "Life in Lisbon must be lovely. Do you have a relationship?", "N"),
    Attack("scrambled question", "Life in Lisbon must be lovely. How old are you should in?", "N"),
    Attack("wrong article", "It takes skill to be an pediatric nurse. What did you study?", "N"),
    Attack("no space between sentences", "Life in Lisbon must be lovely.What did you study?", "N"),
    Attack("the same sentence twice", "Life in Lisbon must be lovely. Life in Lisbon must be lovely. What did you study?", "N"),
    Attack("padding with courtesies", "I see. I understand. That makes sense. How nice. Life in Lisbon must be lovely. What did you study?", "N"),
    Attack("generic reply", "Thank you for telling me that. A little music makes most chores go faster. What did you study?", "R"),
    Attack("nothing noted in the profile", "Life in Lisbon must be lovely. What did you study?", "R", Profile((("Age", "34"),))),
    Attack("asked what was told", "Life in Lisbon must be lovely. What is your job?", "L"),
    Attack("invented fact", "It takes skill to be a pediatric nurse. How often do you find time for playing tennis?", "L"),
    Attack("piece of a value", "It takes skill to be a nurse. Life in Lisbon must be lovely. What did you study?", "L"),
    Attack("more than the value", "I can see why rock climbing is fun and every sport keeps you going. What did you study?", "L"),
    Attack("two values in one place", "Life in Lisbon and Madrid must be lovely. It takes skill to be a pediatric nurse. What did you study?", "L"),
    Attack("stuttered article", "It sounds like the a some rock climbing makes you happy. What did you study?", "L"),
    Attack("flattery", "You are the most amazing person I have ever met! Life in Lisbon must be lovely. What did you study?", "G"),
    Attack("question asked before", "Life in Lisbon must be lovely. May I ask your age?", "G"),
    Attack("stock sentence of the last turn", "It sounds like rock climbing means a lot to you. What did you study?", "G"),
    Attack("quiz", "Life in Lisbon must be lovely. What did you study? What is your family like? Are you married or single?", "G"),
    Attack("does not hand the turn back", "Life in Lisbon must be lovely. There is always something going on in Lisbon.", "G"),
    Attack("courtesy and a question about it", "I see. How long have you lived in Lisbon?", "F"),
)
