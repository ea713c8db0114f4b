"""What there is to choose from, under the names that params files hold. One entry tells everything about a
kind, and no other room asks for its name. `make` names the function that makes the thing, as
"room.module:function"; `resolve` imports it when a run needs it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from typing import Any


def resolve(make: str) -> Callable[..., Any]:
    """The function that an entry's `make` names."""
    return resolve_name(f"rlpa_lib.{make}")


@dataclass(frozen=True)
class Method:
    """A row of tables 1, 4 and 5. `make(parts)`: a `methods.table.Method` of `methods.table.Parts`."""

    label: str  # what the tables call it
    make: str
    in_paper: bool = False  # whether the paper has this row for its own backbone
    adapter: str = ""  # folder below adapters/ or models/ with the row's weights; "" = untrained
    notebook: str = ""  # which trains those weights
    writes_profile: bool = False
    control: bool = False  # a floor, a ceiling or a borrower, no rival
    scripted: str = ""  # makes the row without any model, where the evaluator reads a scripted world
    calls: int = 1  # of the policy for one answer
    needs_encoder: bool = False  # `evaluation.encoder`, to search among sentences
    borrows: str = ""  # the row whose profiles it is given
    holes: tuple[tuple[str, tuple[str, ...]], ...] = ()  # its prompts with holes, and what fills them

    @property
    def trained(self) -> bool:
        """Whether the row needs weights that this project trains."""
        return bool(self.adapter)


# The paper's rows in the paper's order, then ours.
METHODS: dict[str, Method] = {
    "base": Method("Base", "methods.prompting:make_base", in_paper=True),
    "reminder": Method("Reminder", "methods.prompting:make_reminder", in_paper=True),
    "self_critic": Method("Self-Critic", "methods.prompting:make_self_critic", in_paper=True, calls=3),
    "cot": Method("CoT", "methods.prompting:make_cot", in_paper=True),
    "rag": Method(
        "RAG(Top-5)", "methods.prompting:make_rag", in_paper=True, needs_encoder=True,
        holes=(("rag", ("context", "message")), ("rag_exchange", ("number", "user", "assistant"))),
    ),
    "sft": Method("SFT", "methods.prompting:make_base", in_paper=True, adapter="sft", notebook="11_sft"),
    "dpo": Method("DPO", "methods.prompting:make_base", in_paper=True, adapter="dpo", notebook="12_dpo"),
    "rlpa": Method(
        "RLPA", "methods.prompting:make_rlpa", in_paper=True, adapter="ppo", notebook="20_ppo",
        writes_profile=True,
    ),
    "rlpa_prompting": Method(
        "RLPA prompting (untrained)", "methods.prompting:make_rlpa", writes_profile=True
    ),
    "grpo": Method(
        "GRPO", "methods.prompting:make_rlpa", adapter="grpo", notebook="22_grpo", writes_profile=True
    ),
    "sft_aloe": Method(
        "SFT (ALOE's scripts)", "methods.prompting:make_base", adapter="sft_aloe", notebook="11_sft"
    ),
    "dpo_aloe": Method(
        "DPO (ALOE's scripts)", "methods.prompting:make_base", adapter="dpo_aloe", notebook="12_dpo"
    ),
    "style_only_empty": Method(
        "RLPA, profile emptied", "methods.controls:make_style_only", adapter="ppo", notebook="20_ppo",
        writes_profile=True, control=True,
    ),
    "style_only_other": Method(
        "RLPA, another user's profile", "methods.controls:make_style_only", adapter="ppo", notebook="20_ppo",
        writes_profile=True, control=True, borrows="rlpa",
    ),
    "random": Method(
        "random control", "methods.controls:make_random", control=True,
        scripted="methods.controls:make_scripted_random",
    ),
    "oracle": Method(
        "oracle control", "methods.controls:make_oracle", control=True,
        scripted="methods.controls:make_scripted_oracle", holes=(("oracle", ("profile",)),),
    ),
}
PROMPTING = tuple(name for name, method in METHODS.items() if not method.trained and not method.control)
WITH_PROFILE = tuple(name for name, method in METHODS.items() if method.writes_profile)
# rows that write a profile of their own
WRITERS = tuple(name for name in WITH_PROFILE if not METHODS[name].control)


@dataclass(frozen=True)
class Supply:
    """How many users a split has in all, and how that came about (a clause for messages and the record)."""

    n: int
    how: str
    more: bool = False  # a generator, which makes as many as it is asked for


@dataclass(frozen=True)
class Source:
    """Where personas come from. `make(cfg.personas, split, n, seed)` gives the personas of a split,
    `count(cfg.personas, split)` the `Supply` of one."""

    make: str
    count: str
    needs_path: bool = True
    scripted: bool = False  # a world of rules, whose users the miniature's assistants understand
    fills_ten_slots: bool = False  # from prose, by rules or by a model (`personas.conversion`)
    has_conversations: bool = False  # whether preference conversations may lie beside the personas
    one_test_set: bool = False  # one test set stands for both benchmarks


SOURCES: dict[str, Source] = {
    "builtin": Source(
        "mini.world:load_personas", "mini.world:count_personas", needs_path=False, scripted=True
    ),
    "aloe": Source(
        "personas.aloe:load_aloe", "personas.aloe:count_aloe", fills_ten_slots=True, has_conversations=True
    ),
    "personachat": Source(
        "personas.sources:load_personachat", "personas.sources:count_personachat", one_test_set=True
    ),
}


@dataclass(frozen=True)
class Party:
    """A user or a judge. `scripted`: made of rules, so it costs nothing and needs no server."""

    make: str
    label: str = ""  # what tables call it; "" = the name of its model
    scripted: bool = False
    prompt_sets: tuple[str, ...] = ("mini", "en", "zh")  # the prompt sets whose language it speaks
    make_reveal: str = ""  # of a judge: make(cfg, run) of who reads what a user has revealed


# make(cfg, split, seed, run, manner)
USERS: dict[str, Party] = {
    "agenda": Party("mini.world:make_user", "agenda user", scripted=True, prompt_sets=("mini", "en")),
    "llm": Party("agents.users:make_user"),
}
# make(cfg, run, defended=..., failure_limit=...), the same for evaluators
JUDGES: dict[str, Party] = {
    "rule": Party(
        "mini.world:make_reward_judge", "rule judge", scripted=True,
        make_reveal="mini.world:make_reveal_judge",
    ),
    "llm": Party("agents.llm_judges:make_reward_judge", make_reveal="agents.llm_judges:make_reveal_judge"),
}
EVALUATORS: dict[str, Party] = {
    "rule": Party("mini.world:make_evaluation_judge", "rule judge", scripted=True),
    "llm": Party("agents.llm_judges:make_evaluation_judge"),
}


@dataclass(frozen=True)
class PolicyKind:
    """Where the policy is sampled. `make(cfg, run, adapter)` gives the policy of a row; `measure(cfg)` says
    what `auto` means on this machine."""

    make: str
    measure: str = "agents.speed:measure"
    trainable: bool = True
    in_process: bool = False
    needs_servers: bool = False  # vLLM: `policy.servers`, or servers that the run starts itself


POLICIES: dict[str, PolicyKind] = {
    "local": PolicyKind("agents.placement:make_policy", in_process=True),
    "endpoint": PolicyKind(
        "agents.endpoint_policy:make_policy", "agents.speed:measure_nothing", trainable=False
    ),
    "vllm": PolicyKind("agents.vllm_policy:make_policy", needs_servers=True),
}


@dataclass(frozen=True)
class Criterion:
    """One binary mark of a judge: the key of a language model's answer, and the question put to people."""

    field: str
    question: str


# Eq. 4: the marks whose product is the response reward. Tables 1, 4 and 5 do not depend on this list.
REWARD_CRITERIA: dict[str, Criterion] = {
    "N": Criterion("naturalness", "Natural: good language that a person could write."),
    "R": Criterion(
        "relevance",
        "Relevant: fits this user, as far as the inferred profile knows them, and what was just said.",
    ),
    "L": Criterion(
        "logic",
        "Logical: contradicts neither the conversation nor the profile, does not ask for what was told.",
    ),
    "G": Criterion("engagement", "Engaging: keeps the conversation going, without flattery."),
    "F": Criterion("informativeness", "Informative: says something of content."),
}
# Appendix C.3: the marks whose product is AL(k).
EVALUATION_CRITERIA: dict[str, Criterion] = {name: REWARD_CRITERIA[name] for name in "NRLGF"}


@dataclass(frozen=True)
class Ablation:
    """A training that is compared with the one with both rewards (section 5.1): what tables call it, and what
    it changes, as overrides of the run's settings."""

    label: str
    changes: Callable[[Any], tuple[str, ...]]


def _set(*overrides: str) -> Callable[[Any], tuple[str, ...]]:
    return lambda cfg: overrides


def _set_samples(n: int, cfg: Any) -> tuple[str, ...]:
    """N samples a prompt; the minibatch is scaled along, so that all trainings take equally many steps."""
    sizes = {"minibatch": cfg.ppo.minibatch, "micro_batch": cfg.ppo.micro_batch}
    scaled = {key: max(1, size * n // cfg.rollout.samples) for key, size in sizes.items() if size}
    return (f"rollout.samples={n}", *(f"ppo.{key}={size}" for key, size in scaled.items()))


BOTH_REWARDS = "PRR"
ABLATIONS: dict[str, Ablation] = {
    "PR": Ablation("RLPA w/ PR", _set("ppo.reward_parts=PR")),  # the labels of table 2
    "RR": Ablation("RLPA w/ RR", _set("ppo.reward_parts=RR")),
    "format": Ablation("format reward alone", _set("ppo.reward_parts=format")),
    **{
        f"without_{c}": Ablation(f"RLPA, criterion {c} not rewarded", _set(f"ppo.reward_parts=PRR-{c}"))
        for c in REWARD_CRITERIA
    },
    "best": Ablation("the best of N continues", _set("rollout.continuation=best")),
    "random": Ablation("one of N, drawn, continues", _set("rollout.continuation=random")),
    "bandit": Ablation("each turn by itself", _set(
        "ppo.turn_discount=0.0", "ppo.update_every=turn", "rollout.continuation=best", "ppo.value_clip=0.2",
    )),
    "mdp": Ablation("credit across turns", _set(
        "ppo.turn_discount=0.9", "ppo.update_every=dialogue", "rollout.continuation=random",
        "ppo.value_clip=null",
    )),
    **{f"samples_{n}": Ablation(f"N = {n}", partial(_set_samples, n)) for n in (1, 2, 4, 8)},
    **{
        f"history_{which}": Ablation(f"history with profiles: {which}", _set(f"ppo.history_profiles={which}"))
        for which in ("latest", "all", "none")
    },
}
