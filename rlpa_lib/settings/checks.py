"""Settings that are well formed one by one and cannot work together."""

from __future__ import annotations

from collections.abc import Iterator

from rlpa_lib.settings.kinds import EVALUATORS, JUDGES, METHODS, POLICIES, SOURCES, USERS
from rlpa_lib.settings.schema import Config


def problems(cfg: Config) -> Iterator[tuple[str, str]]:
    """Dotted key and reason of every combination that cannot work."""
    ppo, rollout = cfg.ppo, cfg.rollout
    if ppo.turn_discount > 0 and rollout.continuation == "best":
        yield (
            "rollout.continuation",
            "best biases the return when ppo.turn_discount > 0; use independent or random, or ppo.turn_discount=0",
        )
    if ppo.turn_discount > 0 and ppo.update_every == "turn":
        yield "ppo.update_every", "must be dialogue when ppo.turn_discount > 0 (returns span the turns)"
    samples = rollout.users * rollout.samples
    if samples % ppo.minibatch:
        yield "ppo.minibatch", f"{ppo.minibatch} does not divide rollout.users x rollout.samples = {samples}"
    if ppo.micro_batch and ppo.minibatch % ppo.micro_batch:
        yield "ppo.micro_batch", f"{ppo.micro_batch} does not divide ppo.minibatch = {ppo.minibatch}"
    if ppo.packing == "tree" and (ppo.micro_batch or ppo.minibatch) % rollout.samples:
        key = "micro_batch" if ppo.micro_batch else "minibatch"
        yield (
            f"ppo.{key}",
            f"with ppo.packing=tree it must be a multiple of rollout.samples = {rollout.samples}",
        )
    yield from _baseline_problems(cfg)
    yield from _data_problems(cfg)
    yield from _analysis_problems(cfg)


def _baseline_problems(cfg: Config) -> Iterator[tuple[str, str]]:
    for name, size in (
        ("sft", cfg.sft.batch), ("dpo", cfg.dpo.batch), ("grpo", cfg.grpo.batch * cfg.grpo.samples),
    ):
        section = getattr(cfg, name)
        if section.micro_batch and size % section.micro_batch:
            yield f"{name}.micro_batch", f"{section.micro_batch} does not divide the {size} samples of a step"
        if name != "grpo" and len(set(section.variants)) != len(section.variants):
            yield f"{name}.variants", "holds a name twice"
    moments = cfg.grpo.users * cfg.rollout.turns
    if moments % cfg.grpo.batch:
        yield "grpo.batch", f"{cfg.grpo.batch} does not divide grpo.users x rollout.turns = {moments}"


def _data_problems(cfg: Config) -> Iterator[tuple[str, str]]:
    if cfg.personas.train_users is not None and cfg.personas.train_users < cfg.rollout.users:
        yield (
            "personas.train_users",
            f"{cfg.personas.train_users} is fewer than rollout.users = {cfg.rollout.users}",
        )
    for key in ("users", "extended_users"):
        wanted = getattr(cfg.evaluation, key) or 0
        if wanted > cfg.personas.test_users:
            yield (
                f"evaluation.{key}",
                f"{wanted} is more than personas.test_users = {cfg.personas.test_users}",
            )
    for name in cfg.evaluation.methods:
        lender = METHODS[name].borrows
        if lender and lender not in cfg.evaluation.methods:
            yield (
                "evaluation.methods",
                f"{name} takes the profiles that {lender} has written; name {lender} too",
            )
    for role, table in (("user", USERS), ("judge", JUDGES), ("evaluator", EVALUATORS)):
        section = getattr(cfg, role)
        if not table[section.kind].scripted and section.model is None:
            yield f"{role}.model", f"is needed when {role}.kind is {section.kind}"
    if cfg.personas.conversion == "llm" and cfg.user.model is None:
        yield "user.model", "is needed when personas.conversion is llm"
    policy = POLICIES[cfg.policy.kind]
    if not policy.trainable and all(METHODS[name].trained for name in cfg.evaluation.methods):
        why = f"all of these rows need weights that are trained here, which a policy.kind={cfg.policy.kind} has not; name base, say"
        yield "evaluation.methods", why
    if policy.needs_servers and not cfg.policy.servers:
        why = f"is needed when policy.kind is {cfg.policy.kind} (python -m rlpa_lib.agents.vllm_server serve starts one)"
        yield "policy.servers", why
    if policy.needs_servers and cfg.policy.tuning == "full":
        yield (
            "policy.tuning",
            f"full weights cannot be swapped into a running server; use lora with policy.kind={cfg.policy.kind}",
        )
    if cfg.run.prompt_set not in USERS[cfg.user.kind].prompt_sets:
        label = USERS[cfg.user.kind].label
        yield "run.prompt_set", f"{cfg.run.prompt_set} needs user.kind=llm (the {label} speaks English)"
    if cfg.policy.warm_up and not (SOURCES[cfg.personas.source].scripted and cfg.run.prompt_set == "mini"):
        yield (
            "policy.warm_up",
            "its scripted replies belong to the built-in personas and prompt set mini; give policy.adapter an SFT adapter instead",
        )
    for key in ("methods", "benchmarks"):
        names = getattr(cfg.evaluation, key)
        if len(set(names)) != len(names):
            yield f"evaluation.{key}", "holds a name twice"


def _analysis_problems(cfg: Config) -> Iterator[tuple[str, str]]:
    for name in ("conflict", "long_term", "difficult"):
        methods = getattr(cfg, name).methods
        if len(set(methods)) != len(methods):
            yield f"{name}.methods", "holds a name twice"
    if cfg.conflict.at > cfg.conflict.turns:
        yield (
            "conflict.at",
            f"{cfg.conflict.at} is behind the last turn, conflict.turns = {cfg.conflict.turns}",
        )
