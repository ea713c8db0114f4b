"""Seeds and threads: one seed per purpose, the same on every machine."""

import hashlib
import os
import random


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts; the same parts give the same seed on every machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def set_threads(n: int) -> None:
    """Use `n` CPU threads here and in child processes; idle ones sleep, so that two runs can share cores."""
    os.environ["OMP_NUM_THREADS"] = str(n)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch  # after the variables above, which OpenMP reads once

    torch.set_num_threads(n)


def set_matmul_precision(precision: str) -> None:
    """Precision of fp32 matrix products, as `run.matmul_precision` names it."""
    import torch

    torch.set_float32_matmul_precision(precision)


def set_seed(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators; the library's own code takes explicit seeds."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
