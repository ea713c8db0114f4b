"""A run played by stand-ins: every request that it would make is made by the run's own code and measured, and nothing is sent.

Users, judges, methods and policies are the real ones; what answers them is a text of typical length. Played with two users and with
three: what one more user adds is then known, so that requests that all users share (the first turn, at temperature 0) are counted once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pydantic

from rlpa_lib.agents import parties
from rlpa_lib.client.chat import Answer, Request, json_schema
from rlpa_lib.client.response_cache import base_key
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.profile import SLOTS, Profile, render_reply
from rlpa_lib.dialogue.protocols import Completion
from rlpa_lib.evaluation import rows, scoring
from rlpa_lib.methods import controls
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.rlpa import rollout
from rlpa_lib.rlpa.rewards import score_replies
from rlpa_lib.runs.record import REPOSITORY
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.study import judge_attacks

USERS = (2, 3)  # sizes of the two rehearsals


@dataclass(frozen=True)
class Typical:
    """The assumptions: how long texts are, in tokens, and how many bytes a token has. The defaults are for English."""

    bytes_per_token: float = 3.8  # of prompts, in English; 3.3 to 4.2 in the tokenizers we know
    per_message: int = 5  # tokens that a chat template puts around a message
    utterance: int = 25  # of a user
    response: int = 60  # of the policy, without its profile
    value: int = 5  # of a profile item
    reason: int = 18  # of a judge, for one criterion
    thought: int = 40  # of a chain of thought


TYPICAL = Typical()


def assumed(changes: Sequence[str]) -> Typical:
    """The defaults changed by "name=value" texts, such as response=120 from a pilot run. InputError: no such name, or no positive number."""
    found = vars(TYPICAL).copy()
    for text in changes:
        name, _, value = text.partition("=")
        if name not in found or not re.fullmatch(r"\d+(\.\d+)?", value) or not float(value):
            raise InputError(f"--assume {text}: write name=value with a positive number; names are {', '.join(found)}")
        found[name] = type(found[name])(float(value))
    return Typical(**found)


@dataclass
class Ask:
    """What one role asks of one model: requests sent, prompt and completion tokens."""

    requests: float = 0
    prompt: float = 0
    completion: float = 0

    def added(self, other: Ask, times: float = 1.0) -> Ask:
        """The sum, the other one taken `times`."""
        return Ask(*(a + times * b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass
class Tally:
    """Asks by (role, model, server), and what a policy in process (or behind vLLM) generates."""

    asked: dict[tuple[str, str, str], Ask] = field(default_factory=dict)
    own: Ask = field(default_factory=Ask)

    def added(self, other: Tally, times: float = 1.0) -> Tally:
        """The sum, the other one taken `times`."""
        keys = dict.fromkeys([*self.asked, *other.asked])
        return Tally(
            {key: self.asked.get(key, Ask()).added(other.asked.get(key, Ask()), times) for key in keys}, self.own.added(other.own, times)
        )

    def total(self) -> Ask:
        """All that is asked of servers."""
        total = Ask()
        for ask in self.asked.values():
            total = total.added(ask)
        return total


class StandIn:
    """Takes the place of a run: its parties get endpoints that count (`roles.endpoint_for` asks for them), its files go to a folder that
    is deleted. Equal questions count once, as they would be answered from the run's cache."""

    def __init__(self, cfg: Config, folder: Path, typical: Typical):
        self.cfg, self.dir, self.typical = cfg, folder, typical
        self.tally, self.seen = Tally(), set()

    def stand_in(self, role: str, model: str, server: str) -> CountingEndpoint:
        """The endpoint of a role."""
        return CountingEndpoint(self, role, model, server)

    def policy(self) -> Any:
        """The run's policy; a local one is replaced by one that counts."""
        return parties.make_policy(self.cfg, self) if self.cfg.policy.kind == "endpoint" else CountingPolicy(self)

    def answer(self, schema: type[pydantic.BaseModel] | None, messages: list[dict[str, str]], seed: int | None) -> str:
        """A typical answer; other prompts and other seeds get other words."""
        key = hashlib.blake2b(json.dumps([messages, seed]).encode(), digest_size=4).hexdigest()
        if schema is None:
            return reply(messages, self.typical, key, messages[0]["content"].startswith(_system(self.cfg)))
        return structured(schema, messages, self.typical, key)

    def prompt_tokens(self, messages: Sequence[dict[str, str]]) -> float:
        """Estimated length of a prompt."""
        size = sum(len(m["content"].encode()) for m in messages)
        return size / self.typical.bytes_per_token + self.typical.per_message * (len(messages) + 1)

    def tokens(self, text: str) -> float:
        """Estimated length of an answer."""
        return len(text.encode()) / self.typical.bytes_per_token + 1


@dataclass(frozen=True)
class CountingEndpoint:
    """`ChatEndpoint.complete` without a server."""

    run: StandIn
    role: str
    model: str
    server: str

    def complete(self, requests: Sequence[Request], *, desc: str = "", on_error: str = "raise") -> list[Answer]:
        """Typical answers, in order; what was asked before is not counted again."""
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Answer:
        messages = list(request.messages)
        text = self.run.answer(request.schema, messages, derive_seed(request.seed, self.model, self.server))  # each model has its own words
        key = base_key(self.server, self.model, request.content())
        prompt, completion = self.run.prompt_tokens(messages), min(self.run.tokens(text), request.max_tokens)
        if key not in self.run.seen:
            self.run.seen.add(key)
            place = (self.role, self.model, self.server)
            self.run.tally.asked[place] = self.run.tally.asked.get(place, Ask()).added(Ask(1, prompt, completion))
        parsed = request.schema.model_validate_json(text) if request.schema else None
        return Answer(text, parsed, "", round(prompt), round(completion), 0, "stop")


@dataclass(frozen=True)
class CountingPolicy:
    """`Policy` without a model."""

    run: StandIn

    def generate(self, messages, n: int, *, seed: int, temperature: float, max_new_tokens: int) -> list[list[Completion]]:
        """n typical replies a prompt, all different."""
        made = []
        for number, talk in enumerate(messages):
            texts = [self.run.answer(None, talk, derive_seed(seed, number, i)) for i in range(n)]
            spent = sum(min(self.run.tokens(text), max_new_tokens) for text in texts)
            self.run.tally.own = self.run.tally.own.added(Ask(n, self.run.prompt_tokens(talk), spent))
            made.append([Completion((0,), (0,), (0.0,), text, True) for text in texts])
        return made


class NoEncoder:
    """All texts are alike, so retrieval takes what comes first."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.ones((len(texts), 1), dtype=np.float32)


def structured(schema: type[pydantic.BaseModel], messages: list[dict[str, str]], typical: Typical, key: str) -> str:
    """A typical answer of this type, as JSON."""
    if schema.__name__ == "UserMessage":
        notes = json.loads(messages[-1]["content"])
        untold = [i for i in range(1, 11) if i not in notes["already_told"]]
        return json.dumps({"message": _words(typical.utterance, key, typical), "revealed": untold[: notes["new_items_allowed"]]})
    if schema.__name__.startswith("Pairs_"):
        sizes = [int(n) for n in re.findall(r"\d+", schema.__name__)]
        return json.dumps({"pairs": [{"inferred": i, "true": i} for i in range(1, min(sizes) + 1)]})
    if schema.__name__.startswith("Revealed_"):
        return json.dumps({"revealed": list(range(1, int(schema.__name__.rpartition("_")[2]) + 1))})
    return json.dumps(_filled(json_schema(schema), json_schema(schema), key, typical))


def _filled(schema: dict[str, Any], whole: dict[str, Any], key: str, typical: Typical) -> Any:
    """An object of the schema: marks 1, reasons and values of typical length."""
    if "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    if "properties" in schema:
        return {name: _filled(part, whole, key, typical) for name, part in schema["properties"].items()}
    if "enum" in schema or schema.get("type") == "integer":
        return 1
    return True if schema.get("type") == "boolean" else _words(typical.reason if "maxLength" in schema else typical.value, key, typical)


def reply(messages: list[dict[str, str]], typical: Typical, key: str, writes_profile: bool) -> str:
    """A typical reply of a policy: it knows 15 % more of the profile at each turn."""
    turn = sum(m["role"] == "user" for m in messages)
    words = _words(typical.response, key, typical)
    if writes_profile:
        known = Profile(tuple((slot, _words(typical.value, key, typical)) for slot in SLOTS[: min(10, 3 * (turn - 1) // 2)]))
        return words if messages[-1]["role"] == "assistant" else render_reply(known, words)
    return f"Thought: {_words(typical.thought, key, typical)}\nReply: {words}" if "Thought:" in messages[0]["content"] else words


def _words(tokens: int, key: str, typical: Typical) -> str:
    size = round(tokens * typical.bytes_per_token)
    return f"{key} {'word ' * (size // 5 + 1)}"[:size].rstrip()


def per_users(cfg: Config, typical: Typical, users: int, play) -> Tally:
    """What `play(stand_in, E)` asks with `users` users: a straight line through two small rehearsals."""
    small, large = (_played(cfg, typical, play, n) for n in USERS)
    slope = large.added(small, -1.0)
    return small.added(slope, (users - USERS[0]) / (USERS[1] - USERS[0]))


def _played(cfg: Config, typical: Typical, play, users: int) -> Tally:
    with TemporaryDirectory() as folder:
        run = StandIn(cfg, Path(folder), typical)
        play(run, users)
        return run.tally


def play_rows(run: StandIn, wanted: Sequence[rows.Row], benchmark: str, users: int) -> None:
    """Rows of tables 1, 4 and 5 on one benchmark; a model's trained and untrained rows cost alike."""
    cfg, people = run.cfg, builtin_personas(benchmark, users, 0)
    user = parties.make_user(cfg, "test", 0, run)
    evaluator, judge = parties.make_evaluation_judge(cfg, run), parties.make_reward_judge(cfg, run)
    lent = controls.no_profile
    for row in wanted:
        scripted = cfg.evaluator.kind == "rule" and row.method in ("random", "oracle")
        policy = None if scripted else rows.make_remote_policy(run, row.comparator) if row.comparator else run.policy()
        method = rows.build_method(row.method, policy, cfg, NoEncoder(), lent)
        options = {"turns": cfg.evaluation.turns, "seed": 0, "swap": cfg.evaluation.swap}
        scoring.evaluate(method, benchmark, people, user, evaluator, judge, **options)


def play_ppo(run: StandIn, users: int) -> None:
    """One cohort of PPO."""
    cfg, people = run.cfg, builtin_personas("train", users, 0)
    user, judge = parties.make_user(cfg, "train", 0, run), parties.make_reward_judge(cfg, run)
    given = cfg.rollout
    rollout.rollout(
        CountingPolicy(run), user, judge, people, turns=given.turns, samples=given.samples, continuation=given.continuation,
        system_prompt=_system(cfg), history_profiles=cfg.ppo.history_profiles, parts=cfg.ppo.reward_parts, seed=0,
        temperature=given.temperature, max_new_tokens=given.max_new_tokens,
    )  # fmt: skip


def play_grpo(run: StandIn, users: int) -> None:
    """One round of GRPO: its moments, and the samples that are judged at each."""
    from rlpa_lib.methods import grpo  # slow to import

    cfg, people, policy = run.cfg, builtin_personas("train", users, 0), CountingPolicy(run)
    sampling = rollout.Sampling(1, "independent", _system(cfg), cfg.ppo.history_profiles, max_new_tokens=cfg.rollout.max_new_tokens)
    moments = grpo.collect_moments(policy, parties.make_user(cfg, "train", 0, run), people, cfg.rollout.turns, sampling, 0)
    views = [grpo.policy_view(m.dialogue, sampling.system_prompt, sampling.history_profiles) for m in moments]
    drawn = policy.generate(views, cfg.grpo.samples, seed=1, temperature=1.0, max_new_tokens=sampling.max_new_tokens)
    flat = [(m, grpo.parse_reply(c.text)) for m, group in zip(moments, drawn, strict=True) for c in group]
    score_replies(parties.make_reward_judge(cfg, run), [m.persona for m, _ in flat], [m.dialogue for m, _ in flat], [reply for _, reply in flat])


def attacks(cfg: Config, typical: Typical) -> Tally:
    """What the battery of attacks of notebook 03 asks of the judges that are language models."""
    battery = [*judge_attacks.read_attacks(REPOSITORY / "tests/data/judge_attacks.jsonl"), *judge_attacks.make_controls()]
    return _played(cfg, typical, lambda run, _: judge_attacks.attack_judges(run, battery), 0)


def conversion(cfg: Config, typical: Typical, users: int) -> Tally:
    """Ten slots for each of `users` users by the language model of section `user` (C.2)."""

    def play(run: StandIn, n: int) -> None:
        from rlpa_lib.agents import conversion as module

        people = builtin_personas("train", n, 0)
        prompt = parties._judge_prompt(cfg, "convert", cfg.personas.language)
        endpoint = parties._endpoint(cfg, "converter", run)
        endpoint.complete([Request(prompt.messages(module._values(p.description, p.personality)), module.TenSlots, max_tokens=1024) for p in people])

    return per_users(cfg, typical, users, play)


def _system(cfg: Config) -> str:
    return prompt_files.load_prompt("policy", cfg.run.prompt_set, cfg.run.prompt_dir)
