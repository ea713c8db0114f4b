"""vLLM servers that a run starts and ends itself, where `policy.servers` names none.

They live as long as the process that asked for them first, on the cards of its layout (settings/layout.py),
so nothing is left when a notebook or a training ends. One notebook at a time: `reproduce` runs one job then.
"""

import atexit
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil

from rlpa_lib.agents import vllm_server
from rlpa_lib.agents.vllm_place import Place
from rlpa_lib.agents.vllm_server import Server
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import POLICIES
from rlpa_lib.settings.layout import Layout, layout_of

# environment variable: the servers of several machines, which params/slurm/reproduce.sbatch has started. They
# change from job to job, and the settings of a run that goes on must not
LENT = "RLPA_SERVERS"
VENV = "RLPA_VLLM_VENV"  # environment variable: another place than .venv-vllm, as for the tests
_running: dict[str, list[Server]] = {}  # by what they were started with


def are_needed(cfg: Config) -> bool:
    """Whether a run of these settings starts servers."""
    return POLICIES[cfg.policy.kind].needs_servers and not cfg.policy.servers


def can_sleep(cfg: Config) -> bool:
    """Whether the servers that this process starts give their memory back while it trains."""
    return are_needed(cfg) and layout_of(cfg).sleeps and count_cards() > 0


def count_cards() -> int:
    """GPUs that this process sees."""
    import torch  # slow to import, and not needed where servers are elsewhere

    return torch.cuda.device_count()


def check(cfg: Config) -> Layout:
    """The layout, which this machine has room for. InputError: vLLM is not set up, cards are missing, the
    model is for GPUs and there is none, or the layout has no room for it."""
    try:
        layout = layout_of(cfg)
    except ValueError as error:
        raise InputError(f"run.gpus: {error}") from error
    seen = count_cards()
    if cfg.run.gpus is not None and seen < layout.cards:
        raise InputError(f"run.gpus: {cfg.run.gpus} names {layout.cards} cards, and {seen} can be seen here")
    if layout.machines > 1:
        if not os.environ.get(LENT):
            how = f"which starts its servers and names them in {LENT}"
            raise InputError(f"run.gpus: {cfg.run.gpus} is for params/slurm/reproduce.sbatch, {how}")
        return layout
    venv = _find_venv()
    if not (venv / vllm_server.PYTHON).exists():
        how = "python -m rlpa_lib.agents.vllm_server setup --gpu"
        raise InputError(f"policy.servers: names none, and vLLM is not in {venv} to start one; run {how}")
    if not seen and cfg.policy.model not in ("tiny", "smollm2"):
        why = f"no GPU can be seen here to serve {cfg.policy.model}"
        raise InputError(f"policy.servers: {why}; name servers elsewhere")
    return layout


def open_servers(cfg: Config) -> tuple[str, ...]:
    """Base URLs of the servers of the run's layout, started on first use; without a GPU one server of the CPU
    build. They end with this process, or by `close_servers`; those of other machines (`LENT`) with their job.
    Raises InputError (`check`), ServerFailed."""
    layout, policy = check(cfg), cfg.policy
    if layout.machines > 1:
        return tuple(os.environ[LENT].split(","))
    devices = [name_card(card) for card in layout.servers] if count_cards() > 0 else [None]
    can = {"updates": policy.tuning == "full", "sleeps": can_sleep(cfg)}
    places = [Place(card, card and layout.share, **can) for card in devices]
    key = repr((policy.model, policy.revision, policy.dtype, policy.lora_rank, places))
    if key not in _running:
        close_servers()  # of other settings; the cards are the same
        end_orphans()
        extra = ["--revision", policy.revision] if policy.revision else []
        options = {"venv": _find_venv(), "port": 0, "dtype": policy.dtype, "lora_rank": policy.lora_rank}
        options |= {"threads": cfg.run.threads, "owner": os.getpid(), "extra": extra}
        atexit.register(close_servers)
        started = _running.setdefault(key, [])
        with ThreadPoolExecutor(len(places)) as pool:
            waiting = [pool.submit(vllm_server.start, policy.model, place=p, **options) for p in places]
        started += [done.result() for done in waiting if done.exception() is None]
        for done in waiting:
            if done.exception() is not None:
                close_servers()
                raise done.exception()
    return tuple(server.base_url for server in _running[key])


def close_servers() -> None:
    """End the servers of this process; does nothing where there are none. All are told first: a notebook's
    kernel has five seconds to end."""
    servers = [server for some in _running.values() for server in some]
    for server in servers:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
    for server in servers:
        vllm_server.stop(server, _find_venv())
    _running.clear()


def end_orphans() -> None:
    """End servers whose process is gone without having ended them (it was killed): they hold the cards."""
    for server in vllm_server.running(_find_venv()):
        if server.owner and not psutil.pid_exists(server.owner):
            vllm_server.stop(server, _find_venv())


def name_card(card: int) -> str:
    """CUDA's name of the so-manieth card that this process sees."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return seen[card] if seen != [""] else str(card)


def trainer_environment(cfg: Config) -> dict[str, str]:
    """What the training processes of a run find in their environment: their cards alone, if `run.gpus` says
    which."""
    if cfg.run.gpus is None:
        return {}
    layout = layout_of(cfg, served=POLICIES[cfg.policy.kind].needs_servers)
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(name_card, layout.trainers))}


def lend(cfg: Config) -> tuple[str, ...]:
    """Overrides by which processes that this one launches sample on its servers."""
    if not are_needed(cfg):
        return ()
    return (f"policy.servers=[{', '.join(open_servers(cfg))}]", "run.gpus=null")


def _find_venv() -> Path:
    return Path(os.environ.get(VENV) or vllm_server.DEFAULT_VENV)
