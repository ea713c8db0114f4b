"""Which precision and how many threads the policy computes fastest with on this machine: what `auto` means.

Processors differ by more than a factor of ten: with AMX bf16 is about twice as fast as fp32, without it nine
times slower. So a run measures when it begins, keeps the choice in its record, and resumes with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlpa_lib.agents import devices, models
from rlpa_lib.runs import record
from rlpa_lib.settings.config import Config
from rlpa_lib.settings.measured import USUAL, list_open

if TYPE_CHECKING:
    import torch

Size = tuple[int, int]  # inputs and outputs of a linear map
TOKENS = 256  # that pass at once: a part of an update, and as many rows as sampling has
REPEATS, ENOUGH = 5, 1.5  # of one measurement: times at most, and seconds after which none follows
GAIN = 1.2  # how many times faster bf16 must be to be worth its rounding, and twice the threads their cores


def measure(cfg: Config) -> dict[str, Any]:
    """What this machine makes of each setting that says `auto` (`settings.measured`): `chosen` values by key,
    and what was measured, in GFLOP/s by precision and threads. InputError: there is no such model."""
    sizes, device = list_sizes(cfg), devices.choose_device()
    rates: dict[str, float] = {}

    def rate(dtype: str, threads: int) -> float:
        key = f"{dtype} x {threads}"
        if key not in rates:
            rates[key] = round(time_products(sizes, dtype, threads, device), 2)
        return rates[key]

    dtype, chosen = cfg.policy.dtype, {}
    if dtype == "auto":
        dtype = choose_dtype({name: rate(name, 1) for name in ("float32", "bfloat16")})
        chosen["policy.dtype"] = dtype
    if cfg.run.threads == "auto":
        most = record.cores() if device.type == "cpu" else 1
        chosen["run.threads"] = choose_threads(lambda n: rate(dtype, n), most)
    return {"chosen": chosen, "gflops": rates, "device": str(device), "tokens": TOKENS, "sizes": sizes}


def measure_nothing(cfg: Config) -> dict[str, Any]:
    """The same for a policy that is not computed here."""
    return {"chosen": {key: USUAL[key] for key in list_open(cfg)}, "gflops": {}}


def choose_dtype(rates: Mapping[str, float]) -> str:
    """The precision to compute in, by its rate: fp32, unless bf16 is clearly faster."""
    return "bfloat16" if rates["bfloat16"] >= GAIN * rates["float32"] else "float32"


def choose_threads(rate: Callable[[int], float], most: int) -> int:
    """How many threads, `most` at most: twice as many as long as that is clearly faster."""
    threads = 1
    while threads < most and rate(more := min(2 * threads, most)) >= GAIN * rate(threads):
        threads = more
    return threads


def list_sizes(cfg: Config) -> list[Size]:
    """The linear maps in one layer of `policy.model`, from its configuration alone. InputError: there is no
    such model."""
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM

    with models.locate(cfg) as source, torch.device("meta"):
        config = AutoConfig.from_pretrained(source, revision=cfg.policy.revision)
        model = AutoModelForCausalLM.from_config(config)
    layer = model.get_decoder().layers[0]
    return [(m.in_features, m.out_features) for m in layer.modules() if isinstance(m, nn.Linear)]


def time_products(sizes: Sequence[Size], dtype: str, threads: int, device: torch.device) -> float:
    """GFLOP/s of these linear maps on TOKENS rows, the best of some repeats. On a CPU one thread is timed by
    its processor time, so that other work on the machine does not count."""
    import torch

    before = torch.get_num_threads()
    clock = time.process_time if device.type == "cpu" and threads == 1 else time.perf_counter
    torch.set_num_threads(threads)
    try:
        options = {"dtype": getattr(torch, dtype), "device": device}
        pairs = [(torch.ones(TOKENS, a, **options), torch.ones(b, a, **options)) for a, b in sizes]
        best, begin = float("inf"), time.perf_counter()
        for repeat in range(REPEATS + 1):
            start = clock()
            with torch.inference_mode():
                for x, weight in pairs:
                    torch.nn.functional.linear(x, weight)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, clock() - start) if repeat else best  # the first prepares kernels and threads
            if repeat and time.perf_counter() - begin > ENOUGH:
                break
    finally:
        torch.set_num_threads(before)
    return 2e-9 * TOKENS * sum(a * b for a, b in sizes) / max(best, 1e-9)
