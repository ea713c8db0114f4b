"""The parties of a run, made from its settings (kinds: settings.kinds): personas, users, judges, the policy.

Those behind a server need the run (or its directory) for response cache, budget and usage record.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlpa_lib.agents.asking import JudgePrompt, RunFolder, load_prompt, open_endpoint
from rlpa_lib.agents.users import Shift, ShiftingUser
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.judging import EvaluationJudge, Judge
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.protocols import InformedUser, Policy
from rlpa_lib.dialogue.reveal import RevealJudge
from rlpa_lib.personas import sources
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import EVALUATORS, JUDGES, POLICIES, SOURCES, USERS, resolve
from rlpa_lib.settings.schema import Conflict, Difficult, LongTerm

TEN_SLOTS, FREE_SLOTS = "convert", "convert_free"  # prompts


def load_people(cfg: Config, split: str, n: int | None, seed: int, run: RunFolder = None) -> list[Persona]:
    """`sources.load_personas`, slots filled by a language model if `personas.conversion` says so (C.2)."""
    loaded, prompt = sources.load_personas(cfg.personas, split, n, seed), pick_conversion(cfg, split)
    if prompt is None:
        return loaded
    from rlpa_lib.agents import conversion

    language = cfg.personas.language
    words = JudgePrompt.read(prompt_files.load_prompt(prompt, language, cfg.run.prompt_dir))
    options = {"language": language, "max_tokens": max(1024, cfg.user.max_tokens)}
    asked = open_endpoint(cfg, "converter", run), words
    if prompt == TEN_SLOTS:
        texts = [(p.description, p.personality) for p in loaded]
        profiles = conversion.convert(texts, *asked, **options)
    else:  # rules have counted the facts: one a sentence
        counted = [(p.description, len(p.profile)) for p in loaded]
        profiles = conversion.convert_freely(counted, *asked, **options)
    return [replace(persona, profile=profile) for persona, profile in zip(loaded, profiles, strict=True)]


def pick_conversion(cfg: Config, split: str) -> str | None:
    """The prompt by which a model fills the slots of a split; None where rules or the persona's own do."""
    given, source = cfg.personas, SOURCES[cfg.personas.source]
    if given.conversion == "rules" or source.scripted:
        return None
    if not source.fills_ten_slots:
        return FREE_SLOTS
    if split != "extended":
        return TEN_SLOTS
    # without a PersonaChat file these are the built-in personas, which come with slots, in English
    return FREE_SLOTS if given.personachat_path or given.language != "en" else None


def load_analysis_people(
    cfg: Config, section: Conflict | LongTerm | Difficult, seed: int, run: RunFolder = None
) -> list[Persona]:
    """The Vanilla users of an analysis: the first of those of the main evaluation."""
    n = min(section.users or cfg.evaluation.users, cfg.evaluation.users)
    return load_people(cfg, "vanilla", n, seed, run)


def make_user(
    cfg: Config, split: str, seed: int, run: RunFolder = None, manner: str = "willing"
) -> InformedUser:
    """The user of a split. `manner`: how far it cooperates, "willing" or one of `difficult.manners`."""
    return resolve(USERS[cfg.user.kind].make)(cfg, split, seed, run, manner)


def make_shifting_user(
    cfg: Config, shifts: Mapping[str, Shift], seed: int, run: RunFolder = None
) -> ShiftingUser:
    """The test user whose persona changes at turn `conflict.at` (section 5.2)."""
    user = make_user(cfg, "vanilla", seed, run)
    return ShiftingUser(user, cfg.conflict.at, shifts, load_prompt(cfg, "shift_note"))


def make_reward_judge(cfg: Config, run: RunFolder = None, **options: Any) -> Judge:
    """The judge behind training rewards (sections 3.2 and 3.3). `defended=False` pastes texts in unquoted, to
    measure what that costs; `failure_limit` replaces `run.max_judge_failure_rate`."""
    return resolve(JUDGES[cfg.judge.kind].make)(cfg, run, **options)


def make_reveal_judge(cfg: Config, run: RunFolder = None) -> RevealJudge:
    """Judges what a user's words have revealed (section 5.3): rules, or the model that judges profiles."""
    make = JUDGES[cfg.judge.kind].make_reveal
    if not make:
        raise InputError(f"judge.kind: {cfg.judge.kind} does not say what a user has revealed")
    return resolve(make)(cfg, run)


def make_evaluation_judge(cfg: Config, run: RunFolder = None, **options: Any) -> EvaluationJudge:
    """The judge behind evaluation scores (appendix C.3); options as in `make_reward_judge`."""
    return resolve(EVALUATORS[cfg.evaluator.kind].make)(cfg, run, **options)


def make_policy(cfg: Config, run: RunFolder = None, *, adapter: Path | None = None) -> Policy:
    """The policy of an evaluation row; `adapter`: LoRA folder. InputError: the policy cannot take one."""
    return resolve(POLICIES[cfg.policy.kind].make)(cfg, run, adapter)
