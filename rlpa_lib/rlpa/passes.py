"""How samples are split into forward and backward passes that the device's memory holds."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch

from rlpa_lib.rlpa import memory
from rlpa_lib.rlpa.packing import Group, feed
from rlpa_lib.rlpa.processes import Processes
from rlpa_lib.rlpa.tree import count_places
from rlpa_lib.settings.config import Config, InputError

Made = TypeVar("Made")


class Bundle(NamedTuple):
    """Samples of one prompt by their indices, and their tokens."""

    samples: tuple[int, ...]
    group: Group


def count_tokens(bundles: Sequence[Bundle], packing: str) -> int:
    """Tokens of these bundles packed together, padding included."""
    fed = feed([bundle.group for bundle in bundles])
    return count_places(fed) if packing == "tree" else len(fed) * max(map(len, fed))


def split_bundles(
    bundles: Sequence[Bundle], samples: int, tokens: int | None, packing: str
) -> list[list[Bundle]]:
    """The bundles, in this order, in passes of at most `samples` samples and `tokens` tokens (None: any
    number). A prompt's samples are only parted where they alone are more than `tokens`; one that is longer by
    itself passes alone."""
    passes: list[list[Bundle]] = []
    for bundle in bundles:
        for piece in _part(bundle, tokens, packing):
            more = [*passes[-1], piece] if passes else [piece]
            too_many = sum(len(b.samples) for b in more) > samples
            if not passes or too_many or (tokens is not None and count_tokens(more, packing) > tokens):
                passes.append([piece])
            else:
                passes[-1] = more
    return passes


def _part(bundle: Bundle, tokens: int | None, packing: str) -> list[Bundle]:
    """The bundle, or if it has more than `tokens` tokens the fewest of its samples' runs that have not."""
    if tokens is None or count_tokens([bundle], packing) <= tokens:
        return [bundle]
    prompt, completions = bundle.group
    pieces: list[Bundle] = []
    for sample, completion in zip(bundle.samples, completions, strict=True):
        alone = Bundle((sample,), (prompt, (completion,)))
        if pieces:
            last = pieces[-1]
            more = Bundle((*last.samples, sample), (prompt, (*last.group[1], completion)))
            if count_tokens([more], packing) <= tokens:
                pieces[-1] = more
                continue
        pieces.append(alone)
    return pieces


class Budget:
    """Tokens that one pass may hold: `ppo.pass_tokens`, or what the device's free memory allows by
    `memory.predict_pass`; None on a CPU, which has no memory of its own. Halved once if that was too much.

    `halved`: the budget of this process since its memory ran out (None: it did not); `n_tokens`: tokens of
    the newest pass.
    """

    def __init__(self, cfg: Config, processes: Processes, device: torch.device):
        self.cfg, self.processes, self.device = cfg, processes, device
        self.tokens: int | None = cfg.ppo.pass_tokens
        self.halved: int | None = None
        self.known, self.n_tokens = self.tokens is not None, 0

    def agree(self, model_config, to_come: int) -> int | None:
        """The budget, the same in all processes; the first call looks at the free memory, of which
        `to_come` bytes will be gradients and moments. InputError: the prediction does not know the model."""
        if not self.known:
            self.known = True
            free, own = free_bytes(self.device), None
            if free is not None:
                own = memory.fit_tokens(_shape(model_config), self.cfg, free - to_come)
            found = [tokens for tokens in self.processes.gather(own) if tokens is not None]
            self.tokens = min(found, default=None)
        return self.tokens

    def facts(self) -> dict[str, int]:
        """Tokens a pass may hold, and 1 once the memory has run out, of all processes; {} without a bound."""
        own = self.halved or self.tokens, int(self.halved is not None)
        bounds, failed = zip(*self.processes.gather(own), strict=True)
        known = [tokens for tokens in bounds if tokens is not None]
        return {"pass_tokens": min(known), "out_of_memory": max(failed)} if known else {}

    def split_further(self, part: list[Bundle]) -> Iterator[list[Bundle]]:
        """A pass as it was planned, or since the memory ran out in several; notes the size of each."""
        packing, samples = self.cfg.ppo.packing, sum(len(bundle.samples) for bundle in part)
        for piece in split_bundles(part, samples, self.halved, packing):
            self.n_tokens = count_tokens(piece, packing)
            yield piece

    def retry(self, work: Callable[[], Made], forget: Callable[[], None]) -> Made:
        """What `work()` gives. If the device's memory runs out it is done again, after `forget()`, with half
        as many tokens a pass as the one that failed; this happens once. MemoryError: it ran out again, or
        weights are spread over processes, which cannot part with each other in the middle of a pass."""
        try:
            return work()
        except torch.OutOfMemoryError as error:
            failed = str(error).partition("\n")[0]  # the error itself holds on to the pass's tensors
        if self.halved or self.processes.sharded:
            what = f"a pass of {self.n_tokens:,} tokens does not fit on {self.device} ({failed})"
            how = "set it lower, or policy.gradient_checkpointing=true"
            raise MemoryError(f"ppo.pass_tokens: {what}; {how}")
        self.halved = max(1, self.n_tokens // 2)
        forget()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return self.retry(work, forget)


def _shape(model_config) -> memory.Shape:
    try:
        return memory.shape_from(model_config.to_dict())
    except KeyError as missing:
        why = f"what fits cannot be told of a {model_config.model_type} model, whose config has no {missing}"
        raise InputError(f"ppo.pass_tokens: {why}; set a number") from None


def free_bytes(device: torch.device) -> int | None:
    """Bytes that a device has left; None: it shares the CPU's memory."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
