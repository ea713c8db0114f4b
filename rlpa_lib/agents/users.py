"""Simulated users (section 3.1): they reveal, turn by turn, a profile that the policy cannot see."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, StringConstraints

from rlpa_lib.agents.asking import RunFolder, load_prompt, open_endpoint
from rlpa_lib.client.chat import Answer, BadAnswer, Refused, Request
from rlpa_lib.dialogue import quoting
from rlpa_lib.dialogue.dialogue import Dialogue, Utterance
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.protocols import InformedUser, Message, News
from rlpa_lib.dialogue.reveal import OPENING, reveal_budget, said_before
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.base import Role
from rlpa_lib.settings.config import Config

if TYPE_CHECKING:
    from rlpa_lib.client.endpoint import ChatEndpoint

MAX_PERSONA = 6000  # characters of a profile, and of a personality text
MAX_REPLY = 2000  # characters of a response that a user model is shown
TRIES = 3  # of one utterance, each under another seed, when the model refuses or answers nothing readable


@dataclass(frozen=True)
class Shift:
    """One slot of a persona whose value changes from `old` to `new` in mid-dialogue."""

    slot: str
    old: str
    new: str


@dataclass(frozen=True)
class ShiftingUser:
    """A user whose persona changes (section 5.2): from turn `at` on the new one holds, mentioned in passing.

    The old value is told at least one turn earlier, so that every method has the same to unlearn. `shifts`
    maps persona ids to what changes; others stay as they are. `note` ({slot}, {old}, {new}) tells of the
    change to an evaluation judge that reads the persona's prose.
    """

    inner: InformedUser
    at: int
    shifts: Mapping[str, Shift]
    note: str = "Changed: {slot} is {new} now, no longer {old}."

    def valid(self, persona: Persona, turn: int) -> Persona:
        """The persona that holds at a turn (from 1)."""
        shift = self.shifts.get(persona.id)
        if shift is None or turn < self.at:
            return persona
        told = self.note.format(slot=shift.slot, old=shift.old, new=shift.new)
        # the prose stays, for a temperament is drawn from it; the personality text gains what has changed
        profile = persona.profile.replace(shift.slot, shift.new)
        return replace(persona, personality=f"{persona.personality} {told}".strip(), profile=profile)

    def reply(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue]) -> list[Utterance]:
        """The next utterance of each user, as the persona that holds now."""
        pairs = list(zip(personas, dialogues, strict=True))
        now = [self.valid(p, len(d.turns) + 1) for p, d in pairs]
        return self.inner.reply(now, dialogues, [self._news(p, d) for p, d in pairs])

    def _news(self, persona: Persona, dialogue: Dialogue) -> News | None:
        shift, turn = self.shifts.get(persona.id), len(dialogue.turns) + 1
        if shift is None or turn < 2:  # the first word is "Hello"
            return None
        if turn == self.at:
            return News(shift.slot, shift.old)
        return News(shift.slot) if turn == self.at - 1 and shift.slot not in dialogue.ledger() else None


# Bounds and lengths are hints for servers that decode by the schema.
_ItemNumber = Annotated[int, Field(json_schema_extra={"minimum": 1, "maximum": 50})]


class UserMessage(BaseModel):
    """What a user model answers: its words, and the numbers of the profile items that they tell."""

    message: Annotated[
        str,
        StringConstraints(strip_whitespace=True, min_length=1),
        Field(json_schema_extra={"maxLength": 600}),
    ]
    revealed: Annotated[list[_ItemNumber], Field(json_schema_extra={"maxItems": 10})]


@dataclass
class LLMUser:
    """A chat model that role-plays a persona (sections 3.1 and C.4). It sees its own profile and the words of
    both sides, never a profile block of the policy.

    It may tell 15 % of its profile a turn on average, at most two items at once; notes give it the budget
    left (from the ledger), what it has told, and whether a response is a repetition. `stated` is what the
    model reports. Turns beyond `limits.max_prompt_tokens` (estimated) are left out, oldest first, and it is
    told how many; `n_cut` counts such prompts. `manner` is added to the persona's own (users who do not
    cooperate).
    """

    endpoint: ChatEndpoint
    seed: int
    prompt: str
    limits: Role
    manner: str = ""
    n_cut: int = 0

    def reply(
        self, personas: Sequence[Persona], dialogues: Sequence[Dialogue],
        news: Sequence[News | None] | None = None,
    ) -> list[Utterance]:  # fmt: skip
        """Each user's next utterance, in order. EndpointError: a user does not speak, or the server fails."""
        told = news or [None] * len(dialogues)
        utterances = [Utterance(OPENING)] * len(dialogues)
        waiting = [i for i, dialogue in enumerate(dialogues) if dialogue.turns]
        talks = {i: tuple(self.messages(personas[i], dialogues[i], told[i])) for i in waiting}
        for attempt in range(TRIES):
            requests = [self._ask(personas[i], dialogues[i], talks[i], attempt) for i in waiting]
            answers = self.endpoint.complete(requests, desc="user", on_error="return") if requests else []
            silent = []
            for i, answer in zip(waiting, answers, strict=True):
                if isinstance(answer, Answer):
                    utterances[i] = _to_utterance(personas[i], answer.parsed)
                elif attempt + 1 == TRIES or not isinstance(answer, (BadAnswer, Refused)):
                    answer.args = (f"user {personas[i].id}: {answer}",)
                    raise answer
                else:
                    silent.append(i)
            waiting = silent
        return utterances

    def _ask(self, persona: Persona, dialogue: Dialogue, talk: tuple[Message, ...], attempt: int) -> Request:
        seed = derive_seed(self.seed, "user", persona.id, dialogue.id, len(dialogue.turns), attempt) % 2**31
        limits = self.limits
        return Request(talk, UserMessage, limits.temperature, max_tokens=limits.max_tokens, seed=seed)

    def messages(self, persona: Persona, dialogue: Dialogue, news: News | None = None) -> list[Message]:
        """System prompt and, in JSON, the dialogue as it sees it: own words `assistant`, responses `user`."""
        slots = persona.profile.slots()
        items = (f"{i}. {slot}: {value}" for i, (slot, value) in enumerate(persona.profile.items, start=1))
        personality = f"{persona.personality}\n{self.manner}".strip() or "-"
        told = {"profile": "\n".join(items), "personality": personality}
        filled = {name: quoting.plain(text, MAX_PERSONA) for name, text in told.items()}
        system = re.sub("{(profile|personality)}", lambda hole: filled[hole[1]], self.prompt)
        spoken = []  # per turn what it said itself and what was answered
        for turn in dialogue.turns:
            own = {"message": turn.user.text, "revealed": _number(slots, turn.user.stated)}
            theirs = {"they_said": quoting.plain(turn.reply.response, MAX_REPLY)}
            spoken.append((quoting.dumps(own), quoting.dumps(theirs)))
        notes = _make_notes(slots, dialogue, news)
        room = self.limits.max_prompt_tokens - quoting.estimated_tokens(system, quoting.dumps(notes)) - 30
        first = quoting.find_first([quoting.estimated_tokens(*texts) for texts in spoken], room)
        self.n_cut += bool(first)
        last = {**theirs, **notes, **({"turns_not_shown": first} if first else {})}
        texts = [text for pair in spoken[first:] for text in pair][:-1]
        texts = [quoting.dumps({"they_said": None}), *texts, quoting.dumps(last)]
        talk = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        return [{"role": "system", "content": system}, *talk]


def _number(slots: Sequence[str], named: Container[str]) -> list[int]:
    return [i for i, slot in enumerate(slots, start=1) if slot in named]


def _make_notes(slots: Sequence[str], dialogue: Dialogue, news: News | None) -> dict[str, Any]:
    """The notes that a user model's prompt explains, with what it has to work in."""
    told = dialogue.ledger()
    notes = {
        "already_told": _number(slots, told),
        "new_items_allowed": reveal_budget(len(slots), len(dialogue.turns) + 1, len(told)),
        "they_repeat_themselves": said_before([turn.reply.response for turn in dialogue.turns]),
    }
    if news and news.was is not None:
        number = slots.index(news.slot) + 1
        notes["changed_item"] = {"number": number, "was": quoting.plain(news.was, MAX_PERSONA)}
    elif news:
        notes["tell_now"] = slots.index(news.slot) + 1
    return notes


def _to_utterance(persona: Persona, answer: UserMessage) -> Utterance:
    """The answer with item numbers as slots; numbers without an item are ignored."""
    slots = persona.profile.slots()
    told = dict.fromkeys(slots[n - 1] for n in answer.revealed if 1 <= n <= len(slots))
    return Utterance(quoting.plain(answer.message, MAX_REPLY).strip(), tuple(told))


def make_user(cfg: Config, split: str, seed: int, run: RunFolder, manner: str = "willing") -> LLMUser:
    """The user model, the same for all splits. `manner`: how far it cooperates."""
    added = "" if manner == "willing" else load_prompt(cfg, f"user_{manner}")
    return LLMUser(open_endpoint(cfg, "user", run), seed, load_prompt(cfg, "user"), cfg.user, added)
