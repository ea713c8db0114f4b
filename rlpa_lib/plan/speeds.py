"""How fast cards sample and train, where the rates come from, and the hours that follow.

Rates are published ones of models of that size, or read off them; no run of this project has measured one.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlpa_lib.plan import gpu
from rlpa_lib.plan.gpu import BYTES, Amounts, Work
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import POLICIES
from rlpa_lib.settings.layout import Layout


@dataclass(frozen=True)
class Card:
    """Dense bf16 operations and bytes of memory that a card moves in a second, and USD an hour to rent it."""

    flops: float
    bandwidth: float
    usd: float


# https://pricegpu.pages.dev/blog/h100-vs-a100-cloud-price: 1.49 to 2.49 and 2.49 to 3.99 USD, early 2026
CARDS = {"A100": Card(312e12, 2.0e12, 2.0), "H100": Card(989e12, 3.35e12, 3.25)}
USUAL = "A100"  # the paper's (section 4.1)
TRAINING_SHARE = 0.20  # of the card's operations, counted without what checkpointing computes twice
DECODING_SHARE = 0.30  # of the memory's speed, with 64 sequences and an adapter
LOOP_STEPS = 30.0  # decoding steps a second that a Python loop (not vLLM) cannot exceed
SERVED_AT_ONCE = 64  # sequences that a vLLM server decodes together
LONGEST = 4.0  # the longest reply of a turn, in mean replies: all dialogues wait for it
RANKS_SHARE = 0.9  # of N training processes' speed that is left when they wait for each other
SOURCES = [
    "training 20 % of a card's bf16 peak: LoRA with checkpointing on one A100-80 takes 1.1 s (1.8B) and "
    "2.8 s (7B) for 8 rows of 1,024 tokens, 18 % and 29 % if a frozen weight counts 4 operations a token "
    "(https://github.com/QwenLM/Qwen, README, Profiling of Memory and Speed).",
    "decoding 30 % of the memory's speed: Llama-3.1-8B under vLLM 0.23 on an A100-40 reaches 75 tokens/s "
    "alone and 6.6 times that at 8 at once, 64 % "
    "(https://johnmusgrave.com/p/vllm-throughput-latency-sweep-on); Qwen2.5-7B on an A40 1,095 tokens/s at "
    "50 at once, 48 % (https://www.databasemart.com/blog/vllm-gpu-benchmark-a40). A 3B model has half the "
    "bytes and as many launches a step, and adapters cost: 30 % is ours.",
    "tails: a turn lasts until its longest reply is there, 4 mean replies (ours). On that A40 50 requests "
    "begun together gave 1,017 tokens/s where the median step of 36 ms would give 1,390 (Llama-3.1-8B).",
    "cards: 2.0 USD an hour for an A100-80, 3.25 for an H100 "
    "(https://pricegpu.pages.dev/blog/h100-vs-a100-cloud-price: 1.49 to 2.49, 2.49 to 3.99).",
    "beside them: RL on Qwen2.5-3B with tools took 40 to 50 minutes a step of 256 prompts on 64 A100-40 "
    "(https://github.com/Agent-RL/ReCall/issues/37) and nearly 20 minutes a rollout of 1,024 samples on 8 "
    "A100-80 (https://github.com/RUC-NLPIR/Tool-Star/issues/15), both with an older vLLM.",
]


@dataclass(frozen=True)
class Hours(Amounts):
    """Hours of one notebook: `sampling` and `training` as they pass, `waiting` the part of sampling in which
    only the longest replies are still written, `busy` of one card at a time."""

    sampling: float = 0.0
    training: float = 0.0
    waiting: float = 0.0
    busy: float = 0.0


def find_card(name: str) -> Card:
    """The rates of a card. InputError: it is not known."""
    if name not in CARDS:
        raise InputError(f"--gpus: no rates for {name}; known are {', '.join(CARDS)}")
    return CARDS[name]


def hours(
    cfg: Config, notebook: str, own: Work, trained: Work, epochs: int, layout: Layout | None = None
) -> Hours | None:
    """Hours for what a notebook samples and trains, on one A100 or on a layout; None: no shape is known."""
    if (known := gpu.shape(cfg)) is None:
        return None
    card = find_card(layout.card if layout else USUAL)
    size, reached = known.weights(), card.flops * TRAINING_SHARE
    steps = DECODING_SHARE * card.bandwidth / (BYTES[cfg.policy.dtype] * size)
    prefill = 2 * size * own.prompt / reached
    mean = own.completion / (own.replies or 1)
    if POLICIES[cfg.policy.kind].needs_servers:
        n = max(1, layout.n_servers if layout and layout.servers else len(cfg.policy.servers))
        turns = own.requests / (cfg.rollout.users if trained.requests else cfg.evaluation.users)
        bulk, waiting = own.completion / (steps * SERVED_AT_ONCE * n), turns * (LONGEST - 1) * mean / steps
    else:
        n = len(layout.trainers) if layout and trained.requests else 1
        together = gpu.sampled_together(cfg, trained) * n
        bulk = own.completion / (min(steps, LOOP_STEPS) * together)
        waiting = (LONGEST - 1) * bulk
    sampling = bulk + waiting + prefill / n
    passes = operations(cfg, notebook, epochs) * size * (trained.prompt + trained.completion) / reached
    ranks = len(layout.trainers) if layout else 1
    together = 1 if ranks == 1 else RANKS_SHARE * ranks
    found = sampling, passes / together, waiting, n * sampling + passes
    return Hours(*(seconds / 3600 for seconds in found))


def operations(cfg: Config, notebook: str, epochs: int) -> float:
    """Operations a weight and trained token: forward 2, backward 2 through frozen weights and 2 more for
    trained ones. PPO adds passes before the update, and its critic's if it has one to train."""
    full = cfg.policy.tuning == "full"
    critic = cfg.ppo.critic == "lora" and cfg.ppo.baseline == "critic"
    if notebook in ("11_sft", "12_dpo", "22_grpo"):  # a LoRA; the last two need the reference, too
        extra = {"11_sft": 0, "12_dpo": 2, "22_grpo": 2}[notebook]
        return epochs * 4 + extra
    sampled_elsewhere = POLICIES[cfg.policy.kind].needs_servers or full
    before = 2 + 2 * critic + 2 * sampled_elsewhere
    return before + epochs * ((6 if full else 4) + 4 * critic)


def assumptions(cfg: Config) -> list[str]:
    """What the hours rest on, for people."""
    if (known := gpu.shape(cfg)) is None:
        return ["GPU: none. The policy is behind a server, runs on a CPU, or its shape is not known here."]
    return [
        f"GPU: {USUAL}, {known.weights() / 1e9:.2f} billion weights; training reaches {TRAINING_SHARE:.0%} "
        f"of {CARDS[USUAL].flops / 1e12:.0f} TFLOP/s, decoding {DECODING_SHARE:.0%} of the memory's speed, "
        f"at most {LOOP_STEPS:g} steps a second outside vLLM; a turn waits for a reply of {LONGEST:g} mean "
        "lengths.",
        "GPU hours are those in which a card works. It is held while users and judges answer, too: --gpus.",
        "GPU memory: one GPU holds all, prompts and replies of average length; SFT and DPO are counted with "
        "PPO's micro-batch and critic, so high.",
    ]
