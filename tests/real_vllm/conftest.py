"""Real vLLM servers. Collected only when asked for by path (`make test-vllm`): setting up takes minutes,
starting half a minute each.

RLPA_VLLM_VENV names the environment with vLLM (default: .venv-vllm of the repository, made when it is not
there).
"""

import os
from pathlib import Path

import pytest
import torch

from rlpa_lib.agents import vllm_server

HERE = Path(__file__).parent


def pytest_configure(config):
    config.addinivalue_line("markers", "vllm: needs a vLLM server, which the tests start themselves")


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.vllm)


@pytest.fixture(scope="session")
def vllm_venv():
    torch.set_num_threads(1)
    venv = Path(os.environ.get("RLPA_VLLM_VENV") or vllm_server.DEFAULT_VENV).resolve()
    vllm_server.setup(venv)
    return venv


@pytest.fixture(scope="session")
def vllm_launch(vllm_venv):
    """Starts servers of the tiny model on free ports; all are stopped at the end."""
    started = []

    def launch(model="tiny", **settings):
        settings = {
            "port": 0, "dtype": "float32", "threads": 1, "kv_gib": 1, "lora_rank": 8, "wait": 1800.0,
            **settings,
        }
        started.append(vllm_server.start(model, venv=vllm_venv, **settings))
        return started[-1]

    yield launch
    for server in started:
        vllm_server.stop(server, vllm_venv)


@pytest.fixture(scope="session")
def vllm_server_tiny(vllm_launch):
    return vllm_launch()
