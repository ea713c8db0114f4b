"""User, judge and policy as several processes share them: asked once, known to all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rlpa_lib.dialogue.dialogue import Dialogue, Utterance
from rlpa_lib.dialogue.judging import Judge, Verdict
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.protocols import Completion, Message, Policy, SimulatedUser
from rlpa_lib.rlpa.processes import Processes
from rlpa_lib.rlpa.unfinished import completion_of


class SharedUser:
    """A simulated user whom only the main process asks: caches, budgets and records of servers have one writer."""

    def __init__(self, user: SimulatedUser, processes: Processes):
        self.user, self.processes = user, processes

    def reply(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue]) -> list[Utterance]:
        """The next utterance of each user, in order."""
        rows = self.processes.on_main(lambda: [vars(u) for u in self.user.reply(personas, dialogues)])
        return [Utterance(row["text"], tuple(row["stated"]), tuple(row["phrases"])) for row in rows]


class SharedJudge:
    """A judge that only the main process asks."""

    def __init__(self, judge: Judge, processes: Processes):
        self.judge, self.processes = judge, processes

    def match(self, inferred: Profile, true: Profile) -> tuple[tuple[int, int], ...]:
        """One-to-one pairs (index inferred, index true)."""
        return tuple((i, j) for i, j in self.processes.on_main(lambda: self.judge.match(inferred, true)))

    def matches(self, pairs: Sequence[tuple[Profile, Profile]]) -> list[tuple[tuple[int, int], ...] | None]:
        """`match` for a batch; None where there was no readable answer."""
        rows = self.processes.on_main(lambda: self.judge.matches(pairs))
        return [None if row is None else tuple((i, j) for i, j in row) for row in rows]

    def responses(self, cases: Sequence[tuple[Dialogue, Reply]]) -> list[Verdict | None]:
        """The criteria for each reply; None where there was no readable answer."""
        rows = self.processes.on_main(lambda: [None if v is None else asdict(v) for v in self.judge.responses(cases)])
        return [None if row is None else Verdict(**row) for row in rows]


class SharedPolicy:
    """A policy of which each process samples its share of the prompts; `on_main`: one on servers, which the main process alone asks.

    What is sampled does not depend on how many share it: a completion's random numbers come from its prompt (`LocalPolicy`).
    """

    def __init__(self, policy: Policy, processes: Processes, on_main: bool):
        self.policy, self.processes, self.on_main = policy, processes, on_main

    @property
    def n_cut(self) -> int:
        """Prompts that lost turns, as the main process counts them."""
        return int(self.processes.on_main(lambda: getattr(self.policy, "n_cut", 0)))

    def generate(
        self, messages: Sequence[list[Message]], n: int, *, seed: int, temperature: float, max_new_tokens: int
    ) -> list[list[Completion]]:
        """n completions a message list, in order."""
        asked = {"seed": seed, "temperature": temperature, "max_new_tokens": max_new_tokens}
        if self.on_main:
            rows = self.processes.on_main(lambda: [[vars(c) for c in group] for group in self.policy.generate(messages, n, **asked)])
            return [[completion_of(row) for row in group] for group in rows]
        own = self.processes.share(range(len(messages)))
        answers = self.policy.generate(messages, n, own=own, **asked) if own else []
        parts = self.processes.gather([[vars(c) for c in group] for group in answers])
        found: dict[int, list[Completion]] = {}
        for rank, part in enumerate(parts):
            places = range(rank, len(messages), self.processes.world)
            found |= {i: [completion_of(row) for row in group] for i, group in zip(places, part, strict=True)}
        return [found[i] for i in range(len(messages))]
