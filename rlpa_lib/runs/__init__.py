"""Run directories: who may write in them, what was run there, and how files are kept."""

from rlpa_lib.runs.run import OWNER_VARIABLE, Run, claim, open_run
from rlpa_lib.runs.seeds import set_matmul_precision, set_seed, set_threads

__all__ = ["OWNER_VARIABLE", "Run", "claim", "open_run", "set_matmul_precision", "set_seed", "set_threads"]
