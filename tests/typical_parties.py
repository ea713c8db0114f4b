"""Users, judges and a policy behind one local server, whose texts have a chat model's usual lengths: what
pilots of the plan are made with.

`python tests/typical_parties.py` serves them until it is stopped, and prints the settings of a run that asks
them.
"""

from __future__ import annotations

import json
import re
import threading

from scripted_server import ScriptedServer

from rlpa_lib.dialogue.judging import DIMENSIONS
from rlpa_lib.dialogue.profile import SLOTS, Profile, render_reply
from rlpa_lib.runs.storage import hash_json
from rlpa_lib.settings.kinds import REWARD_CRITERIA

BYTES = 3.8  # of a token
FIELDS = tuple(criterion.field for criterion in REWARD_CRITERIA.values())
ROLES = ("user", "judge", "evaluator", "policy")
CONVERTED = (
    "34|female|rock climbing|a degree in nursing|talkative|pediatric nurse|single|a twin sister|Lisbon|globes"
    .split("|")
)


def say(tokens, own):
    """So many tokens of text, which other questions get in other words."""
    return f"{own} {'word ' * tokens}"[: round(tokens * BYTES)].rstrip()


def answer_structured(name, body, own):
    """The object that a user, a judge, a converter or a rewriter gives."""
    sizes = [int(n) for n in re.findall(r"\d+", name)]
    if name == "UserMessage":
        notes = json.loads(body["messages"][-1]["content"])
        untold = [n for n in range(1, 11) if n not in notes["already_told"]]
        return {"message": say(25, own), "revealed": untold[: notes["new_items_allowed"]]}
    if name.startswith("Pairs"):
        return {"pairs": [{"inferred": i, "true": i} for i in range(1, min(sizes) + 1)]}
    if name.startswith("Revealed"):
        return {"revealed": list(range(1, sizes[0] + 1))}
    if name.startswith("Rewritten"):
        return {"paraphrased": [say(5, own)] * sizes[0], "altered": [say(5, own)] * sizes[0]}
    if name == "Claims":  # two of each utterance after "Hello"
        one = {"utterance": 2, "claim": say(8, own), "against_persona": 0, "against_earlier": 0}
        return {"claims": [one] * 2 * (body["messages"][1]["content"].count('"number":') - 1)}
    if name == "TenSlots":
        keys = [slot.lower().replace(" ", "_") for slot in SLOTS]
        return {
            key: {"value": f"{value}, {own}", "stated": True}
            for key, value in zip(keys, CONVERTED, strict=True)
        }
    if name.startswith("FreeSlots"):
        return {f"fact_{i}": {"slot": SLOTS[i % 10], "value": say(5, own)} for i in range(1, sizes[0] + 1)}
    marks = {field: {"reason": say(18, own), "mark": 1} for field in FIELDS}
    return {**marks, **dict.fromkeys(DIMENSIONS, 0)}


def answer(body):
    """What the server says to a request, with its count of tokens."""
    name = body.get("response_format", {}).get("json_schema", {}).get("name", "")
    messages = body["messages"]
    own = hash_json([body["model"], messages, body.get("seed")])[:8]
    if name:
        text = json.dumps(answer_structured(name, body, own))
    elif "<profile>" in messages[0]["content"]:  # a policy that notes three items in two turns
        turn = sum(m["role"] == "user" for m in messages)
        known = tuple((slot, say(5, own)) for slot in SLOTS[: min(10, 3 * (turn - 1) // 2)])
        text = render_reply(Profile(known), say(60, own))
    else:
        text = (
            f"Thought: {say(40, own)}\nReply: {say(60, own)}"
            if "Thought:" in messages[0]["content"]
            else say(60, own)
        )
    prompt = sum(len(m["content"].encode()) / BYTES + 5 for m in messages)
    return {
        "content": text,
        "usage": {"prompt_tokens": round(prompt), "completion_tokens": round(len(text) / BYTES)},
    }


def settings(url, *, local=False):
    """Overrides of a run whose every party is behind this server, its policy too unless it is `local`."""
    roles = ROLES[:3] if local else ROLES
    keys = [f"{role}.{key}" for role in roles for key in ("model=m", f"base_url={url}")]
    return [
        *keys,
        *(f"{role}.kind=llm" for role in ROLES[:3]),
        *([] if local else ["policy.kind=endpoint", "run.prompt_set=en"]),
    ]


if __name__ == "__main__":
    with ScriptedServer(answer) as server:
        print(*settings(server.url), sep="\n", flush=True)
        threading.Event().wait()
