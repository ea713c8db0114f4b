"""The parties of a run, made from its settings: personas, users, judges, the policy, and the policy's model and tokenizer.

Whatever sits behind a server needs the run (or its directory), where the response cache, the budget and the usage record live.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpa_lib.agents import smollm2
from rlpa_lib.agents.users import LLMUser, Shift, ShiftingUser
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.judging import EvaluationJudge, FailureTally, Judge
from rlpa_lib.dialogue.protocols import InformedUser, Policy
from rlpa_lib.dialogue.reveal import RevealJudge
from rlpa_lib.mini.judge import RuleEvaluationJudge, RuleJudge
from rlpa_lib.mini.manners import MANNERS
from rlpa_lib.mini.reveal import RuleRevealJudge
from rlpa_lib.mini.tiny import WEIGHTS
from rlpa_lib.mini.user import AgendaUser
from rlpa_lib.personas import sources
from rlpa_lib.runs import storage
from rlpa_lib.settings.config import Config, InputError

if TYPE_CHECKING:
    from rlpa_lib.agents.asking import JudgePrompt, Questions
    from rlpa_lib.agents.local_policy import LocalPolicy
    from rlpa_lib.client.endpoint import ChatEndpoint
    from rlpa_lib.runs.run import Run
    from rlpa_lib.settings.analyses import Conflict, Difficult, LongTerm


def load_people(cfg: Config, split: str, n: int | None, seed: int, run: Run | Path | None = None) -> list[sources.Persona]:
    """`sources.load_personas`, with ALOE's slots filled by a language model where `sources.conversion` says so (C.2)."""
    loaded = sources.load_personas(cfg.personas, split, n, seed)
    free_slots = split == "extended" or cfg.personas.source != "aloe"  # only ALOE's texts have the ten slots filled in
    if cfg.personas.conversion == "rules" or free_slots:
        return loaded
    from rlpa_lib.agents import conversion

    language = cfg.personas.language
    prompt = _judge_prompt(cfg, "convert", language)
    limit = max(1024, cfg.user.max_tokens)
    return conversion.convert_personas(loaded, _endpoint(cfg, "converter", run), prompt, language=language, max_tokens=limit)


def load_analysis_people(cfg: Config, section: Conflict | LongTerm | Difficult, seed: int, run: Run | Path | None = None) -> list[sources.Persona]:
    """The Vanilla users of an analysis: the first of those of the main evaluation."""
    return load_people(cfg, "vanilla", min(section.users or cfg.evaluation.users, cfg.evaluation.users), seed, run)


def make_user(cfg: Config, split: str, seed: int, run: Run | Path | None = None, manner: str = "willing") -> InformedUser:
    """The user of a split: the agenda user speaks to the test with sentence frames that no training user has. `manner`: how far it
    cooperates, one of mini.manners.MANNERS."""
    if cfg.user.kind == "agenda":
        return AgendaUser(seed, "user_train" if split == "train" else "user_test", MANNERS[manner])
    given = cfg.user
    told = "" if manner == "willing" else prompt_files.load_prompt(f"user_{manner}", _language(cfg), cfg.run.prompt_dir)
    return LLMUser(
        _endpoint(cfg, "user", run), seed, prompt_files.load_prompt("user", _language(cfg), cfg.run.prompt_dir),
        temperature=given.temperature, max_tokens=given.max_tokens, max_prompt_tokens=given.max_prompt_tokens, manner=told,
    )  # fmt: skip


def make_shifting_user(cfg: Config, shifts: Mapping[str, Shift], seed: int, run: Run | Path | None = None) -> ShiftingUser:
    """The test user whose persona changes at turn `conflict.at` (section 5.2)."""
    note = prompt_files.load_prompt("shift_note", _language(cfg), cfg.run.prompt_dir)
    return ShiftingUser(make_user(cfg, "vanilla", seed, run), cfg.conflict.at, shifts, note)


def make_reveal_judge(cfg: Config, run: Run | Path | None = None) -> RevealJudge:
    """Who reads a user's words and says what they have revealed (section 5.3): rules, or the model that judges profiles."""
    if cfg.judge.kind == "rule":
        return RuleRevealJudge()
    from rlpa_lib.agents.llm_judges import LLMRevealJudge

    return LLMRevealJudge(_questions(cfg, "judge", "profile_judge", "judge_revealed", run, defended=True, failure_limit=None))


def make_reward_judge(cfg: Config, run: Run | Path | None = None, *, defended: bool = True, failure_limit: float | None = None) -> Judge:
    """The source of training rewards (sections 3.2 and 3.3). `defended=False` pastes texts in without quotation, to measure what that
    costs; `failure_limit` takes the place of `run.max_judge_failure_rate`."""
    if cfg.judge.kind == "rule":
        return RuleJudge()
    from rlpa_lib.agents.llm_judges import LLMJudge

    holistic = cfg.judge.verdict == "holistic"
    options = {"defended": defended, "failure_limit": failure_limit}
    overlap = _questions(cfg, "judge", "profile_judge", "judge_overlap", run, **options)
    replies = _questions(cfg, "judge", "response_judge", "judge_holistic" if holistic else "judge_criteria", run, **options)
    return LLMJudge(overlap, replies, holistic=holistic)


def make_evaluation_judge(
    cfg: Config, run: Run | Path | None = None, *, defended: bool = True, failure_limit: float | None = None
) -> EvaluationJudge:
    """The source of evaluation scores (appendix C.3)."""
    if cfg.evaluator.kind == "rule":
        return RuleEvaluationJudge()
    from rlpa_lib.agents.llm_judges import LLMEvaluationJudge

    asked = _questions(cfg, "evaluator", "evaluator", "evaluator", run, defended=defended, failure_limit=failure_limit)
    return LLMEvaluationJudge(asked, whole_dialogue=cfg.evaluator.sees == "dialogue")


def make_policy(cfg: Config, run: Run | Path | None = None, *, adapter: Path | None = None) -> Policy:
    """The policy of an evaluation row; `adapter` is a folder with trained LoRA weights. InputError: an adapter for a model that is not here."""
    limits = {"max_prompt_tokens": cfg.rollout.max_prompt_tokens}
    if cfg.policy.kind == "endpoint":
        from rlpa_lib.agents.endpoint_policy import EndpointPolicy

        if adapter is not None:
            raise InputError("policy.kind: endpoint cannot take a trained adapter; use local or vllm")
        endpoint = _endpoint(cfg, "policy", run)
        return EndpointPolicy(endpoint, top_p=cfg.rollout.top_p, reasoning_tokens=cfg.policy.reasoning_tokens, **limits)
    if cfg.policy.kind == "vllm":
        return _vllm_policy(cfg, adapter, limits)
    model, tokenizer = load_model(cfg)
    model = attach_adapter(model, adapter) if adapter is not None else model
    return make_local_policy(model, tokenizer, cfg)


def make_local_policy(model, tokenizer, cfg: Config, *, portion: int | None = None, reuse: bool = False) -> LocalPolicy:
    """A model in this process as a policy, with the run's limits; `portion`, `reuse`: see `LocalPolicy`."""
    from rlpa_lib.agents.local_policy import LocalPolicy

    given = cfg.rollout
    return LocalPolicy(
        model, tokenizer, max_prompt_tokens=given.max_prompt_tokens, batch_prompts=given.micro_batch, portion=portion, reuse=reuse
    )


def _vllm_policy(cfg: Config, adapter: Path | None, limits: dict[str, int]) -> Policy:
    from rlpa_lib.agents.vllm_policy import VLLMPolicy

    sampler = VLLMPolicy(load_tokenizer(cfg), cfg.policy.servers, max_policy_lag=cfg.policy.max_policy_lag, **limits)
    if adapter is not None:
        sampler.load_adapter(adapter, 1)
    return sampler


def _language(cfg: Config) -> str:
    """The prompt set of parties behind a server: the miniature's own prompts are for its tiny model alone."""
    return "en" if cfg.run.prompt_set == "mini" else cfg.run.prompt_set


def _judge_prompt(cfg: Config, name: str, prompt_set: str) -> JudgePrompt:
    from rlpa_lib.agents.asking import JudgePrompt

    return JudgePrompt.read(prompt_files.load_prompt(name, prompt_set, cfg.run.prompt_dir))


def _endpoint(cfg: Config, role: str, run: Run | Path | None) -> ChatEndpoint:
    from rlpa_lib.client.roles import endpoint_for

    if run is None:
        raise InputError(f"{role}: a model behind a server needs the run: its cache, budget and usage record are kept there")
    return endpoint_for(cfg, role, run)


def _questions(
    cfg: Config, section: str, role: str, prompt: str, run: Run | Path | None, *, defended: bool, failure_limit: float | None
) -> Questions:
    from rlpa_lib.agents.asking import Questions

    given = getattr(cfg, section)
    endpoint = _endpoint(cfg, role, run)  # first: it says what is missing
    limit = cfg.run.max_judge_failure_rate if failure_limit is None else failure_limit
    return Questions(
        endpoint, _judge_prompt(cfg, prompt, _language(cfg)), FailureTally(limit), given.max_tokens, given.temperature,
        given.max_prompt_tokens, defended, _keeper(run, role if defended else f"{role}_undefended"),
    )  # fmt: skip


def _keeper(run: Run | Path, role: str) -> Callable[[list[dict]], None]:
    """Appends judgements to judgements/llm_<role>.jsonl; a repeated run appends them again, read from its cache."""
    file = Path(getattr(run, "dir", run)) / "judgements" / f"llm_{role}.jsonl"

    def keep(rows: list[dict]) -> None:
        for row in rows:
            storage.append_jsonl(file, row)

    return keep


def attach_adapter(model, folder: Path):
    """The model with a trained LoRA adapter (PEFT format). InputError: there is none in the folder."""
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: no adapter here; run 20_ppo with this run directory first")
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder).eval()


def _tokenizer_class(source: str):
    """AutoTokenizer goes by the model's architecture and would read our own pieces as Qwen2's byte pairs, letter by letter;
    a folder whose tokenizer says that its file is complete is taken at its word."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    settings = Path(source) / "tokenizer_config.json"
    complete = settings.is_file() and json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class") == "TokenizersBackend"
    return PreTrainedTokenizerFast if complete else AutoTokenizer


def _source(name: str) -> str:
    if name == "smollm2":
        return str(smollm2.unpack_model())
    return str(WEIGHTS) if name == "tiny" else str(Path(name).expanduser()) if name.startswith((".", "/", "~")) else name


def load_tokenizer(cfg: Config):
    """The tokenizer of `policy.model`. InputError as in `load_model`."""
    return _from_pretrained(cfg, lambda source: _tokenizer_class(source).from_pretrained(source, revision=cfg.policy.revision))


def load_model(cfg: Config):
    """(model, tokenizer) of `policy.model`: "tiny" ships with the package, "smollm2" comes from its own, a folder or a hub name goes
    to transformers. InputError: there is no such model, or it is behind an endpoint and has no weights here."""
    import torch
    from transformers import AutoModelForCausalLM

    options = {"revision": cfg.policy.revision, "dtype": getattr(torch, cfg.policy.dtype)}
    tokenizer = load_tokenizer(cfg)
    return _from_pretrained(cfg, lambda source: AutoModelForCausalLM.from_pretrained(source, **options)), tokenizer


def _from_pretrained(cfg: Config, load: Callable[[str], Any]) -> Any:
    name = cfg.policy.model
    if cfg.policy.kind == "endpoint":
        raise InputError(f"policy.kind: endpoint: {name!r} has no weights here, it can be evaluated but not trained; use local or vllm to train")
    try:
        return load(_source(name))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"policy.model: {name!r} could not be loaded: {reason}") from error


def hash_adapter(folder: Path) -> str:
    """SHA-256 of an adapter's weights, to tell one training from another."""
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
