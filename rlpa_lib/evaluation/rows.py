"""The rows of tables 1, 4 and 5: what each of them needs, and the method that plays it. One model in memory serves all local rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlpa_lib.agents import parties
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.judging import EvaluationJudge, Judge
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.protocols import Policy, SimulatedUser
from rlpa_lib.evaluation import scoring
from rlpa_lib.methods.controls import Lent, MisdirectedAnswers, OracleControl, PromptedOracle, RandomControl, StyleOnly, made_for_somebody, no_profile
from rlpa_lib.methods.prompting import Method, Prompted, Retrieval, SelfCritic
from rlpa_lib.methods.retrieval import SentenceEncoder, load_encoder
from rlpa_lib.runs import storage
from rlpa_lib.runs.run import Run
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import TRAINED, WITH_PROFILE

# Rows whose adapter has another name, and the notebooks that train them.
ADAPTERS = {"rlpa": "ppo", "style_only_empty": "ppo", "style_only_other": "ppo"}
NOTEBOOKS = {"ppo": "20_ppo", "sft": "11_sft", "sft_aloe": "11_sft", "dpo": "12_dpo", "dpo_aloe": "12_dpo", "grpo": "22_grpo"}
PORTION = 4096  # prompt tokens that pass a model on a CPU at once: prompts of 300 tokens took 1.5 x the time in one batch of 74


@dataclass(frozen=True)
class Row:
    """One row: a method, on the run's policy or on a model behind an endpoint of its own (`comparator`, named as in the settings).
    `weights` names another adapter than the method's own, an ablation's for example."""

    method: str
    comparator: str = ""
    weights: str = ""

    @property
    def name(self) -> str:
        """The row's key in files and tables: "rlpa", "self_critic@GPT-4o", or the name of other weights."""
        if self.weights:
            return self.weights
        return f"{self.method}@{self.comparator}" if self.comparator else self.method

    @property
    def adapter(self) -> str:
        """The folder below adapters/ with the row's weights; "" for the base model."""
        return self.weights or (ADAPTERS.get(self.method, self.method) if self.method in TRAINED else "")


def list_rows(cfg: Config) -> list[Row]:
    """The rows of a run in the order in which they are played: untrained ones first, borrowers after those they borrow from. Rows with
    trained weights are left out ("not run") where the policy is a model behind a chat endpoint, which cannot be trained."""
    possible = [m for m in cfg.evaluation.methods if cfg.policy.kind != "endpoint" or m not in TRAINED]
    own = sorted(possible, key=lambda m: (m in TRAINED, m.startswith("style_only")))
    return [*(Row(m) for m in own), *(Row(c.method, name) for name, c in cfg.evaluation.comparators.items())]


def select_rows(cfg: Config, methods: Sequence[str]) -> list[Row]:
    """Those of `methods` that this run evaluates at all, in the order of `list_rows`; without the models of scoring.comparators."""
    return [row for row in list_rows(cfg) if not row.comparator and row.method in methods]


def version(run: Run, row: Row) -> str:
    """What a row's results depend on besides settings and code: its adapter, and for a borrower the dialogues that it borrows from."""
    parts = [parties.hash_adapter(run.path(f"adapters/{row.adapter}"))] if row.adapter else []
    if row.method == "style_only_other":
        files = [run.path(f"dialogues/rlpa-{b}.jsonl") for b in run.cfg.evaluation.benchmarks]
        parts += [storage.sha256(file.read_bytes()) for file in files if file.is_file()]
    return " ".join(parts)


class Stage:
    """Makes the methods of a run one after another. Everything that a row needs is looked for when the stage is set up.

    InputError: an adapter, encoder, prompt, endpoint or key that a row needs is not there.
    """

    def __init__(self, run: Run, rows: Sequence[Row] | None = None):
        self.run, self.cfg = run, run.cfg
        self.rows = list_rows(run.cfg) if rows is None else list(rows)
        self.scripted = run.cfg.evaluator.kind == "rule"  # the miniature's language has its own floor and ceiling
        for row in self.rows:
            _check_adapter(run, row)
            _check_prompts(run.cfg, row)
        self.remote = {row.comparator: make_remote_policy(run, row.comparator) for row in self.rows if row.comparator}
        self.encoder = load_encoder(run.cfg.evaluation.encoder) if any(row.method == "rag" for row in self.rows) else None
        self._model = self._tokenizer = self._adapted = None
        if run.cfg.policy.kind != "local":
            parties.make_policy(run.cfg, run)  # says what is missing

    def load_judgements(
        self, row: Row, benchmark: str, people: Sequence[Persona], user: SimulatedUser, evaluator: EvaluationJudge, judge: Judge, **options: Any
    ) -> list[dict]:
        """The judgement rows of one row on one benchmark: read back when this run has them, else played (`scoring.evaluate_row`, which
        explains the options). While another notebook is playing it, it is waited for."""
        with storage.lock(self._lock(row, benchmark)):
            weights = version(self.run, row)
            known = scoring.read_finished(self.run, row.name, benchmark, weights, options.get("turns"))
            if known is not None:
                return known
            return scoring.evaluate_row(self.run, self.method(row, benchmark), benchmark, people, user, evaluator, judge, weights, **options)

    def schedule(self, benchmarks: Iterable[str]) -> Iterator[tuple[Row, str]]:
        """Every row on every benchmark, in order; those that another notebook is playing right now wait until nothing else is left."""
        left = [(row, benchmark) for row in self.rows for benchmark in benchmarks]
        while left:
            pair = next((pair for pair in left if not storage.is_locked(self._lock(*pair))), left[0])
            left.remove(pair)
            yield pair

    def _lock(self, row: Row, benchmark: str) -> Path:
        return self.run.path(f"done/{row.name}-{benchmark}.lock")

    def find_judgements(self, row: Row, benchmark: str, people: Sequence[Persona]) -> list[dict] | None:
        """The judgement rows of these people that this run has for a row of the main evaluation; None when it was not played for them all."""
        found, ids = scoring.read_finished(self.run, row.name, benchmark, version(self.run, row)) or [], {p.id for p in people}
        return [r for r in found if r["user"] in ids] if ids <= {r["user"] for r in found} else None

    def method(self, row: Row, benchmark: str) -> Method:
        """The method of a row, ready to play this benchmark; it is valid until the next one is asked for."""
        lent = Lent.by_the_next(scoring.read_dialogues(self.run, "rlpa", benchmark)) if row.method == "style_only_other" else None
        policy = None if self.scripted and row.method in ("random", "oracle") else self._policy(row)
        return replace(build_method(row.method, policy, self.cfg, self.encoder, lent), name=row.name)

    def _policy(self, row: Row) -> Policy:
        folder = self.run.path(f"adapters/{row.adapter}") if row.adapter else None
        if row.comparator:
            return self.remote[row.comparator]
        if self.cfg.policy.kind != "local":
            return parties.make_policy(self.cfg, self.run, adapter=folder)
        if self._model is None:
            self._model, self._tokenizer = parties.load_model(self.cfg)
        if self._adapted is not None:
            self._model, self._adapted = self._adapted.unload(), None
        if folder is not None:
            self._adapted = parties.attach_adapter(self._model, folder)
        portion = PORTION if self._model.device.type == "cpu" else None
        return parties.make_local_policy(self._adapted or self._model, self._tokenizer, self.cfg, portion=portion, reuse=portion is not None)


def build_method(name: str, policy: Policy | None, cfg: Config, encoder: SentenceEncoder | None = None, lent: Lent | None = None) -> Method:
    """The method of a row by its name in `scoring.methods`. `policy` None stands for the scripted controls; `rag` needs an encoder,
    `style_only_other` the profiles to lend."""
    if policy is None:
        from rlpa_lib.mini.teacher import response_pool

        return OracleControl() if name == "oracle" else RandomControl(made_for_somebody(response_pool()))
    writes, temperature, room = name in WITH_PROFILE, cfg.evaluation.temperature, cfg.rollout.max_new_tokens
    system = _text(cfg, "policy" if writes else "base")
    plain = Prompted(name, policy, system, writes, cfg.ppo.history_profiles, temperature, room)
    if name == "oracle":
        return PromptedOracle(plain, _text(cfg, "oracle"))
    if name == "random":
        return MisdirectedAnswers(plain)
    if name == "reminder":
        return replace(plain, suffix=_text(cfg, "reminder"))
    if name == "cot":
        return replace(plain, system_prompt=f"{system}\n\n{_text(cfg, 'cot')}", thinks=True)
    if name == "self_critic":
        return SelfCritic(plain, _text(cfg, "critique"), _text(cfg, "revise"))
    if name == "rag":
        return Retrieval(plain, encoder, _text(cfg, "rag"), _text(cfg, "rag_exchange"), _text(cfg, "rag_nothing"), cfg.evaluation.retrieved)
    if name.startswith("style_only"):
        return StyleOnly(plain, lent or no_profile, name)
    return plain


def _text(cfg: Config, name: str) -> str:
    return prompt_files.load_prompt(name, cfg.run.prompt_set, cfg.run.prompt_dir)


# Prompts with holes, and what fills them.
_HOLES = {
    "rag": {"rag": {"context": "", "message": ""}, "rag_exchange": {"number": 1, "user": "", "assistant": ""}},
    "oracle": {"oracle": {"profile": ""}},
}


def _check_prompts(cfg: Config, row: Row) -> None:
    """Build the method once without a model, and fill its templates, so that a prompt of the user's own fails before any work."""
    if row.method in ("random", "oracle") and cfg.evaluator.kind == "rule":
        return
    build_method(row.method, _NoPolicy(), cfg)
    for name, values in _HOLES.get(row.method, {}).items():
        try:
            _text(cfg, name).format(**values)
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(f"prompt {name!r}: only {', '.join(f'{{{v}}}' for v in values)} can be filled in ({error})") from None


class _NoPolicy:
    def generate(self, messages, n, *, seed, temperature, max_new_tokens):
        raise AssertionError("this policy stands in while prompts are checked")


def _check_adapter(run: Run, row: Row) -> None:
    folder = run.dir / "adapters" / row.adapter
    if row.adapter and not (folder / "adapter_config.json").is_file():
        wants = f"evaluation.methods names {row.method}; run {NOTEBOOKS.get(row.adapter, '21_ablations')} with this run directory first"
        raise InputError(f"{folder}: no adapter here, and {wants}")


def make_remote_policy(run: Run, name: str) -> Policy:
    """The policy of one of `scoring.comparators`. InputError: see endpoint_for."""
    from rlpa_lib.agents.endpoint_policy import EndpointPolicy
    from rlpa_lib.client.roles import endpoint_for  # here, because most runs need no server

    room = {"max_prompt_tokens": run.cfg.rollout.max_prompt_tokens, "reasoning_tokens": run.cfg.evaluation.comparators[name].reasoning_tokens}
    return EndpointPolicy(endpoint_for(run.cfg, "policy", run, name), top_p=run.cfg.rollout.top_p, **room)
