"""`plan --gpus`: the layout that a run on these cards would have, its command, memory, hours and money."""

import re
import shlex
from collections.abc import Sequence

from rlpa_lib.plan import gpu, plan, speeds
from rlpa_lib.plan.pilot import Pilot
from rlpa_lib.plan.speeds import Hours
from rlpa_lib.rlpa import memory
from rlpa_lib.rlpa.memory import Shape
from rlpa_lib.settings.config import Config, InputError, load_config
from rlpa_lib.settings.kinds import POLICIES
from rlpa_lib.settings.layout import Layout, layout_of

SPREAD = ("backbone", "trained weights", "gradients", "moments")  # by FSDP, of `memory.predict`


def describe(
    cfg: Config, gpus: str, scale: str, overrides: Sequence[str], pilot: Pilot, rpm: float, tpm: float
) -> str:
    """The layout as text. InputError: there is none for these cards, other settings say otherwise, no rate or
    shape is known, or a card cannot hold a usual update or a server of the longest prompt and reply."""
    overrides = [text for text in overrides if text != f"run.gpus={gpus}"]
    if other := [text for text in overrides if text.partition("=")[0].strip() == "run.gpus"]:
        raise InputError(f"--gpus: {gpus}, but --set {other[-1]}; leave one of them out")
    try:
        layout = layout_of(cfg, gpus, served=POLICIES[cfg.policy.kind].needs_servers)
    except ValueError as error:
        raise InputError(f"--gpus: {error}") from error
    load_config(scale, [*overrides, f"run.gpus={gpus}"])  # as the run will: what else contradicts it
    if (known := gpu.shape(cfg)) is None:
        asked = f"policy.model = {cfg.policy.model}, policy.kind = {cfg.policy.kind}"
        raise InputError(f"--gpus: no shape of a model that runs on GPUs here is known ({asked})")
    lines = [f"layout for {gpus}, policy.tuning={cfg.policy.tuning}"]
    lines += [*_roles(cfg, layout, known), "", f"  {command(layout, scale, overrides)}", ""]
    lines += [*_costs(cfg, layout, pilot, rpm, tpm), "", "sources of the rates"]
    return "\n".join([*lines, *(f"- {source}" for source in speeds.SOURCES)])


def command(layout: Layout, scale: str, overrides: Sequence[str] = ()) -> str:
    """What starts a run in this layout; docs/layouts.md shows the same."""
    if layout.machines > 1:
        start = f"sbatch --nodes={layout.machines} params/slurm/reproduce.sbatch {scale}"
        return " ".join([start, *map(_quote, overrides)])
    blank = [text for text in overrides if re.search(r"\s", text)]  # there make would part SET
    listed = [f"run.gpus={layout.gpus}", *(text for text in overrides if text not in blank)]
    apart = " ".join(f"--set {_quote(text)}" for text in blank)
    return f'make reproduce SCALE={scale} SET="{" ".join(listed)}"' + (f' ARGS="{apart}"' if apart else "")


def _quote(text: str) -> str:
    return shlex.quote(text) if re.search(r"[\s'\"$;&|<>()*?]", text) else text


def _roles(cfg: Config, layout: Layout, known: Shape) -> list[str]:
    """A line a role: its cards, processes and memory a card in GB."""
    where = "of the first machine " if layout.machines > 1 else ""
    file = f" (run.accelerate={layout.accelerate})" if layout.accelerate else ""
    longest = cfg.rollout.max_prompt_tokens, cfg.rollout.max_new_tokens
    usual = min(1024, longest[0]), min(256, longest[1])
    sizes = [_trainer_memory(cfg, layout, known, *size) for size in (usual, longest)]
    needs = [f"{gb:.0f} GB for {prompt:,} + {reply:,} tokens"
             for gb, (prompt, reply) in zip(sizes, (usual, longest), strict=True)]  # fmt: skip
    if sizes[0] > layout.gigabytes:
        raise InputError(
            f"--gpus: {layout.gpus}: an update needs {needs[0]}, a card has {layout.gigabytes} GB"
        )
    what = f"an update needs {', '.join(needs)}, of {layout.gigabytes}"
    what += "; the longest do not fit: lower rollout.max_new_tokens" if sizes[1] > layout.gigabytes else ""
    told = [f"trainer: {_name(layout.trainers)} {where}with a process each{file}; {what}"]
    if not layout.servers:
        told.append(f"servers: elsewhere, {', '.join(cfg.policy.servers) or 'none; the trainer samples'}")
        return told
    weights = gpu.BYTES[cfg.policy.dtype] * known.weights() / 1e9
    room = layout.share * layout.gigabytes
    kept = 2 * known.layers * known.kv_width * gpu.BYTES[cfg.policy.dtype]
    where = "of each other machine " if layout.machines > 1 else ""
    tokens = (room - weights) * 1e9 / kept
    if tokens < sum(longest):
        why = f"holds weights of {weights:.1f} GB and the longest prompt and reply, {sum(longest):,} tokens"
        raise InputError(f"--gpus: {layout.gpus}: no server's share of {room:.0f} GB {why}")
    told.append(
        f"vLLM: {_name(layout.servers)} {where}with a server each, {layout.share:g} of its memory = "
        f"{room:.0f} GB: weights {weights:.1f}, keys and values of {tokens:,.0f} tokens"
        + ("; asleep while the trainer works" if layout.sleeps else "")
    )
    return told


def _name(cards: Sequence[int]) -> str:
    return f"card {cards[0]}" if len(cards) == 1 else f"cards {cards[0]} to {cards[-1]}"


def _trainer_memory(cfg: Config, layout: Layout, known: Shape, prompt: int, completion: int) -> float:
    parts = memory.predict(known, cfg, prompt, completion)
    spread = len(layout.trainers) if (layout.accelerate or "").startswith("fsdp") else 1
    return sum(size / (spread if name in SPREAD else 1) for name, size in parts.items()) / 1e9


def _costs(cfg: Config, layout: Layout, pilot: Pilot, rpm: float, tpm: float) -> list[str]:
    """Hours as they pass, of cards, and USD."""
    spent, answers, price = Hours(), 0.0, 0.0
    for load in plan.plan(cfg, pilot):
        epochs = plan.count_epochs(cfg, load)
        spent += speeds.hours(cfg, load.notebook, load.own, load.trained, epochs, layout)
        answers += plan.hours(cfg, load.total(), rpm, tpm)
        asked = plan.usd(cfg, load.asked)
        price = None if price is None or asked is None else price + asked
    wall = spent.sampling + spent.training + answers
    held, card = wall * layout.n_cards, speeds.find_card(layout.card)
    tail = f"({spent.waiting:.1f} of it for the longest replies)"
    parts = f"sampling {spent.sampling:.1f} {tail}, training {spent.training:.1f}"
    parts += f", users and judges {answers:.1f}"
    asked = "no price known" if price is None else f"{price:,.0f} USD"
    return [
        f"hours: {wall:.1f} = {parts} (one after the other)",
        f"GPU hours: {held:.0f} held by the cards ({layout.n_cards}), busy in {spent.busy:.0f} of them = "
        f"{spent.busy / held:.0%}",
        f"USD: {held * card.usd:,.0f} for cards at {card.usd:g} an hour; users and judges {asked}",
    ]
