"""The rows of tables 1, 4 and 5: what each needs, the method that plays it, and what a run has played. One
model in memory serves all local rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlpa_lib.agents import devices, models, own_servers, parties, placement
from rlpa_lib.agents.trained import Trained, find_trained, load_trained
from rlpa_lib.dialogue.judging import EvaluationJudge, Judge
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.protocols import Policy, SimulatedUser
from rlpa_lib.evaluation import tables
from rlpa_lib.evaluation.played import evaluate_together, read_dialogues, read_finished
from rlpa_lib.evaluation.scoring import Part
from rlpa_lib.methods.controls import Lent
from rlpa_lib.methods.retrieval import load_encoder
from rlpa_lib.methods.table import Method, Parts, build_method, check_prompts, is_scripted
from rlpa_lib.runs import record, storage
from rlpa_lib.runs.run import Run
from rlpa_lib.settings import kinds
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import METHODS, POLICIES
from rlpa_lib.settings.measured import settle

# Prompt tokens that pass a model on a CPU at once: prompts of 300 tokens took 1.5 times as long in one batch
# of 74.
PORTION = 4096


@dataclass(frozen=True)
class Row:
    """One row: a method, on the run's policy or on a model behind an endpoint of its own (`comparator`, named
    as in the settings). `weights` names others than the method's own, an ablation's for example."""

    method: str
    comparator: str = ""
    weights: str = ""

    @property
    def name(self) -> str:
        """The row's key in files and tables: "rlpa", "self_critic@GPT-4o", or the name of other weights."""
        return self.weights or (f"{self.method}@{self.comparator}" if self.comparator else self.method)

    @property
    def entry(self) -> kinds.Method:
        """What is known of the row's method."""
        return METHODS[self.method]

    @property
    def adapter(self) -> str:
        """The folder below adapters/ or models/ with the row's weights; "" for the base model."""
        return self.weights or self.entry.adapter


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
    """What a row's results depend on besides settings and code: its trained weights, and for a borrower the
    dialogues that it borrows from. InputError: the weights are not there."""
    parts = [trained.hash()] if (trained := find_weights(run, row)) else []
    if row.entry.borrows:
        files = [run.path(f"dialogues/{row.entry.borrows}-{b}.jsonl") for b in run.cfg.evaluation.benchmarks]
        parts += [storage.sha256(file.read_bytes()) for file in files if file.is_file()]
    return " ".join(parts)


def find_weights(run: Run, row: Row) -> Trained | None:
    """The trained weights of a row; None where it plays the base model. InputError: they are not there."""
    if not row.adapter:
        return None
    book = "21_ablations" if row.weights else row.entry.notebook
    wanted = f"evaluation.methods names {row.method}; run {book} with this run directory first"
    return load_trained(run.dir, row.adapter, wanted)


class Stage:
    """Makes the methods of a run one after another. Everything that a row needs is looked for when the stage
    is set up, and its device noted in the record. InputError: weights, an encoder, prompt, endpoint or key
    that a row needs are not there, or the model does not fit (`placement.place`)."""

    def __init__(self, run: Run, rows: Sequence[Row] | None = None):
        self.run, self.cfg = run, run.cfg
        self.rows = list_rows(run.cfg) if rows is None else list(rows)
        for row in self.rows:
            find_weights(run, row)
            check_prompts(row.method, run.cfg)
        names = [row.comparator for row in self.rows if row.comparator]
        self.remote = {name: _make_remote_policy(run, name) for name in names}
        needs_encoder = any(row.entry.needs_encoder for row in self.rows)
        if needs_encoder or any(not (r.comparator or is_scripted(r.method, run.cfg)) for r in self.rows):
            placement.place(run.cfg, placement.PLAY, encoder=needs_encoder).note(run)
        device = devices.choose_device()
        self.encoder = load_encoder(run.cfg.evaluation.encoder, device) if needs_encoder else None
        self._model = self._tokenizer = self._adapted = self._whole = None
        if own_servers.are_needed(run.cfg):  # started when a row is played, not when it is read back
            own_servers.check(run.cfg)
        elif not POLICIES[run.cfg.policy.kind].in_process:
            parties.make_policy(run.cfg, run)  # says what is missing

    def schedule(self, benchmarks: Iterable[str]) -> Iterator[Row]:
        """Every row, in order; those that another notebook is playing right now on one of the benchmarks wait
        until nothing else is left."""
        left, benchmarks = list(self.rows), list(benchmarks)
        while left:
            free = (row for row in left if not any(storage.is_locked(self._lock(row, b)) for b in benchmarks))
            left.remove(row := next(free, left[0]))
            yield row

    def _lock(self, row: Row, benchmark: str) -> Path:
        return self.run.path(f"done/{row.name}-{benchmark}.lock")

    def load_judgements(
        self, row: Row, benchmark: str, people: Sequence[Persona], user: SimulatedUser,
        evaluator: EvaluationJudge, judge: Judge, **options: Any,
    ) -> list[dict]:
        """`load_together` of one benchmark alone."""
        return self.load_together(row, {benchmark: (people, user)}, evaluator, judge, **options)[benchmark]

    def load_together(
        self, row: Row, users: Mapping[str, tuple[Sequence[Persona], SimulatedUser]],
        evaluator: EvaluationJudge, judge: Judge, **options: Any,
    ) -> dict[str, list[dict]]:
        """The judgement rows of one row by benchmark: read back when this run has them, else played in one
        batch (`evaluate_together`, which explains the options). `users`: who is met and who speaks for them.
        While another notebook is playing the row, it is waited for."""
        with ExitStack() as locks:
            for benchmark in sorted(users):
                locks.enter_context(storage.lock(self._lock(row, benchmark)))
            weights, turns = version(self.run, row), options.get("turns")
            known = {b: read_finished(self.run, row.name, b, weights, turns) for b in users}
            if all(found is not None for found in known.values()):
                return known
            policy = self._policy(row)
            parts = [Part(self._make(row, b, policy), b, *users[b]) for b in users]
            judges = evaluator, judge
            played = evaluate_together(self.run, parts, *judges, weights, policy=policy, **options)
            return dict(zip(users, played, strict=True))

    def find_judgements(self, row: Row, benchmark: str, people: Sequence[Persona]) -> list[dict] | None:
        """The judgement rows of these people that this run has for a row of the main evaluation; None when it
        was not played for them all."""
        found = read_finished(self.run, row.name, benchmark, version(self.run, row)) or []
        ids = {p.id for p in people}
        return [r for r in found if r["user"] in ids] if ids <= {r["user"] for r in found} else None

    def method(self, row: Row, benchmark: str) -> Method:
        """The method of a row, ready to play this benchmark; it is valid until the next one is asked for."""
        return self._make(row, benchmark, self._policy(row))

    def _make(self, row: Row, benchmark: str, policy: Policy | None) -> Method:
        donor = None
        if row.entry.borrows:
            donor = Lent.by_the_next(read_dialogues(self.run, row.entry.borrows, benchmark))
        method = build_method(Parts(row.method, self.cfg, policy, self.encoder, donor))
        return replace(method, name=row.name)

    def _policy(self, row: Row) -> Policy | None:
        if is_scripted(row.method, self.cfg):
            return None
        if row.comparator:
            return self.remote[row.comparator]
        trained = find_weights(self.run, row)
        if not POLICIES[self.cfg.policy.kind].in_process:
            return parties.make_policy(self.cfg, self.run, adapter=trained and trained.folder)
        whole = trained if trained and trained.whole else None
        if self._adapted is not None:
            self._model, self._adapted = self._adapted.unload(), None
        if self._model is None or whole != self._whole:  # whole models take each other's place
            self._model = None
            self._model, self._tokenizer = models.load_model(self.cfg, whole)
            self._whole = whole
        if trained and not trained.whole:
            self._adapted = models.attach_adapter(self._model, trained.folder)
        on_cpu = self._model.device.type == "cpu"
        model, portion = self._adapted or self._model, PORTION if on_cpu else None
        return models.make_local_policy(model, self._tokenizer, self.cfg, portion=portion, reuse=on_cpu)


def _make_remote_policy(run: Run, name: str) -> Policy:
    """The policy of one of `evaluation.comparators`. InputError: see endpoint_for."""
    from rlpa_lib.agents.endpoint_policy import EndpointPolicy
    from rlpa_lib.client.endpoint import endpoint_for  # here, because most runs need no server

    rollout, party = run.cfg.rollout, run.cfg.evaluation.comparators[name]
    return EndpointPolicy(
        endpoint_for(run.cfg, "policy", run, name), top_p=rollout.top_p,
        max_prompt_tokens=rollout.max_prompt_tokens, reasoning_tokens=party.reasoning_tokens,
    )


def find_siblings(run: Run) -> list[Run]:
    """The run and, only to read from, those beside it with the same settings and another seed, by seed."""
    found, settings = {run.seed: run}, run.record["params"]
    for file in sorted(run.dir.parent.glob("*/record.json")):
        try:
            facts = record.read(file.parent)
        except InputError:  # somebody else's file beside our runs
            continue
        seed = facts.get("seed")
        if isinstance(seed, int) and facts.get("params") == settings:
            cfg = settle(run.cfg, facts.get("measured", {}).get("chosen", {}))
            found.setdefault(seed, Run(cfg, seed, file.parent))
    return [found[seed] for seed in sorted(found)]


def load_scores(run: Run) -> tables.Scores:
    """Scores (E, K) of every row that this run has finished with the code and weights that are there now."""
    scores = {}
    for row in list_rows(run.cfg):
        if row.adapter and find_trained(run.dir, row.adapter) is None:
            continue
        for benchmark in run.cfg.evaluation.benchmarks:
            judged = read_finished(run, row.name, benchmark, version(run, row))
            if judged is not None:
                scores[row.name, benchmark] = tables.score_table(judged)
    return scores
