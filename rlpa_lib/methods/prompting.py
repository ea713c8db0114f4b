"""Methods: how a dialogue becomes an answer (appendix D.2 and section 3), with and without training.

A method works with any policy. `Prompted` is one call behind a system prompt; the others take a `Prompted`
and do something before, between or after its calls. What the user never sees (drafts, critiques, thoughts) is
kept in `Answer.hidden`, and its tokens are counted. The functions at the end make the rows that
`settings.kinds.METHODS` lists.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from rlpa_lib.dialogue.dialogue import Dialogue, Turn, policy_view
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply, Strictness, parse_released_reply, parse_reply
from rlpa_lib.dialogue.protocols import Completion, Message, Policy
from rlpa_lib.methods.retrieval import SentenceEncoder, top_k
from rlpa_lib.methods.table import Answer, Asking, Asks, Parts, Question, Step
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.kinds import METHODS

# "Thought:" and "Reply:", the labels of the chain-of-thought prompts, as models write them in both languages:
# behind signs of a heading, list, quotation or emphasis, and with a colon, in brackets, or as a heading.
_BEFORE, _AFTER = r"[ \t\u3000#>*_`\"“”'+•·\-\d.、()（）\[【]*", r"[ \t\u3000*_`\"“”')）\]】]*"
_CLOSED = r"(?:\*+|_+|`|”|\"(?=\s))?"  # what was opened before the label; a reply may open something itself
_THOUGHT, _REPLY = "thoughts?|思考", "reply|回复|答复|回答"


def _find_label(names: str, behind: str = rf"^{_BEFORE}") -> re.Pattern[str]:
    heading = rf"^[ \t]*(?:#+|\*\*)[ \t]*(?:{names})[ \t*]*$"
    label = rf"{behind}(?:{names}){_AFTER}(?:[:：]{_CLOSED}|(?<=[】\]]))"
    return re.compile(rf"{label}|{heading}", re.IGNORECASE | re.MULTILINE)


_BEGUN = _find_label(f"{_THOUGHT}|thinking|thought process|思考过程|想法|思路")
_SAID, _THOUGHT_AGAIN = _find_label(f"(?:final )?(?:{_REPLY})|最终(?:{_REPLY})"), _find_label(_THOUGHT)
_ANSWERED = _find_label(f"(?:final )?(?:{_REPLY}|response|answer)|最终(?:{_REPLY})|回应")
_SAID_BEHIND = _find_label(_REPLY, r"(?<=[\s*。！？；，…])")


@dataclass(frozen=True)
class Prompted(Asks):
    """A policy behind one system prompt. With `writes_profile` the answer is a profile block and a response
    (RLPA, and RLPA prompting: the same without training); without, the whole text is the response (Base, SFT,
    DPO).

    `suffix` stands behind the user message (Reminder). With `thinks` only what follows "Reply:" is the
    response (CoT).
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
    strictness: Strictness = "strict"

    def questions(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> Asking:
        said = yield self.question([self.messages(d) for d in dialogues], seed)
        return list(map(self.read, said))

    def messages(self, dialogue: Dialogue) -> list[Message]:
        """The prompt of a dialogue with a pending utterance."""
        shown = self.history_profiles if self.writes_profile else "none"
        view = policy_view(dialogue, self.system_prompt, shown, self.strictness)
        return with_last(view, f"{view[-1]['content']} {self.suffix}") if self.suffix else view

    @property
    def _options(self) -> dict[str, float]:
        return {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}

    def question(self, messages: Sequence[list[Message]], seed: int) -> Question:
        """One completion of each prompt."""
        return Question(self.policy, messages, seed, self._options)

    def ask(self, messages: Sequence[list[Message]], seed: int, n: int) -> list[Completion]:
        """n completions of each prompt, those of one prompt in a row."""
        groups = self.policy.generate(messages, n, seed=seed, **self._options)
        return [completion for group in groups for completion in group]

    def read(self, completion: Completion, start: str = "") -> Answer:
        """The answer in a completion; `start` is the part of the text that the policy was given."""
        text, hidden = start + completion.text, ()
        # Some servers tell what a reasoning model thought, or at least its length, which the count includes.
        if completion.reasoning or completion.n_reasoning:
            hidden = (Step("reasoning", completion.reasoning, completion.n_reasoning),)
        if self.writes_profile:
            reply = (parse_reply if self.strictness == "strict" else parse_released_reply)(text)
        else:
            thought, visible = split_thought(text) if self.thinks else ("", text.strip())
            hidden += (Step("thought", thought),) if thought else ()
            reply = Reply(Profile(), visible, bool(visible))
        return Answer(text, reply, completion.n_generated, hidden, completion.dropped)


@dataclass(frozen=True)
class SelfCritic(Asks):
    """Draft, critique, revision: three calls, of which the user sees the last (appendix D.2). Later turns see
    revisions alone."""

    drafts: ClassVar = ("draft", "critique")  # hidden steps that the policy has said, call by call
    inner: Prompted
    critique_request: str
    revision_request: str
    name: str = "self_critic"
    writes_profile: bool = False

    def questions(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> Asking:
        """The revision is the answer, draft and critique are hidden steps; the tokens of all three count."""
        talks = [self.inner.messages(d) for d in dialogues]
        drafts = yield self.inner.question(talks, derive_seed(seed, "draft"))
        talks = _extend(talks, drafts, self.critique_request)
        critiques = yield self.inner.question(talks, derive_seed(seed, "critique"))
        talks = _extend(talks, critiques, self.revision_request)
        revisions = yield self.inner.question(talks, derive_seed(seed, "revision"))
        answers = []
        for draft, critique, revision in zip(drafts, critiques, revisions, strict=True):
            final, before = self.inner.read(revision), dict(zip(self.drafts, (draft, critique), strict=True))
            steps = [Step(kind, c.text, c.n_generated) for kind, c in before.items()]
            tokens = final.n_tokens + sum(step.n_tokens for step in steps)
            hidden = (*steps, *final.hidden)
            answers.append(replace(final, n_tokens=tokens, hidden=hidden, n_dropped=draft.dropped))
        return answers


@dataclass(frozen=True)
class Retrieval(Asks):
    """The exchanges of this dialogue that are closest to the message, up to `k` of them, before the message
    (appendix D.2).

    The index of a dialogue is made of its own finished turns alone. `template` holds {context} and {message},
    `exchange` may hold {number}, {user} and {assistant}, and `nothing` is the context while there is none.
    """

    inner: Prompted
    encoder: SentenceEncoder
    template: str
    exchange: str
    nothing: str
    k: int = 5
    name: str = "rag"
    writes_profile: bool = False

    def questions(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> Asking:
        """Which turns were retrieved is a hidden step of the answer."""
        # One call for all texts is faster than one a dialogue; the encoder remembers them.
        said = [[d.pending.text, *(f"{t.user.text} {t.reply.response}" for t in d.turns)] for d in dialogues]
        self.encoder.encode([text for texts in said for text in texts])
        talks, steps = [], []
        for dialogue, (message, *exchanges) in zip(dialogues, said, strict=True):
            found = []
            if exchanges:
                found = top_k(self.encoder.encode([message])[0], self.encoder.encode(exchanges), self.k)
            talks.append(self._insert(dialogue, [dialogue.turns[i] for i, _ in found]))
            nearest = ", ".join(f"turn {i + 1} ({cosine:.3f})" for i, cosine in found)
            steps.append(Step("retrieved", nearest))
        answers = map(self.inner.read, (yield self.inner.question(talks, seed)))
        return [replace(a, hidden=(step, *a.hidden)) for a, step in zip(answers, steps, strict=True)]

    def _insert(self, dialogue: Dialogue, turns: Sequence[Turn]) -> list[Message]:
        """The prompt with these turns before its last message."""
        lines = [
            self.exchange.format(number=number, user=turn.user.text, assistant=turn.reply.response)
            for number, turn in enumerate(turns, start=1)
        ]
        # one exchange a line, where the prompt has lines
        context = ("\n" if "\n" in self.template else " ").join(lines) or self.nothing
        view = self.inner.messages(dialogue)
        return with_last(view, self.template.format(context=context, message=view[-1]["content"]))


def with_last(messages: Sequence[Message], content: str) -> list[Message]:
    """The messages with another text in the last one."""
    return [*messages[:-1], {**messages[-1], "content": content}]


def split_thought(text: str) -> tuple[str, str]:
    """(thought, visible reply) of a chain of thought: the user sees what follows the first "Reply:" that
    begins a line ("Reply：", "### 回复"), up to a further thought.

    Without that label the whole text is the reply, unless it begins as a thought: then the reply was never
    reached and is empty.
    """
    text = text.strip()
    begun = _BEGUN.match(text)
    said = (_ANSWERED if begun else _SAID).search(text)
    if begun and not said:  # a model that writes on one line still parts the two
        said = _SAID_BEHIND.search(text, begun.end())
    if not said:
        return (text[begun.end() :].strip(), "") if begun else ("", text)
    thought = text[begun.end() if begun else 0 : said.start()].rstrip("*").strip()
    more = _THOUGHT_AGAIN.search(text, said.end())
    if not more:
        return thought, text[said.end() :].strip()
    again = text[more.end() :].strip()
    return "\n".join(filter(None, (thought, again))), text[said.end() : more.start()].strip()


def _extend(talks: Sequence[list[Message]], said: Sequence[Completion], request: str) -> list[list[Message]]:
    # Some servers refuse a message without text.
    answers = [{"role": "assistant", "content": c.text.strip() or "(nothing)"} for c in said]
    asked = {"role": "user", "content": request}
    return [[*talk, answer, asked] for talk, answer in zip(talks, answers, strict=True)]


def make_base(parts: Parts, prompt: str = "base") -> Prompted:
    """Base, and with weights of their own SFT and DPO: the whole text is the response."""
    writes_profile, cfg = METHODS[parts.name].writes_profile, parts.cfg
    return Prompted(
        parts.name, parts.policy, parts.prompt(prompt), writes_profile, cfg.ppo.history_profiles,
        cfg.evaluation.temperature, cfg.rollout.max_new_tokens, strictness=cfg.profile.strictness,
    )


def make_rlpa(parts: Parts) -> Prompted:
    """RLPA with trained weights, RLPA prompting without: a profile block, then the response."""
    return make_base(parts, "policy")


def make_reminder(parts: Parts) -> Prompted:
    """Base with a reminder behind every message."""
    return replace(make_base(parts), suffix=parts.prompt("reminder"))


def make_cot(parts: Parts) -> Prompted:
    """Base that thinks aloud first, with worked examples."""
    base = make_base(parts)
    return replace(base, system_prompt=f"{base.system_prompt}\n\n{parts.prompt('cot')}", thinks=True)


def make_self_critic(parts: Parts) -> SelfCritic:
    """Base that revises its own draft."""
    return SelfCritic(make_base(parts), parts.prompt("critique"), parts.prompt("revise"))


def make_rag(parts: Parts) -> Retrieval:
    """Base with the closest earlier exchanges before the message."""
    prompts = map(parts.prompt, ("rag", "rag_exchange", "rag_nothing"))
    return Retrieval(make_base(parts), parts.encoder, *prompts, k=parts.cfg.evaluation.retrieved)
