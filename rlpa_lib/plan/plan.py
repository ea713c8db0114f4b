"""What a run will cost before it is paid: requests, tokens and USD of servers, wall time at a rate limit, GPU memory and hours.

Requests are counted by rehearsal (`rehearsal`): the run's own code makes every one of them, stand-ins answer. Lengths of answers, speeds and
memory are assumptions, which the plan prints; `against` holds a plan against what a finished run really asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from rlpa_lib.client import transport
from rlpa_lib.client.usage import Usage, read_prices
from rlpa_lib.evaluation import ablations, rows
from rlpa_lib.plan import gpu_cost, rehearsal, rehearsal_analyses
from rlpa_lib.plan.gpu_cost import A100, GPU
from rlpa_lib.plan.rehearsal import TYPICAL, Ask, Tally, Typical
from rlpa_lib.settings import config
from rlpa_lib.settings.base import Prompting
from rlpa_lib.settings.config import Config

ALOE_USERS = 331  # profiles in ALOE's files
LATENCY = 2.0  # seconds that a server takes for one request


@dataclass(frozen=True)
class Load:
    """What one notebook asks of servers and of the policy. `trained`: (sequences, tokens) that training passes through the model."""

    notebook: str
    tally: Tally = field(default_factory=Tally)
    trained: Ask = field(default_factory=Ask)
    epochs: int = 1


def plan(cfg: Config, typical: Typical = TYPICAL) -> list[Load]:
    """One row per notebook that asks servers, samples or trains; all other notebooks cost neither."""
    trains = cfg.policy.kind != "endpoint"
    own = [row for row in rows.list_rows(cfg) if row.method in get_args(Prompting) and not row.comparator]
    others = [row for row in rows.list_rows(cfg) if row not in own]
    loads = [
        Load("01_profiles_and_data", _conversion(cfg, typical)),
        Load("03_rewards_and_judges", rehearsal.attacks(cfg, typical) if "llm" in (cfg.judge.kind, cfg.evaluator.kind) else Tally()),
        Load("10_prompting_baselines", _evaluation(cfg, typical, own)),
    ]
    if trains:
        loads += [_baseline(cfg, typical, "11_sft", cfg.sft, 1), _baseline(cfg, typical, "12_dpo", cfg.dpo, 2)]
        loads += [_ppo(cfg, typical), _ablations(cfg, typical), _grpo(cfg, typical)]
    loads += [Load("30_evaluation", _evaluation(cfg, typical, others)), *_analyses(cfg, typical)]
    return [load for load in loads if load.tally.asked or load.tally.own.requests or load.trained.requests]


def _conversion(cfg: Config, typical: Typical) -> Tally:
    if cfg.personas.source != "aloe" or cfg.personas.conversion != "llm":
        return Tally()
    train = cfg.personas.train_users or ALOE_USERS - cfg.personas.test_users
    return rehearsal.conversion(cfg, typical, train + cfg.personas.test_users)


def _evaluation(cfg: Config, typical: Typical, wanted: Sequence[rows.Row]) -> Tally:
    """30_evaluation reads back the rows that 10_prompting_baselines has played."""
    given, total = cfg.evaluation, Tally()
    sizes = {"vanilla": given.users, "extended": given.extended_users or given.users}
    for benchmark in given.benchmarks if wanted else ():
        play = lambda run, n, name=benchmark: rehearsal.play_rows(run, wanted, name, n)  # noqa: E731
        total = total.added(rehearsal.per_users(cfg, typical, sizes[benchmark], play))
    return total


def _analyses(cfg: Config, typical: Typical) -> list[Load]:
    """33_reasoning_models reads back the rows of 30_evaluation, and 35 its willing users."""
    found = []
    for notebook, section, play in (
        ("31_preference_conflict", cfg.conflict, rehearsal_analyses.play_conflict),
        ("32_long_term", cfg.long_term, rehearsal_analyses.play_long_term),
        ("35_difficult_users", cfg.difficult, rehearsal_analyses.play_difficult),
    ):
        wanted = rows.select_rows(cfg, section.methods)
        users = min(section.users or cfg.evaluation.users, cfg.evaluation.users)
        acts = lambda run, n, play=play, wanted=wanted: play(run, wanted, n)  # noqa: E731
        found.append(Load(notebook, rehearsal.per_users(cfg, typical, users, acts) if wanted else Tally()))
    found.append(Load("34_user_and_reward_model_evaluation", rehearsal_analyses.study(cfg, typical)))
    return sorted(found, key=lambda load: load.notebook)


def _ppo(cfg: Config, typical: Typical) -> Load:
    cohort = rehearsal.per_users(cfg, typical, cfg.rollout.users, rehearsal.play_ppo)
    tally = Tally().added(cohort, cfg.ppo.iterations)
    shared = cfg.rollout.samples if cfg.ppo.packing == "tree" else 1  # the samples of a prompt pass it through the model together
    trained = Ask(tally.own.requests, tally.own.prompt / shared, tally.own.completion)
    return Load("20_ppo", tally, trained, cfg.ppo.epochs)


def _ablations(cfg: Config, typical: Typical) -> Load:
    """Each variant's training up to the comparison, and an evaluation on Vanilla of each and of both rewards; 20_ppo trains the latter."""
    cohorts = min(cfg.ablations.iterations or cfg.ppo.iterations, cfg.ppo.iterations)
    vanilla = cfg.model_copy(update={"evaluation": cfg.evaluation.model_copy(update={"benchmarks": ("vanilla",)})})
    total, trained = Tally().added(_evaluation(vanilla, typical, [rows.Row("rlpa")]), 1 + len(cfg.ablations.variants)), Ask()
    for variant in cfg.ablations.variants:
        one = config.change_config(cfg, [*ablations.list_changes(cfg, variant), f"ppo.iterations={cohorts}"], f"ablations.variants: {variant}")
        load = _ppo(one, typical)
        total, trained = total.added(load.tally), trained.added(load.trained)
    return Load("21_ablations", total, trained, cfg.ppo.epochs)


def _grpo(cfg: Config, typical: Typical) -> Load:
    if not cfg.grpo.rounds:
        return Load("22_grpo")
    tally = Tally().added(rehearsal.per_users(cfg, typical, cfg.grpo.users, rehearsal.play_grpo), cfg.grpo.rounds)
    share = cfg.grpo.samples / (cfg.grpo.samples + 1)  # the moments themselves are sampled once and not trained on
    return Load("22_grpo", tally, Ask(*(share * value for value in vars(tally.own).values())))


def _baseline(cfg: Config, typical: Typical, notebook: str, settings, sides: int) -> Load:
    """SFT and DPO: a prompt of half the turns, and one response (two for DPO), for each turn of each conversation."""
    n = (settings.conversations or cfg.personas.train_users or ALOE_USERS) * cfg.rollout.turns * sides
    history = cfg.rollout.turns / 2 * (typical.utterance + typical.response + 2 * typical.per_message)
    return Load(notebook, Tally(), Ask(n, n * history, n * typical.response), settings.epochs)


def usd(cfg: Config, tally: Tally) -> float | None:
    """Price of what is asked; 0 for models on local servers that the table does not name, None when another model has no price."""
    prices, total = read_prices(cfg.endpoint.prices), 0.0
    for (_, model, server), ask in tally.asked.items():
        if model in prices:
            total += prices[model].usd(round(ask.prompt), round(ask.completion))
        elif not transport.is_local(server):
            return None
    return total


def hours(cfg: Config, ask: Ask, rpm: float, tpm: float) -> float:
    """Wall time of requests at a limit of requests and of tokens a minute, and at `endpoint.concurrency` requests at a time."""
    minutes = max(ask.requests / rpm, (ask.prompt + ask.completion) / tpm, ask.requests * LATENCY / 60 / cfg.endpoint.concurrency)
    return minutes / 60


def table(cfg: Config, *, rpm: float | None = None, tpm: float = 2e6, gpu: GPU = A100, typical: Typical = TYPICAL) -> str:
    """The plan as text: a line a notebook, the total, USD by role, and the assumptions."""
    rpm, loads = rpm or cfg.endpoint.max_rpm or 500.0, plan(cfg, typical)
    names = [path.stem for path in _notebooks()]
    head = ("notebook", "requests", "prompt tokens", "answer tokens", "USD", "hours", "completions", "generated", "trained", "GPU GB", "GPU hours")
    lines = [head, *(_line(cfg, load, rpm, tpm, gpu) for load in loads)]
    whole = Load("total")
    for load in loads:
        whole = Load("total", whole.tally.added(load.tally), whole.trained.added(load.trained, load.epochs))
    spent = sum(gpu_cost.hours(cfg, load.tally.own, load.trained, load.epochs, gpu) or 0.0 for load in loads)
    lines.append((*_line(cfg, whole, rpm, tpm, gpu)[:-2], "", f"{spent:.1f}" if gpu_cost.shape(cfg) else "-"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]) for line in lines]
    quiet = [name for name in names if name not in {load.notebook for load in loads}]
    skipped = "; notebooks that train are skipped" if cfg.policy.kind == "endpoint" else ""
    text += ["", f"nothing counted for: {', '.join(quiet)}{skipped}", "", *_roles(cfg, whole.tally), "", "Assumptions"]
    return "\n".join([*text, *_assumptions(cfg, typical, rpm, tpm, gpu)])


def _notebooks() -> list[Path]:
    from rlpa_lib.reproduce import runner

    return runner.numbered(runner.NOTEBOOKS)


def _line(cfg: Config, load: Load, rpm: float, tpm: float, gpu: GPU) -> tuple[str, ...]:
    asked, own, price = load.tally.total(), load.tally.own, usd(cfg, load.tally)
    memory = gpu_cost.memory(cfg, own, load.trained)
    spent = gpu_cost.hours(cfg, own, load.trained, load.epochs, gpu)
    counts = tuple(f"{round(n):,}" for n in (asked.requests, asked.prompt, asked.completion))
    money = "no price" if price is None else f"{price:,.2f}"
    policy = tuple(f"{round(n):,}" for n in (own.requests, own.completion, load.trained.prompt + load.trained.completion))
    shown = tuple("-" if value is None else f"{value:.1f}" for value in (memory, spent))
    return (load.notebook, *counts, money, f"{hours(cfg, asked, rpm, tpm):.2f}", *policy, *shown)


def _roles(cfg: Config, tally: Tally) -> list[str]:
    """One line a role and model."""
    found = []
    for (role, model, server), ask in sorted(tally.asked.items()):
        price = usd(cfg, Tally({(role, model, server): ask}))
        money = "no price in the table" if price is None else f"{price:,.2f} USD"
        found.append(f"{role} ({model}): {ask.requests:,.0f} requests, {ask.prompt:,.0f} + {ask.completion:,.0f} tokens, {money}")
    return found


def _assumptions(cfg: Config, typical: Typical, rpm: float, tpm: float, gpu: GPU) -> list[str]:
    lengths = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in vars(typical).items())
    return [
        f"- lengths in tokens: {lengths}. Every reply is well formed, nothing is asked twice, and nothing has to be repeated.",
        f"- servers: {rpm:,.0f} requests and {tpm:,.0f} tokens a minute (--rpm, --tpm), {LATENCY:g} s a request, "
        f"{cfg.endpoint.concurrency} at a time (endpoint.concurrency); prices from params/prices.yaml, without the discount for cached input.",
        *(f"- {line}" for line in gpu_cost.assumptions(cfg, gpu)),
    ]


def against(cfg: Config, run_dir: Path, typical: Typical = TYPICAL) -> dict[str, tuple[float, float]]:
    """(predicted, actual) requests and tokens of the notebooks that a run of these settings has finished, from its usage record."""
    finished, predicted = {path.stem for path in (run_dir / "notebooks").glob("*.ipynb")}, Tally()
    for load in plan(cfg, typical):
        if load.notebook in finished:
            predicted = predicted.added(load.tally)
    wanted, actual = predicted.total(), Usage(run_dir / "metrics" / "usage.jsonl").rows()
    sums = {name: sum(row[name] for row in actual) for name in ("sent", "prompt_tokens", "completion_tokens")}
    return {
        "requests": (wanted.requests, sums["sent"]),
        "prompt tokens": (wanted.prompt, sums["prompt_tokens"]),
        "answer tokens": (wanted.completion, sums["completion_tokens"]),
        "tokens": (wanted.prompt + wanted.completion, sums["prompt_tokens"] + sums["completion_tokens"]),
    }
