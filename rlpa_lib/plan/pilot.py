"""What a pilot run tells about a larger run's price: requests for each counted one, and their lengths.

Prompts grow by what of the dialogue stands in them, measured in the pilot's dialogues. `pilot.json`, which
ships, is made of several runs by `python -m rlpa_lib plan --record RUN_DIR...`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import reduce
from itertools import chain
from pathlib import Path
from statistics import fmean

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.profile import SLOTS
from rlpa_lib.dialogue.prompt_files import load_prompt
from rlpa_lib.plan.counts import Asks, list_asks
from rlpa_lib.runs import record, storage
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import WRITERS

FILE = Path(__file__).with_name("pilot.json")
TYPICAL, PROFILED = "10_prompting_baselines", "34_user_and_reward_model_evaluation"  # 34: profiles alone
BY_TRAINING = ("20_ppo", "policy")  # measured by the training itself, as no server counts it


@dataclass(frozen=True)
class Texts:
    """Lengths of texts in tokens. A profile has `items` items at turn 1 and `more` at each later turn."""

    bytes_per_token: float = 3.8  # of English; 3.3 to 4.2 in the tokenizers we know
    per_message: float = 10.0  # what a chat template, or a judge's JSON, puts around a message
    utterance: float = 25.0  # of a user
    response: float = 60.0  # of the policy, without its profile
    value: float = 10.0  # of a profile item, with its slot
    pair: float = 8.0  # of a profile judge that has found one
    items: float = 0.0
    more: float = 1.5

    def known(self, turn: int) -> float:
        """Items of the policy's notes at a turn (from 1)."""
        return min(len(SLOTS), self.items + self.more * (turn - 1))

    def seen(self, ask: Asks, turn: int, cfg: Config) -> float:
        """What a prompt holds of the dialogue, and of prompt files whose length depends on the settings."""
        talk = (turn - 1) * (self.utterance + self.response + 2 * self.per_message)
        if ask.system:
            text = load_prompt(ask.system, cfg.run.prompt_set, cfg.run.prompt_dir)
            talk += len(text.encode()) / self.bytes_per_token
        words = turn * (self.utterance + self.per_message)
        before = [self.value * self.known(k) for k in range(1, turn)]
        return {"": 0.0, "profile": self.value * self.known(turn), "words": words, "talk": talk, "none": talk,
                "latest": talk + sum(before[-1:]), "all": talk + sum(before)}[ask.sees]  # fmt: skip

    def written(self, ask: Asks, turn: int) -> float:
        """What an answer holds of the dialogue."""
        known = self.known(turn)
        return {"": 0.0, "utterance": self.utterance, "response": self.response, "claims": 0.0,
                "profile": self.response + self.value * known,
                "pairs": self.pair * known}[ask.writes]  # fmt: skip


@dataclass(frozen=True)
class Rate:
    """One role in a notebook: requests for each counted one, and a request's tokens beside the dialogue."""

    requests: float
    prompt: float
    completion: float


@dataclass(frozen=True)
class Pilot:
    """What pilots have shown. `runs`: which they were; `rates` by notebook and role."""

    texts: Texts = Texts()
    rates: Mapping[str, Mapping[str, Rate]] = field(default_factory=dict)
    runs: tuple[str, ...] = ()

    def find(self, notebook: str, role: str) -> Rate | None:
        """The rate of a role in a notebook, or else its lengths in another one; None: no pilot asked it."""
        order = (*([] if role == "policy" else [TYPICAL]), PROFILED, *self.rates)
        others = (self.rates.get(name, {}).get(role) for name in order)
        other = next((rate for rate in others if rate), None)
        return self.rates.get(notebook, {}).get(role) or (other and replace(other, requests=1.0))

    def merge(self, other: Pilot) -> Pilot:
        """This pilot, completed by what only the other one has."""
        names = dict.fromkeys([*self.rates, *other.rates])
        rates = {name: {**other.rates.get(name, {}), **self.rates.get(name, {})} for name in names}
        return Pilot(self.texts, rates, (*self.runs, *other.runs))

    def assume(self, changes: Sequence[str]) -> Pilot:
        """With "name=value" in place of measured lengths. InputError: no such name, or no positive number."""
        found = asdict(self.texts)
        for text in changes:
            name, _, value = text.partition("=")
            if name not in found or not re.fullmatch(r"\d+(\.\d+)?", value) or not float(value):
                names = ", ".join(found)
                raise InputError(f"--assume {text}: write name=value with a positive number, of {names}")
            found[name] = float(value)
        return replace(self, texts=Texts(**found))


def read_pilot(runs: Sequence[Path] = ()) -> Pilot:
    """The pilot that ships, used where `runs` show nothing."""
    told = json.loads(FILE.read_text(encoding="utf-8"))
    rated = told["rates"].items()
    rates = {name: {role: Rate(*rate) for role, rate in roles.items()} for name, roles in rated}
    shipped = Pilot(Texts(**told["texts"]), rates, tuple(told["runs"]))
    return measure(runs).merge(shipped) if runs else shipped


def write_pilot(runs: Sequence[Path]) -> Path:
    """Make `runs` the pilot that ships; where two have a role of a notebook, the first one counts."""
    found = measure(runs)
    rates = {
        name: {role: [round(x, 4) for x in astuple(rate)] for role, rate in sorted(roles.items())}
        for name, roles in sorted(found.rates.items())
    }
    texts = {name: round(value, 4) for name, value in asdict(found.texts).items()}
    return storage.write_json(FILE, {"runs": found.runs, "texts": texts, "rates": rates})


def measure(runs: Sequence[Path]) -> Pilot:
    """What finished runs show, the first for texts. InputError: a run unreadable, or without notebooks."""
    found = []
    for folder in runs:
        try:
            found.append(_measure(folder))
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(f"{folder}: no pilot: record, usage or texts are unreadable: {why}") from error
    return reduce(Pilot.merge, found)


def _measure(folder: Path) -> Pilot:
    made = record.read(folder)
    cfg, texts = Config.model_validate(made["params"]), _measure_texts(folder)
    counted: dict[tuple[str, str], list[Asks]] = defaultdict(list)
    for ask in list_asks(cfg):
        counted[ask.notebook, ask.role].append(ask)
    used: dict[tuple[str, str], list[float]] = {}  # requests sent, prompt and answer tokens
    for line in _read_metrics(folder, "usage"):
        if line.get("sent") and "notebook" in line:
            values = (line["sent"], line.get("prompt_tokens", 0), line.get("completion_tokens", 0))
            key = line["notebook"], line["role"]
            used[key] = [a + b for a, b in zip(used.get(key, (0.0, 0.0, 0.0)), values, strict=True)]
    if BY_TRAINING in counted and (updates := _read_metrics(folder, "ppo")):
        n = sum(sum(ask.by_turn.values()) for ask in counted[BY_TRAINING])
        means = (fmean(row[f"{name}_tokens"] for row in updates) for name in ("prompt", "completion"))
        used[BY_TRAINING] = [n, *(n * mean for mean in means)]
    rates: dict[str, dict[str, Rate]] = defaultdict(dict)
    for (notebook, role), totals in used.items():
        if asks := counted.get((notebook, role)):
            rates[notebook][role] = _rate(asks, texts, cfg, *totals)
    if not rates:
        raise InputError(f"{folder}: no pilot: its usage record names no notebooks, as `reproduce` does")
    size = f"{cfg.evaluation.users} users, {cfg.evaluation.turns} turns, prompts {cfg.run.prompt_set}"
    name = f"{folder.name} ({made['params_name']}, {size}, commit {str(made['code']['commit'])[:8]})"
    return Pilot(texts, rates, (name,))


def _read_metrics(folder: Path, name: str) -> list[dict]:
    file = folder / "metrics" / f"{name}.jsonl"
    return storage.read_jsonl(file, appended=True) if file.is_file() else []


def _rate(
    asks: Sequence[Asks], texts: Texts, cfg: Config, requests: float, prompt: float, completion: float
) -> Rate:
    turns = [(n, ask, k) for ask in asks for k, n in ask.by_turn.items()]
    counted = sum(n for n, _, _ in turns)
    seen = sum(n * texts.seen(ask, k, cfg) for n, ask, k in turns)
    written = sum(n * texts.written(ask, k) for n, ask, k in turns)
    once = counted / (sum(n * ask.times(k) for n, ask, k in turns) or counted)
    answer = once * (completion / requests - written / counted)
    return Rate(requests / counted, prompt / requests - seen / counted, answer)


def _measure_texts(folder: Path) -> Texts:
    """The lengths of what was said in a run's dialogues; what a run does not show is as in `Texts`."""
    files = {file.stem: storage.read_jsonl(file) for file in sorted((folder / "dialogues").glob("*-*.jsonl"))}
    talks = {name: [Dialogue.from_json(row) for row in rows] for name, rows in files.items()}
    turns = [turn for some in talks.values() for talk in some for turn in talk.turns[1:]]
    told = {
        "utterance": [turn.user.text for turn in turns],
        "response": [turn.reply.response for turn in turns if turn.reply.format_ok],
        "value": [f"- {slot}: {value}\n" for turn in turns for slot, value in turn.reply.profile.items],
    }
    sizes = {name: [len(text.encode()) for text in texts] for name, texts in told.items() if texts}
    lengths = {name: fmean(some) / Texts.bytes_per_token for name, some in sizes.items()}
    own = (some for name, some in talks.items() if name.partition("-")[0] in ("study", *WRITERS))
    if writers := [talk for talk in chain(*own) if len(talk.turns) > 1]:
        last = min(4, *(len(d.turns) for d in writers))  # later on profiles are full
        first, then = (fmean(len(d.turns[k].reply.profile) for d in writers) for k in (0, last - 1))
        lengths |= {"items": first, "more": max(0.0, (then - first) / (last - 1))}
    return Texts(**lengths)
