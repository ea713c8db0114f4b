"""Controls: a floor, a ceiling, and a trained policy that may not use its profile. They show what a score can
be made of."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rlpa_lib.agents import world
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply, render_reply
from rlpa_lib.methods.prompting import Prompted, make_base, make_rlpa
from rlpa_lib.methods.table import Answer, Asking, Asks, Donor, Parts
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import InputError


@dataclass(frozen=True)
class OracleControl:
    """The ceiling of the miniature: a scripted assistant that sees the true profile. Profile and response are
    drawn by seed and dialogue."""

    name: str = "oracle"
    writes_profile: bool = True

    def respond(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> list[Answer]:
        rngs = [random.Random(derive_seed(seed, dialogue.id)) for dialogue in dialogues]
        replies = [world.write_oracle_reply(*case) for case in zip(personas, dialogues, rngs, strict=True)]
        return [Answer(render_reply(r.profile, r.response), r, 0) for r in replies]


@dataclass(frozen=True)
class RandomControl:
    """The floor of the miniature: a well-formed response that was once made for somebody else, drawn from
    `pool` (`agents.world.list_floor_responses`) by seed and dialogue, and an empty profile."""

    pool: tuple[str, ...]
    name: str = "random"
    writes_profile: bool = True

    def respond(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> list[Answer]:
        drawn = [random.Random(derive_seed(seed, d.id)).choice(self.pool) for d in dialogues]
        return [Answer(r, Reply(Profile(), r, True), 0) for r in drawn]


@dataclass(frozen=True)
class PromptedOracle(Asks):
    """The ceiling of a real model: Base with the true profile in its system prompt (`template` holds
    {profile}), which is also the profile that is counted for its answers."""

    inner: Prompted
    template: str
    name: str = "oracle"
    writes_profile: bool = True

    def questions(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> Asking:
        talks = []
        for persona, dialogue in zip(personas, dialogues, strict=True):
            system, *rest = self.inner.messages(dialogue)
            told = self.template.format(profile=persona.profile.lines())
            talks.append([{**system, "content": f"{system['content']}\n\n{told}"}, *rest])
        said = yield self.inner.question(talks, seed)
        answers = zip(personas, map(self.inner.read, said), strict=True)
        return [replace(a, reply=replace(a.reply, profile=p.profile)) for p, a in answers]


@dataclass(frozen=True)
class MisdirectedAnswers(Asks):
    """The floor of a real model: every user gets what Base says to the next one. InputError: there is one
    user only."""

    inner: Prompted
    name: str = "random"
    writes_profile: bool = False

    def questions(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> Asking:
        if len(dialogues) < 2:
            raise InputError("evaluation.users: the random control needs at least two users")
        answers = yield from self.inner.questions(personas, dialogues, seed)
        return [*answers[1:], answers[0]]


@dataclass(frozen=True)
class StyleOnly(Asks):
    """The trained policy, which has to answer after a profile block that is not its own: what remains of its
    score owes nothing to the profile that it would have written. Only the response's tokens are counted."""

    inner: Prompted
    donor: Donor
    name: str
    writes_profile: bool = True

    def questions(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> Asking:
        profiles = map(self.donor, personas, dialogues)
        texts = [render_reply(profile, "", self.inner.strictness) for profile in profiles]
        starts = [text.removesuffix("\n</response>") for text in texts]
        # A final assistant message is a beginning that the answer continues.
        begun = [{"role": "assistant", "content": start} for start in starts]
        talks = [[*self.inner.messages(d), start] for d, start in zip(dialogues, begun, strict=True)]
        return list(map(self.inner.read, (yield self.inner.question(talks, seed)), starts))


def no_profile(persona: Persona, dialogue: Dialogue) -> Profile:
    """The donor of an empty profile."""
    return Profile()


@dataclass(frozen=True)
class Lent:
    """The donor of what the policy wrote about the next user at the same turn; `profiles` maps (user, turn)
    to a profile."""

    profiles: Mapping[tuple[str, int], Profile]

    @staticmethod
    def by_the_next(dialogues: Sequence[Dialogue]) -> Lent:
        """From the dialogues that the policy has had with the same users. InputError: fewer than two."""
        if len(dialogues) < 2:
            raise InputError("evaluation.users: a profile of another user needs at least two users")
        pairs = zip(dialogues, [*dialogues[1:], dialogues[0]], strict=True)
        return Lent({
            (own.persona_id, number): turn.reply.profile
            for own, other in pairs
            for number, turn in enumerate(other.turns, start=1)
        })

    def __call__(self, persona: Persona, dialogue: Dialogue) -> Profile:
        return self.profiles[persona.id, len(dialogue.turns) + 1]


def make_oracle(parts: Parts) -> PromptedOracle:
    """The ceiling of a real model."""
    return PromptedOracle(make_base(parts), parts.prompt("oracle"))


def make_random(parts: Parts) -> MisdirectedAnswers:
    """The floor of a real model."""
    return MisdirectedAnswers(make_base(parts))


def make_style_only(parts: Parts) -> StyleOnly:
    """The trained policy after the donor's profile; without a donor, after an empty one."""
    return StyleOnly(make_rlpa(parts), parts.donor or no_profile, parts.name)


def make_scripted_oracle(parts: Parts) -> OracleControl:
    """The ceiling of the miniature."""
    return OracleControl()


def make_scripted_random(parts: Parts) -> RandomControl:
    """The floor of the miniature."""
    return RandomControl(world.list_floor_responses())
