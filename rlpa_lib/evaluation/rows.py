"""The rows of tables 1, 4 and 5: what each of them needs, and the method that plays it. One model in memory
serves all local rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlpa_lib.agents import models, parties
from rlpa_lib.dialogue.judging import EvaluationJudge, Judge
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.protocols import Policy, SimulatedUser
from rlpa_lib.evaluation import scoring
from rlpa_lib.methods.controls import Lent
from rlpa_lib.methods.retrieval import load_encoder
from rlpa_lib.methods.table import Method, Parts, build_method, check_prompts, is_scripted
from rlpa_lib.runs import storage
from rlpa_lib.runs.run import Run
from rlpa_lib.settings import kinds
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import METHODS, POLICIES

# Prompt tokens that pass a model on a CPU at once: prompts of 300 tokens took 1.5 times as long in one batch
# of 74.
PORTION = 4096


@dataclass(frozen=True)
class Row:
    """One row: a method, on the run's policy or on a model behind an endpoint of its own (`comparator`, named
    as in the settings). `weights` names another adapter than the method's own, an ablation's for example."""

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
        return self.weights or self.entry.adapter

    @property
    def notebook(self) -> str:
        """The notebook that trains the row's weights."""
        return "21_ablations" if self.weights else self.entry.notebook

    @property
    def entry(self) -> kinds.Method:
        """What is known of the row's method."""
        return METHODS[self.method]


def list_rows(cfg: Config) -> list[Row]:
    """The rows of a run in the order in which they are played: untrained ones first, controls that need
    trained weights last, so that a borrower comes after the row that it borrows from. Rows with trained
    weights are left out ("not run") where the policy cannot be trained, as a model behind a chat endpoint."""
    possible = [
        m for m in cfg.evaluation.methods if POLICIES[cfg.policy.kind].trainable or not METHODS[m].trained
    ]
    own = sorted(possible, key=lambda m: (METHODS[m].trained, METHODS[m].trained and METHODS[m].control))
    return [*(Row(m) for m in own), *(Row(c.method, name) for name, c in cfg.evaluation.comparators.items())]


def select_rows(cfg: Config, methods: Sequence[str]) -> list[Row]:
    """Those of `methods` that this run evaluates at all, in the order of `list_rows`; without the models of
    evaluation.comparators."""
    return [row for row in list_rows(cfg) if not row.comparator and row.method in methods]


def version(run: Run, row: Row) -> str:
    """What a row's results depend on besides settings and code: its adapter, and for a borrower the dialogues
    that it borrows from."""
    parts = [models.hash_adapter(run.path(f"adapters/{row.adapter}"))] if row.adapter else []
    if row.entry.borrows:
        files = [run.path(f"dialogues/{row.entry.borrows}-{b}.jsonl") for b in run.cfg.evaluation.benchmarks]
        parts += [storage.sha256(file.read_bytes()) for file in files if file.is_file()]
    return " ".join(parts)


class Stage:
    """Makes the methods of a run one after another. Everything that a row needs is looked for when the stage
    is set up.

    InputError: an adapter, encoder, prompt, endpoint or key that a row needs is not there.
    """

    def __init__(self, run: Run, rows: Sequence[Row] | None = None):
        self.run, self.cfg = run, run.cfg
        self.rows = list_rows(run.cfg) if rows is None else list(rows)
        for row in self.rows:
            _check_adapter(run, row)
            check_prompts(row.method, run.cfg)
        self.remote = {
            row.comparator: make_remote_policy(run, row.comparator) for row in self.rows if row.comparator
        }
        self.encoder = (
            load_encoder(run.cfg.evaluation.encoder)
            if any(row.entry.needs_encoder for row in self.rows)
            else None
        )
        self._model = self._tokenizer = self._adapted = None
        if not POLICIES[run.cfg.policy.kind].in_process:
            parties.make_policy(run.cfg, run)  # says what is missing

    def load_judgements(
        self, row: Row, benchmark: str, people: Sequence[Persona], user: SimulatedUser,
        evaluator: EvaluationJudge, judge: Judge, **options: Any,
    ) -> list[dict]:
        """The judgement rows of one row on one benchmark: read back when this run has them, else played
        (`scoring.evaluate_row`, which explains the options). While another notebook is playing it, it is
        waited for."""
        with storage.lock(self._lock(row, benchmark)):
            weights = version(self.run, row)
            known = scoring.read_finished(self.run, row.name, benchmark, weights, options.get("turns"))
            if known is not None:
                return known
            method, policy = self._make(row, benchmark)
            parties_ = (method, benchmark, people, user, evaluator, judge, weights)
            return scoring.evaluate_row(self.run, *parties_, policy=policy, **options)

    def schedule(self, benchmarks: Iterable[str]) -> Iterator[tuple[Row, str]]:
        """Every row on every benchmark, in order; those that another notebook is playing right now wait until
        nothing else is left."""
        left = [(row, benchmark) for row in self.rows for benchmark in benchmarks]
        while left:
            pair = next((pair for pair in left if not storage.is_locked(self._lock(*pair))), left[0])
            left.remove(pair)
            yield pair

    def _lock(self, row: Row, benchmark: str) -> Path:
        return self.run.path(f"done/{row.name}-{benchmark}.lock")

    def find_judgements(self, row: Row, benchmark: str, people: Sequence[Persona]) -> list[dict] | None:
        """The judgement rows of these people that this run has for a row of the main evaluation; None when it
        was not played for them all."""
        found, ids = (
            scoring.read_finished(self.run, row.name, benchmark, version(self.run, row)) or [],
            {p.id for p in people},
        )
        return [r for r in found if r["user"] in ids] if ids <= {r["user"] for r in found} else None

    def method(self, row: Row, benchmark: str) -> Method:
        """The method of a row, ready to play this benchmark; it is valid until the next one is asked for."""
        return self._make(row, benchmark)[0]

    def _make(self, row: Row, benchmark: str) -> tuple[Method, Policy | None]:
        donor = None
        if row.entry.borrows:
            donor = Lent.by_the_next(scoring.read_dialogues(self.run, row.entry.borrows, benchmark))
        policy = None if is_scripted(row.method, self.cfg) else self._policy(row)
        method = build_method(Parts(row.method, self.cfg, policy, self.encoder, donor))
        return replace(method, name=row.name), policy

    def _policy(self, row: Row) -> Policy:
        folder = self.run.path(f"adapters/{row.adapter}") if row.adapter else None
        if row.comparator:
            return self.remote[row.comparator]
        if not POLICIES[self.cfg.policy.kind].in_process:
            return parties.make_policy(self.cfg, self.run, adapter=folder)
        if self._model is None:
            self._model, self._tokenizer = models.load_model(self.cfg)
        if self._adapted is not None:
            self._model, self._adapted = self._adapted.unload(), None
        if folder is not None:
            self._adapted = models.attach_adapter(self._model, folder)
        portion = PORTION if self._model.device.type == "cpu" else None
        return models.make_local_policy(
            self._adapted or self._model, self._tokenizer, self.cfg, portion=portion,
            reuse=portion is not None,
        )


def _check_adapter(run: Run, row: Row) -> None:
    folder = run.dir / "adapters" / row.adapter
    if row.adapter and not (folder / "adapter_config.json").is_file():
        wants = f"evaluation.methods names {row.method}; run {row.notebook} with this run directory first"
        raise InputError(f"{folder}: no adapter here, and {wants}")


def make_remote_policy(run: Run, name: str) -> Policy:
    """The policy of one of `evaluation.comparators`. InputError: see endpoint_for."""
    from rlpa_lib.agents.endpoint_policy import EndpointPolicy
    from rlpa_lib.client.endpoint import endpoint_for  # here, because most runs need no server

    room = {
        "max_prompt_tokens": run.cfg.rollout.max_prompt_tokens,
        "reasoning_tokens": run.cfg.evaluation.comparators[name].reasoning_tokens,
    }
    return EndpointPolicy(endpoint_for(run.cfg, "policy", run, name), top_p=run.cfg.rollout.top_p, **room)
