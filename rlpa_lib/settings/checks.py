"""Settings that are well formed one by one and cannot work together."""

from __future__ import annotations

from collections.abc import Iterator

from rlpa_lib.settings.kinds import EVALUATORS, JUDGES, METHODS, POLICIES, SOURCES, USERS
from rlpa_lib.settings.schema import Config

Problem = tuple[str, str]  # dotted key, reason


def problems(cfg: Config) -> Iterator[Problem]:
    """Every combination that cannot work."""
    yield from _training_problems(cfg)
    yield from _baseline_problems(cfg)
    yield from _data_problems(cfg)
    yield from _party_problems(cfg)
    lists = [
        ("evaluation", "methods"),
        ("evaluation", "benchmarks"),
        ("sft", "variants"),
        ("dpo", "variants"),
    ]
    lists += [(section, "methods") for section in ("conflict", "long_term", "difficult")]
    for section, key in lists:
        names = getattr(getattr(cfg, section), key)
        if len(set(names)) != len(names):
            yield f"{section}.{key}", "holds a name twice"
    if cfg.conflict.at > (turns := cfg.conflict.turns):
        yield "conflict.at", f"{cfg.conflict.at} is behind the last turn, conflict.turns = {turns}"


def _training_problems(cfg: Config) -> Iterator[Problem]:
    ppo, rollout = cfg.ppo, cfg.rollout
    if ppo.turn_discount > 0 and rollout.continuation == "best":
        why = "best biases the return when ppo.turn_discount > 0"
        yield "rollout.continuation", f"{why}; use independent or random, or ppo.turn_discount=0"
    if ppo.turn_discount > 0 and ppo.update_every == "turn":
        yield "ppo.update_every", "must be dialogue when ppo.turn_discount > 0 (returns span the turns)"
    samples = rollout.users * rollout.samples
    if samples % ppo.minibatch:
        yield "ppo.minibatch", f"{ppo.minibatch} does not divide rollout.users x rollout.samples = {samples}"
    if ppo.micro_batch and ppo.minibatch % ppo.micro_batch:
        yield "ppo.micro_batch", f"{ppo.micro_batch} does not divide ppo.minibatch = {ppo.minibatch}"
    if ppo.packing == "tree" and (ppo.micro_batch or ppo.minibatch) % rollout.samples:
        why = f"with ppo.packing=tree it must be a multiple of rollout.samples = {rollout.samples}"
        yield f"ppo.{'micro_batch' if ppo.micro_batch else 'minibatch'}", why


def _baseline_problems(cfg: Config) -> Iterator[Problem]:
    for name, samples in (("sft", 1), ("dpo", 1), ("grpo", cfg.grpo.samples)):
        section = getattr(cfg, name)
        size = section.batch * samples
        if section.micro_batch and size % section.micro_batch:
            yield f"{name}.micro_batch", f"{section.micro_batch} does not divide the {size} samples of a step"
    moments = cfg.grpo.users * cfg.rollout.turns
    if moments % cfg.grpo.batch:
        yield "grpo.batch", f"{cfg.grpo.batch} does not divide grpo.users x rollout.turns = {moments}"


def _data_problems(cfg: Config) -> Iterator[Problem]:
    personas, evaluation = cfg.personas, cfg.evaluation
    if personas.train_users is not None and personas.train_users < cfg.rollout.users:
        yield (
            "personas.train_users",
            f"{personas.train_users} is fewer than rollout.users = {cfg.rollout.users}",
        )
    for key in ("users", "extended_users"):
        if (wanted := getattr(evaluation, key) or 0) > personas.test_users:
            yield f"evaluation.{key}", f"{wanted} is more than personas.test_users = {personas.test_users}"
    for name in evaluation.methods:
        lender = METHODS[name].borrows
        if lender and lender not in evaluation.methods:
            yield (
                "evaluation.methods",
                f"{name} takes the profiles that {lender} has written; name {lender} too",
            )


def _party_problems(cfg: Config) -> Iterator[Problem]:
    for role, table in (("user", USERS), ("judge", JUDGES), ("evaluator", EVALUATORS)):
        section = getattr(cfg, role)
        if not table[section.kind].scripted and section.model is None:
            yield f"{role}.model", f"is needed when {role}.kind is {section.kind}"
    if cfg.personas.conversion == "llm" and cfg.user.model is None:
        yield "user.model", "is needed when personas.conversion is llm"
    kind, policy, user = cfg.policy.kind, POLICIES[cfg.policy.kind], USERS[cfg.user.kind]
    if not policy.trainable and all(METHODS[name].trained for name in cfg.evaluation.methods):
        why = f"all of these rows need weights that are trained here, which a policy.kind={kind} has not"
        yield "evaluation.methods", f"{why}; name base, say"
    if policy.needs_servers and not cfg.policy.servers:
        how = "python -m rlpa_lib.agents.vllm_server serve starts one"
        yield "policy.servers", f"is needed when policy.kind is {kind} ({how})"
    if policy.needs_servers and cfg.policy.tuning == "full":
        why = "full weights cannot be swapped into a running server"
        yield "policy.tuning", f"{why}; use lora with policy.kind={kind}"
    if cfg.run.prompt_set not in user.prompt_sets:
        why = f"{cfg.run.prompt_set} needs user.kind=llm (the {user.label} speaks English)"
        yield "run.prompt_set", why
    if cfg.policy.warm_up and not (SOURCES[cfg.personas.source].scripted and cfg.run.prompt_set == "mini"):
        why = "its scripted replies belong to the built-in personas and prompt set mini; "
        yield "policy.warm_up", why + "give policy.adapter an SFT adapter instead"
