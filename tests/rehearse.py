"""A dress rehearsal: the notebooks of a scale, to the report, before a GPU or a server is paid for.

`make rehearse SCALE=paper`, or `python tests/rehearse.py --scale paper [--case NAME] [--only 30]`

Nothing of the params is replaced but the model folder (`qwen_folder.py`: Qwen2.5's form, two layers), the
data's paths, the servers' addresses (`chinese_parties.py`, `sampling_vllm.py`), the sentence encoder's
weights (random, under the hub's name) and the counts. The first case of a scale is the scale as it is, all
notebooks; the second has the other credit scheme, two processes and the notebooks that train and evaluate.
Both scales together know MDP and bandit, LoRA and full tuning, one process and two, and the full width of
Qwen's output. It prints a table of notebook, minutes and requests a role, and stops at the first failure with
its line.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import chinese_parties
import qwen_folder
import torch
from sampling_vllm import SamplingVLLM
from scripted_server import ScriptedServer
from transformers import BertConfig, BertModel, BertTokenizer
from transformers.utils.logging import disable_progress_bar

from rlpa_lib import read_aloe
from rlpa_lib.methods.retrieval import ENCODERS
from rlpa_lib.runs import OWNER_VARIABLE, storage
from rlpa_lib.runs.record import REPOSITORY
from rlpa_lib.settings import config

# never copied into the project
ALOE = Path(os.environ.get("RLPA_ALOE", "/work/shared/aloe"))
CHAT = Path(
    os.environ.get("RLPA_PERSONACHAT", "/work/shared/personachat/synthetic_persona_chat_test.csv")
)
COUNTS = [  # everything else is the scale's own
    "personas.train_users=12", "personas.test_users=4", "rollout.users=4", "rollout.turns=3",
    "ppo.iterations=2", "ppo.minibatch=16", "sft.conversations=2", "sft.batch=8", "dpo.conversations=1",
    "dpo.batch=4", "grpo.rounds=1", "grpo.users=2", "grpo.batch=2", "evaluation.users=4",
    "evaluation.extended_users=3", "evaluation.turns=3", "conflict.users=2", "conflict.turns=4",
    "conflict.at=3", "long_term.users=2", "long_term.turns=4", "long_term.every=2", "difficult.users=2",
    "difficult.turns=2", "ablations.iterations=1", "study.personas=2", "study.turns=2", "study.profiles=4",
    "study.pairs=8", "study.responses=8", "run.threads=1",
]
MDP = (
    "ppo.turn_discount=0.9", "ppo.update_every=dialogue", "rollout.continuation=random",
    "ppo.value_clip=null",
)  # fmt: skip
BANDIT = (
    "ppo.turn_discount=0.0", "ppo.update_every=turn", "rollout.continuation=best", "ppo.value_clip=0.2",
)  # fmt: skip
OTHERS = (  # other models beside the run's own: rows of table 1, users and judges of notebook 34
    "evaluation.comparators={{GPT-4o: {{model: gpt-4o, base_url: '{url}'}}}}",
    "study.user_models={{other-user: {{kind: llm, model: gpt-4o, base_url: '{url}'}}}}",
    "study.profile_judges={{other-judge: {{kind: llm, model: gpt-4o, base_url: '{url}'}}}}",
)
LEARNING = ("11", "12", "20", "22", "30", "50")
TWO_PROCESSES = (  # and the rows that were trained so
    "run.accelerate=cpu-2", "evaluation.methods=[base, sft, dpo, grpo, rlpa, style_only_other]",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What a rehearsal changes besides the counts, of which notebooks (all where none is named), and whether
    the model is as wide as Qwen's, with 151,936 outputs."""

    changes: tuple[str, ...]
    only: tuple[str, ...] = ()
    wide: bool = False


CASES = {
    "paper": {  # MDP with LoRA
        "own": Case(OTHERS),
        "bandit-2": Case((*BANDIT, *TWO_PROCESSES), LEARNING, wide=True),
    },
    "released": {  # bandit with full tuning
        "own": Case(OTHERS),
        "mdp-2": Case((*MDP, *TWO_PROCESSES), LEARNING),
    },
}
MADE = {  # what a notebook leaves behind that reached its end
    "11": "tables/sft.csv", "12": "tables/dpo.csv", "20": "figures/training_reward.png",
    "21": "tables/table2.csv", "22": "tables/grpo.csv", "30": "tables/table1.csv", "31": "figures/fig4a.png",
    "32": "figures/fig4b.png", "33": "figures/fig5.png", "34": "tables/table8.csv",
    "35": "tables/difficult.csv", "50": "report.html",
}  # fmt: skip


class Failed(RuntimeError):
    """A rehearsal did not reach the report; the message is the line at which it stopped."""


def make_world(folder: Path) -> None:
    """Both models, the encoder, and ALOE's folder: its own files, and conversations about their personas in
    ALOE's form, which are not public, scripted in Chinese."""
    for name, wide in (("model", False), ("model-wide", True)):
        qwen_folder.write_folder(folder / name, wide=wide)
    _make_encoder(folder / "hub")
    (folder / "aloe").mkdir(parents=True)
    files = [ALOE / "profile.jsonl", ALOE / "personality.jsonl"]
    for file in files:
        (folder / "aloe" / file.name).symlink_to(file)
    draw, people = random.Random(0), read_aloe(*files)

    def exchange() -> dict:
        said = {"preferred": draw.choice(chinese_parties.ANSWERED), "rejected": "好的。"}
        chosen = draw.choice(("preferred", "rejected"))
        return {"user": draw.choice(chinese_parties.SAID), "chosen": chosen, "assistant": said}

    talks = [
        {
            "profile": who.description, "personality": draw.choice(people).personality,
            "conversations": [exchange() for _ in range(4)],
        }
        for who in draw.choices(people, k=300)
    ]  # fmt: skip
    storage.write_jsonl(folder / "aloe" / "conversations.jsonl", talks)


def _make_encoder(hub: Path) -> None:
    """Random weights where the hub's cache would hold the encoder of `evaluation.encoder=simcse`."""
    place, version = hub / f"models--{ENCODERS['simcse'].source.replace('/', '--')}", "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(version)
    special, letters = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), map(chr, range(97, 123))
    signs = dict.fromkeys([*special, *letters, *chinese_parties.SAID[0]])
    words = {sign: i for i, sign in enumerate(signs)}
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(place / "snapshots" / version)
    BertTokenizer(vocab=words).save_pretrained(place / "snapshots" / version)


def settings(case: Case, world: Path, url: str) -> list[str]:
    """The overrides of a rehearsal; the server of users and judges is named in the environment."""
    model = world / ("model-wide" if case.wide else "model")
    paths = [f"policy.model={model}", f"personas.path={world / 'aloe'}", f"personas.personachat_path={CHAT}"]
    return [*paths, *COUNTS, *(change.format(url=url) for change in case.changes)]


def rehearse(scale: str, case: Case, world: Path, run_dir: Path, more: Sequence[str] = ()) -> list[dict]:
    """Rows of notebook, minutes and requests a role, under `more` overrides. Failed: a notebook stopped, or
    left something out."""
    steps = []
    with ExitStack() as servers:
        parties = servers.enter_context(ScriptedServer(chinese_parties.answer))
        keys = [*settings(case, world, parties.url), *more]
        policy, sampler = config.load_config(scale, keys).policy, None
        if policy.kind == "vllm":
            sampler = SamplingVLLM(policy.model, full=policy.tuning == "full")
            servers.callback(sampler.close)
            keys.append(f"policy.servers=[{sampler.url}]")
        command = [sys.executable, "-m", "rlpa_lib", "reproduce", "--scale", scale, "--run-dir", str(run_dir)]
        command += [word for key in keys for word in ("--set", key)]
        command += [word for number in case.only for word in ("--only", number)]
        print(f"--- {run_dir}")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=_environment(parties.url, world), **pipes) as process:
            for line in process.stdout:
                print(line.rstrip(), flush=True)
                steps.append((*_read_progress(line), time.monotonic(), sampler.count if sampler else 0))
            said = process.stderr.read().strip()
    rows = _count(steps, run_dir)
    print(table(rows))
    if process.returncode:
        raise Failed(f"{run_dir}: exit code {process.returncode}: {(said.splitlines() or ['-'])[-1]}")
    check(run_dir, case)
    return rows


def _environment(url: str, world: Path) -> dict[str, str]:
    ours = {
        "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(world / "hub"), "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    return {key: value for key, value in os.environ.items() if key != OWNER_VARIABLE} | ours


def _read_progress(line: str) -> tuple[str, str]:
    """(notebook, what is told of it) of a line such as "[3/18] 02_simulated_user  running"."""
    _, _, rest = line.partition("] ")
    stem, _, what = rest.strip().partition(" ")
    return (stem, what.strip()) if line.startswith("[") else ("", "")


def _count(steps: list[tuple], run_dir: Path) -> list[dict]:
    """A row a finished notebook: its minutes, and what was sent in it, by role."""
    file, sent, began, rows = run_dir / "metrics" / "usage.jsonl", {}, {}, []
    for spent in storage.read_jsonl(file, appended=True) if file.exists() else ():
        sent.setdefault(spent.get("notebook"), Counter())[spent["role"]] += spent.get("sent", 0)
    for stem, what, when, sampled in steps:
        if what == "running":
            began[stem] = when, sampled
        elif stem in began:
            start, before = began[stem]
            own = {"sampler": sampled - before} if sampled else {}
            rows.append({"notebook": stem, "minutes": (when - start) / 60, **own, **sent.get(stem, {})})
    return rows


def table(rows: list[dict]) -> str:
    """The rows as text, a column a role."""
    roles = sorted({role for row in rows for role in row} - {"notebook", "minutes"})
    lines = [["notebook", "minutes", *roles]]
    totals = {role: sum(row.get(role, 0) for row in rows) for role in ("minutes", *roles)}
    for row in (*rows, {"notebook": "all", **totals}):
        asked = [str(row[role]) if row.get(role) else "-" for role in roles]
        lines.append([row["notebook"], f"{row['minutes']:.1f}", *asked])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines
    )


def check(run_dir: Path, case: Case) -> None:
    """Failed: a file is missing, a notebook was skipped, or the policy learned from malformed replies."""
    missing = [file for number, file in MADE.items() if number in (case.only or MADE)]
    missing = [file for file in missing if not (run_dir / file).is_file()]
    facts = json.loads((run_dir / "record.json").read_text(encoding="utf-8"))
    if missing or facts.get("skipped_notebooks"):
        raise Failed(f"{run_dir}: missing {missing}, skipped {facts.get('skipped_notebooks')}")
    for row in storage.read_jsonl(run_dir / "metrics" / "ppo.jsonl"):
        if not (row["format_rate"] > 0.5 and row["reward_total"] > 0 and row["grad_norm_policy"] > 0):
            raise Failed(f"{run_dir}: update {row['update']} learned from nothing: {row}")


def find_missing() -> str:
    """Why there is nothing to rehearse with; "" where the data are there."""
    missing = [str(path) for path in (ALOE / "profile.jsonl", CHAT) if not path.is_file()]
    told = "name them in RLPA_ALOE (the folder) and RLPA_PERSONACHAT (the CSV file)"
    return f"skipped: not there: {', '.join(missing)}; {told}" if missing else ""


def main() -> int:
    """The command line. Exit code 0: rehearsed, or skipped for want of data; 1: stopped."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--scale", choices=[*CASES], default="paper")
    parser.add_argument("--case", action="append", help="default: all of the scale")
    told = "of a case's notebooks these alone"
    parser.add_argument("--only", action="append", metavar="NUMBER", help=told)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one more setting")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "runs" / "rehearsal")
    options = parser.parse_args()
    if reason := find_missing():
        print(reason)
        return 0
    disable_progress_bar()
    folder, started = (options.folder / options.scale).absolute(), time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    make_world(folder / "world")
    for name in options.case or CASES[options.scale]:
        case = CASES[options.scale][name]
        case = replace(case, only=tuple(options.only or case.only))
        try:
            rehearse(options.scale, case, folder / "world", folder / name, options.set)
        except Failed as error:
            print(f"rehearsal stopped: {error}", file=sys.stderr)
            return 1
    print(f"rehearsed in {(time.monotonic() - started) / 60:.1f} minutes: {folder}/*/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
