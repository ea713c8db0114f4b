"""What a run will cost: requests, tokens, USD of servers, time at a rate limit, GPU memory and hours.

Requests are counted from the settings (`counts`), their lengths scaled from a pilot run (`pilot`). Speeds are
assumptions, which the plan prints; `compare` holds a plan against what a finished run really asked.
"""

import os
from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

from rlpa_lib.client.usage import Usage
from rlpa_lib.plan import gpu, speeds
from rlpa_lib.plan.cost import Party, tell_cap, usd
from rlpa_lib.plan.counts import Asks, list_asks
from rlpa_lib.plan.gpu import Work
from rlpa_lib.plan.pilot import Pilot, Rate, read_pilot
from rlpa_lib.runs.notebooks import list_notebooks
from rlpa_lib.settings.base import PolicyConfig
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import POLICIES
from rlpa_lib.settings.roles import SECTIONS

RPM = 500.0  # requests a minute that a new account of OpenAI's may send
LATENCY = 2.0  # seconds that a server takes for one request
OPENAI = "https://api.openai.com/v1"
HEAD = ("notebook", "requests", "prompt tokens", "answer tokens", "USD", "hours", "completions", "generated",
        "trained", "GPU GB", "GPU hours")  # fmt: skip


@dataclass
class Load:
    """What one notebook asks of servers, and of the policy that is sampled and trained here."""

    notebook: str
    asked: dict[Party, Work] = field(default_factory=lambda: defaultdict(Work))
    own: Work = Work()
    trained: Work = Work()

    def total(self) -> Work:
        """All that is asked of servers."""
        return sum(self.asked.values(), Work())


def plan(cfg: Config, pilot: Pilot | None = None, only: Container[str] | None = None) -> list[Load]:
    """One row per notebook (of `only`; None: of all) that asks servers, samples or trains. InputError: a
    model is missing."""
    pilot, loads = pilot or read_pilot(), {}
    for ask in list_asks(cfg):
        if only is not None and ask.notebook not in only:
            continue
        load = loads.setdefault(ask.notebook, Load(ask.notebook))
        rate = (ask.sampled and pilot.find(ask.notebook, ask.role)) or Rate(1.0, 0.0, 0.0)
        work = Work()
        for turn, n in ask.by_turn.items():
            prompt = min(ask.limit or float("inf"), rate.prompt + pilot.texts.seen(ask, turn, cfg))
            length = ask.times(turn) * rate.completion + pilot.texts.written(ask, turn)
            work += Work(n, n * prompt, n * ask.samples, n * ask.samples * length)
        if isinstance(ask.party, PolicyConfig) and POLICIES[ask.party.kind].trainable:  # nothing is cached
            if ask.sampled:
                load.own += work
            if n := ask.trained:  # passes of each prompt through the model
                load.trained += Work(n * work.requests, n * work.prompt, work.replies, work.completion)
        else:
            load.asked[_party(ask)] += work.times(rate.requests)
    return list(loads.values())


def _party(ask: Asks) -> Party:
    party = ask.party
    if (model := party.model) is None:
        section = "judge" if ask.role == "profile_judge" else SECTIONS[ask.role]
        raise InputError(f"{section}.model: is needed as {ask.role} of notebook {ask.notebook[:2]}")
    return ask.role, model, party.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI


def hours(cfg: Config, work: Work, rpm: float, tpm: float) -> float:
    """Hours of requests at limits of requests and tokens a minute, `endpoint.concurrency` at a time."""
    at_once = work.requests * LATENCY / 60 / cfg.endpoint.concurrency
    return max(work.requests / rpm, (work.prompt + work.completion) / tpm, at_once) / 60


def table(cfg: Config, pilot: Pilot | None = None, *, rpm: float | None = None, tpm: float = 2e6) -> str:
    """The plan as text: a line a notebook, the total, USD by role, and the assumptions."""
    pilot, rpm = pilot or read_pilot(), rpm or cfg.endpoint.max_rpm or RPM
    loads, whole, spent = plan(cfg, pilot), Load("total"), 0.0
    for load in loads:
        for party, work in load.asked.items():
            whole.asked[party] += work
        whole.own += load.own
        whole.trained += load.trained.times(count_epochs(cfg, load))
        spent += _count_busy(cfg, load) or 0.0
    lines = [HEAD, *(_line(cfg, load, rpm, tpm) for load in loads)]
    lines.append((*_line(cfg, whole, rpm, tpm)[:-2], "", f"{spent:.1f}" if gpu.shape(cfg) else "-"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]) for first, *rest in lines]
    quiet = [path.stem for path in list_notebooks() if path.stem not in {load.notebook for load in loads}]
    skipped = "" if POLICIES[cfg.policy.kind].trainable else "; notebooks that train are skipped"
    capped = tell_cap(cfg, [(load.notebook, load.asked) for load in loads])
    told = [f"nothing counted for: {', '.join(quiet)}{skipped}", "", *_roles(cfg, whole), "", "Assumptions"]
    return "\n".join([*rows, *filter(None, ["", capped]), "", *told, *_assumptions(cfg, pilot, rpm, tpm)])


def _count_busy(cfg: Config, load: Load) -> float | None:
    work = (load.notebook, load.own, load.trained, count_epochs(cfg, load))
    return None if (found := speeds.hours(cfg, *work)) is None else found.busy


def count_epochs(cfg: Config, load: Load) -> int:
    """How often a notebook trains on its data."""
    epochs = {"11_sft": cfg.sft.epochs, "12_dpo": cfg.dpo.epochs, "22_grpo": 1}
    return epochs.get(load.notebook, cfg.ppo.epochs)


def _line(cfg: Config, load: Load, rpm: float, tpm: float) -> tuple[str, ...]:
    asked, own, trained, price = load.total(), load.own, load.trained, usd(cfg, load.asked)
    spent = gpu.memory(cfg, own, trained), _count_busy(cfg, load)
    counts = [asked.requests, asked.prompt, asked.completion]
    policy = [own.replies, own.completion, trained.prompt + trained.completion]
    money = "no price" if price is None else f"{price:,.2f}"
    first, later = ([f"{round(n):,}" for n in numbers] for numbers in (counts, policy))
    shown = ["-" if value is None else f"{value:.1f}" for value in spent]
    return (load.notebook, *first, money, f"{hours(cfg, asked, rpm, tpm):.2f}", *later, *shown)


def _roles(cfg: Config, whole: Load) -> list[str]:
    """One line a role and model."""
    found = []
    for (role, model, server), work in sorted(whole.asked.items()):
        price = usd(cfg, {(role, model, server): work})
        money = "no price in the table" if price is None else f"{price:,.2f} USD"
        each = f"{work.prompt / work.requests:,.0f} + {work.completion / work.requests:,.0f} a request"
        tokens = f"{work.prompt:,.0f} + {work.completion:,.0f} tokens ({each})"
        found.append(f"{role} ({model}): {work.requests:,.0f} requests, {tokens}, {money}")
    return found


def _assumptions(cfg: Config, pilot: Pilot, rpm: float, tpm: float) -> list[str]:
    lengths = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in vars(pilot.texts).items())
    unknown = {ask.role for ask in list_asks(cfg) if pilot.find(ask.notebook, ask.role) is None}
    missing = f"- no pilot asked {', '.join(sorted(unknown))}: tokens are of the dialogue alone"
    return [
        f"- pilot: {'; '.join(pilot.runs)}. Requests are repeated or cached as often as there.",
        *([missing] if unknown else []),
        f"- lengths in tokens, a profile's items at turn 1 and how many more a turn (--assume): {lengths}.",
        f"- servers: {rpm:,.0f} requests and {tpm:,.0f} tokens a minute (--rpm, --tpm), "
        f"{LATENCY:g} s a request, {cfg.endpoint.concurrency} at a time (endpoint.concurrency); prices from "
        "params/prices.yaml, without the discount for cached input.",
        *(f"- {line}" for line in speeds.assumptions(cfg)),
    ]


def compare(cfg: Config, run_dir: Path, pilot: Pilot | None = None) -> dict[str, tuple[float, float]]:
    """name -> (predicted, actual) requests and tokens of a run's finished notebooks, by role and in all.
    InputError: there is none."""
    finished = {path.stem for path in (run_dir / "notebooks").glob("*.ipynb")}
    if not finished:
        raise InputError(f"--against: {run_dir} holds no finished notebook")
    loads = [load for load in plan(cfg, pilot) if load.notebook in finished]
    parties = [party for load in loads for party in load.asked.items()]
    planned = [(role, work.requests, work.prompt, work.completion) for (role, _, _), work in parties]
    counts = ("role", "sent", "prompt_tokens", "completion_tokens")
    asked = [[row[count] for count in counts] for row in Usage(run_dir / "metrics" / "usage.jsonl").rows()]
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for place, lines in enumerate((planned, asked)):
        for role, *amounts in lines:
            for name, amount in zip(("requests", "prompt tokens", "answer tokens"), amounts, strict=True):
                found[name][place] += amount
                found[f"{role}: {name}"][place] += amount
    tokens = map(sum, zip(found["prompt tokens"], found["answer tokens"], strict=True))
    return {name: tuple(pair) for name, pair in found.items()} | {"tokens": tuple(tokens)}
