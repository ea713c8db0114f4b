"""What the tests of SFT, DPO and GRPO share: small conversations, users and judges that need no language,
settings for a random model."""

import torch
from conftest import byte_tokenizer, random_model
from safetensors.torch import load_file

from rlpa_lib import runs
from rlpa_lib.dialogue.dialogue import Utterance
from rlpa_lib.dialogue.judging import Verdict
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile
from rlpa_lib.methods import grpo, trainers
from rlpa_lib.methods.preferences import Conversation, Exchange
from rlpa_lib.settings.config import Config
from rlpa_lib.settings.kinds import REWARD_CRITERIA

SYSTEM = "Be kind."
PERSONAS = [Persona(f"p{i}", "", "", Profile((("Age", str(20 + i)), ("Location", "Rome")))) for i in range(5)]


def talk(*chosen, name="a"):
    turns = tuple(
        Exchange(f"u{name}{k}", f"good {name}{k}", f"bad {name}{k}", side)
        for k, side in enumerate(chosen, start=1)
    )
    return Conversation("", "", turns)


TALKS = [
    talk(*sides, name=name)
    for name, sides in zip(
        "abcdef", [("preferred", "rejected")] * 3 + [("rejected", "preferred")] * 3, strict=True
    )
]


def settings(**changes):
    tree = {
        "policy": {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.1},
        "rollout": {"users": 2, "turns": 2, "samples": 4, "max_new_tokens": 8, "max_prompt_tokens": 400},
        "ppo": {"minibatch": 4},
        "sft": {"batch": 2, "lr": 1e-2, "checkpoint_every": 2},
        "dpo": {"batch": 4, "micro_batch": 2, "lr": 1e-2, "checkpoint_every": 1},
        "grpo": {
            "rounds": 2, "users": 2, "batch": 2, "samples": 4, "micro_batch": 4, "lr": 1e-2,
            "checkpoint_every": 1,
        },
        "run": {"tensorboard": False},
    }
    for section, values in changes.items():
        tree.setdefault(section, {}).update(values)
    return Config.model_validate(tree)


def open_run(folder, cfg=None):
    torch.set_num_threads(1)
    return runs.claim(cfg or settings(), 5, folder, "test")


def quiet(_):
    pass


def weights(folder, name):
    return load_file(folder / f"adapters/{name}/adapter_model.safetensors")


def same(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "step_time")} for row in rows]


class VowelJudge:
    """Likes responses by how their characters fall, so that samples of a random model get different
    rewards."""

    def matches(self, pairs):
        return [() for _ in pairs]

    def responses(self, cases):
        return [
            Verdict(
                dict.fromkeys(REWARD_CRITERIA, sum(map(ord, r.response)) % 2 == 0),
                dict.fromkeys(REWARD_CRITERIA, ""),
            )
            for _, r in cases
        ]


class EchoUser:
    """Says hello, then its age at every turn."""

    def reply(self, personas, dialogues):
        said = [Utterance(f"I am {persona.profile.get('Age')}.", ("Age",)) for persona in personas]
        return [
            utterance if d.turns else Utterance("Hello") for utterance, d in zip(said, dialogues, strict=True)
        ]


def train(method, run):
    """Train a small random model by one of the three methods."""
    model, tokenizer = random_model(), byte_tokenizer()
    if method == "grpo":
        return grpo.train_grpo(run, model, tokenizer, EchoUser(), VowelJudge(), PERSONAS, say=quiet)
    return getattr(trainers, f"train_{method}")(run, model, tokenizer, TALKS, say=quiet)
