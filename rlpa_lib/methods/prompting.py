"""Methods: how a dialogue becomes an answer (appendix D.2 and section 3). Rows of the tables are these, with and without training, and controls.

A method works with any Policy. `Prompted` is one call behind a system prompt; the others take a `Prompted` and do something before,
between or after its calls. What the user never sees (drafts, critiques, thoughts) is kept in `Answer.hidden`, and its tokens are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from rlpa_lib.dialogue.dialogue import Dialogue, Turn, policy_view
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply, parse_reply
from rlpa_lib.dialogue.protocols import Completion, Message, Policy
from rlpa_lib.methods.retrieval import SentenceEncoder, top_k
from rlpa_lib.runs.seeds import derive_seed

THOUGHT, VISIBLE = "Thought:", "Reply:"  # the labels of the chain-of-thought prompts, in every language


@dataclass(frozen=True)
class Step:
    """Something on the way to an answer that the user does not see; `n_tokens` were generated for it alone."""

    kind: str
    text: str
    n_tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """What a method did at one turn: the raw text, the reply read in it, all tokens generated for it, the hidden steps, and how many of the
    oldest turns its prompt had no room for (`policies.window`)."""

    completion: str
    reply: Reply
    n_tokens: int
    hidden: tuple[Step, ...] = ()
    n_dropped: int = 0


class Method(Protocol):
    """Answers the pending utterance of each dialogue. Only a control may look at the personas.

    A method whose local policy goes on from turn to turn (`LocalPolicy.generate`, goes_on) has a `recall`, too, which is called before
    it goes on with dialogues that another process has begun.
    """

    name: str
    writes_profile: bool

    def respond(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> list[Answer]: ...


@dataclass(frozen=True)
class Prompted:
    """A policy behind one system prompt. With `writes_profile` the answer is a profile block and a response (RLPA, and
    RLPA prompting: the same without training); without, the whole text is the response (Base, SFT, DPO).

    `suffix` stands behind the user message (Reminder). With `thinks` only what follows the label "Reply:" is the response (CoT).
    """

    name: str
    policy: Policy
    system_prompt: str
    writes_profile: bool
    history_profiles: str = "latest"
    temperature: float = 1.0
    max_new_tokens: int = 128
    suffix: str = ""
    thinks: bool = False

    def respond(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> list[Answer]:
        """One sampled answer a dialogue; the same seed gives the same answers."""
        return [self.answer(c) for c in self.ask([self.messages(d) for d in dialogues], seed, goes_on=True)]

    def recall(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue]) -> None:
        """Before going on with dialogues that another process has begun: run their prompts again, so that the bits are those of one that has
        played them (`LocalPolicy.recall`)."""
        recall(self.policy, [[self.messages(d) for d in before] for before in moments(dialogues)])

    def messages(self, dialogue: Dialogue) -> list[Message]:
        """The prompt of a dialogue with a pending utterance."""
        view = policy_view(dialogue, self.system_prompt, self.history_profiles if self.writes_profile else "none")
        return with_last(view, f"{view[-1]['content']} {self.suffix}") if self.suffix else view

    def ask(self, messages: Sequence[list[Message]], seed: int, goes_on: bool = False) -> list[Completion]:
        """One completion a prompt; `goes_on`: the prompts begin like those of the last call, which a local policy makes use of."""
        options = {"goes_on": goes_on} if hasattr(self.policy, "recall") else {}
        drawn = self.policy.generate(messages, 1, seed=seed, temperature=self.temperature, max_new_tokens=self.max_new_tokens, **options)
        return [completions[0] for completions in drawn]

    def answer(self, completion: Completion, start: str = "") -> Answer:
        """The answer read in a completion; `start` is the part of the text that the policy was given."""
        text, hidden = start + completion.text, _reasoning(completion)
        if self.writes_profile:
            reply = parse_reply(text)
        elif self.thinks:
            thought, visible = split_thought(text)
            reply, hidden = Reply(Profile(), visible, bool(visible)), (*hidden, *([Step("thought", thought)] if thought else []))
        else:
            reply = Reply(Profile(), text.strip(), bool(text.strip()))
        return Answer(text, reply, completion.n_generated, hidden, completion.dropped)


@dataclass(frozen=True)
class SelfCritic:
    """Draft, critique, revision: three calls, of which the user sees the last (appendix D.2). Later turns see revisions alone."""

    inner: Prompted
    critique_request: str
    revision_request: str
    name: str = "self_critic"
    writes_profile: bool = False

    def respond(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> list[Answer]:
        """The revision as the answer, draft and critique as hidden steps, the tokens of all three."""
        talks = [self.inner.messages(d) for d in dialogues]
        drafts = self.inner.ask(talks, derive_seed(seed, "draft"))
        talks = [_went_on(talk, draft, self.critique_request) for talk, draft in zip(talks, drafts, strict=True)]
        critiques = self.inner.ask(talks, derive_seed(seed, "critique"), goes_on=True)
        talks = [_went_on(talk, critique, self.revision_request) for talk, critique in zip(talks, critiques, strict=True)]
        revisions = self.inner.ask(talks, derive_seed(seed, "revision"), goes_on=True)
        return [self._answer(*calls) for calls in zip(drafts, critiques, revisions, strict=True)]

    def _answer(self, draft: Completion, critique: Completion, revision: Completion) -> Answer:
        final = self.inner.answer(revision)
        hidden = (Step("draft", draft.text, draft.n_generated), Step("critique", critique.text, critique.n_generated), *final.hidden)
        tokens = final.n_tokens + draft.n_generated + critique.n_generated
        return replace(final, n_tokens=tokens, hidden=hidden, n_dropped=draft.dropped)


@dataclass(frozen=True)
class Retrieval:
    """The exchanges of this dialogue that are closest to the message, up to `k` of them, before the message (appendix D.2).

    The index of a dialogue is made of its own finished turns alone. `template` holds {context} and {message}, `exchange` may hold
    {number}, {user} and {assistant}, and `nothing` is the context while there is none.
    """

    inner: Prompted
    encoder: SentenceEncoder
    template: str
    exchange: str
    nothing: str
    k: int = 5
    name: str = "rag"
    writes_profile: bool = False

    def respond(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> list[Answer]:
        """One sampled answer a dialogue; which turns were retrieved is a hidden step."""
        self.encoder.encode([text for d in dialogues for text in (d.pending.text, *map(_exchange_text, d.turns))])  # all at once: faster
        found = [self.retrieve(d) for d in dialogues]
        prompts_ = [self._messages(d, turns) for d, turns in zip(dialogues, found, strict=True)]
        answers = [self.inner.answer(c) for c in self.inner.ask(prompts_, seed)]
        return [replace(a, hidden=(Step("retrieved", _told(turns)), *a.hidden)) for a, turns in zip(answers, found, strict=True)]

    def retrieve(self, dialogue: Dialogue) -> list[tuple[int, float]]:
        """(index of a finished turn, cosine) of the exchanges closest to the pending message, the closest first."""
        if not dialogue.turns:
            return []
        index = self.encoder.encode([_exchange_text(turn) for turn in dialogue.turns])
        return top_k(self.encoder.encode([dialogue.pending.text])[0], index, self.k)

    def _messages(self, dialogue: Dialogue, found: Sequence[tuple[int, float]]) -> list[Message]:
        turns = [dialogue.turns[i] for i, _ in found]
        lines = [self.exchange.format(number=n, user=t.user.text, assistant=t.reply.response) for n, t in enumerate(turns, start=1)]
        joint = "\n" if "\n" in self.template else " "  # one exchange a line, where the prompt has lines
        view = self.inner.messages(dialogue)
        return with_last(view, self.template.format(context=joint.join(lines) or self.nothing, message=view[-1]["content"]))


def moments(dialogues: Sequence[Dialogue]) -> list[list[Dialogue]]:
    """The dialogues as they were before each of their K answers, the user's utterance pending."""
    return [[replace(d, turns=d.turns[:k], pending=d.turns[k].user) for d in dialogues] for k in range(len(dialogues[0].turns))]


def recall(policy: Policy, prompts: Sequence[list[list[Message]]]) -> None:
    """Let a local policy remember the prompts of one turn after the other."""
    if hasattr(policy, "recall"):
        for k, messages in enumerate(prompts):
            policy.recall(messages, goes_on=k > 0)


def with_last(messages: Sequence[Message], content: str) -> list[Message]:
    """The messages with another text in the last one."""
    return [*messages[:-1], {**messages[-1], "content": content}]


def split_thought(text: str) -> tuple[str, str]:
    """(thought, visible reply) of a chain of thought: the user sees what follows the first "Reply:" that begins a line.

    Without that label the whole text is the reply, unless it begins as a thought: then the reply was never reached and is empty.
    """
    before, label, after = f"\n{text.strip()}".partition(f"\n{VISIBLE}")
    before = before.strip()
    if label:
        return before.removeprefix(THOUGHT).strip(), after.strip()
    # A model that writes on one line still parts the two.
    thought, label, after = before.partition(f" {VISIBLE}")
    if before.startswith(THOUGHT):
        return thought.removeprefix(THOUGHT).strip(), after.strip()
    return "", before


def _went_on(talk: Sequence[Message], said: Completion, request: str) -> list[Message]:
    # Some servers refuse a message without text.
    return [*talk, {"role": "assistant", "content": said.text.strip() or "(nothing)"}, {"role": "user", "content": request}]


def _reasoning(completion: Completion) -> tuple[Step, ...]:
    """The thinking of a reasoning model, which its server keeps apart from the text or tells the length of alone; its tokens are part of the
    completion's count."""
    text, spent = getattr(completion, "reasoning", ""), getattr(completion, "n_reasoning", 0)
    return (Step("reasoning", text, spent),) if text or spent else ()


def _exchange_text(turn: Turn) -> str:
    return f"{turn.user.text} {turn.reply.response}"


def _told(found: Sequence[tuple[int, float]]) -> str:
    return ", ".join(f"turn {i + 1} ({cosine:.3f})" for i, cosine in found)
