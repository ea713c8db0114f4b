"""How many requests each notebook makes of each role, turn by turn: arithmetic on the counts in the settings.

E users, K turns, N samples. Nobody is asked for the first word, "Hello"; at turn 1 no profile is known yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rlpa_lib.evaluation import ablations, long_term, rows
from rlpa_lib.settings import config
from rlpa_lib.settings.base import Section
from rlpa_lib.settings.config import Config
from rlpa_lib.settings.kinds import EVALUATORS, JUDGES, METHODS, POLICIES, PROMPTING, SOURCES, USERS

ALOE_USERS = 331  # profiles in ALOE's files
CALLS = {"self_critic": 3}  # of the policy for one answer, where it is not one: draft, critique, revision
KINDS = {"user": USERS, "response_judge": JUDGES, "profile_judge": JUDGES, "evaluator": EVALUATORS}  # by role


@dataclass(frozen=True)
class Asks:
    """The prompts that one role gets in a notebook. `by_turn`: turn (from 1) -> how many.

    `sees` is what of the dialogue stands in them and `writes` what the answers hold, as `pilot.Texts` measures it. Only a
    policy gets `samples` answers a prompt; training passes each prompt `trained` times through the model (0: none is trained).
    """

    notebook: str
    role: str
    party: Section  # the settings that name the model
    by_turn: Mapping[int, float]
    sees: str = ""
    writes: str = ""
    limit: int | None = None  # the longest prompt, in tokens; None = without
    system: str = ""  # the prompt file in front of the dialogue, where its length depends on the prompt set
    samples: int = 1
    trained: int = 0
    sampled: bool = True  # False: the answers are there already (SFT, DPO)

    def times(self, turn: int) -> int:
        """How often an answer holds what belongs to no turn: a list of claims has as much of every utterance after "Hello"."""
        return turn - 1 if self.writes == "claims" else 1


def list_asks(cfg: Config) -> list[Asks]:
    """All that a run of these settings asks, notebook by notebook; what rules answer is left out."""
    given = cfg.evaluation
    own = [row for row in rows.list_rows(cfg) if row.method in PROMPTING and not row.comparator]
    others = [row for row in rows.list_rows(cfg) if row not in own]
    sizes = {"vanilla": given.users, "extended": given.extended_users or given.users}
    found = [*_prepare(cfg)]
    for notebook, some in (("10_prompting_baselines", own), ("30_evaluation", others)):  # 30 reads back the rows of 10
        for place, benchmark in enumerate(given.benchmarks):
            answered = ("policy",) if place else ()
            found += _play(cfg, notebook, some, sizes[benchmark], given.turns, swap=given.swap, answered=answered)
    if POLICIES[cfg.policy.kind].trainable:
        found += [*_train_baselines(cfg), *_train_ppo(cfg, "20_ppo", cfg.ppo.iterations), *_ablate(cfg), *_train_grpo(cfg)]
    found += [*_analyse(cfg), *_study(cfg)]
    return [ask for ask in sorted(found, key=lambda ask: ask.notebook) if sum(ask.by_turn.values()) and not _is_scripted(ask)]


def _is_scripted(ask: Asks) -> bool:
    return ask.role in KINDS and KINDS[ask.role][ask.party.kind].scripted


def _later(turns: int, n: float) -> dict[int, float]:
    """n at every turn but the first."""
    return dict.fromkeys(range(2, turns + 1), n)


def _user(cfg: Config, notebook: str, turns: int, n: float, party: Section | None = None) -> Asks:
    party = party or cfg.user
    return Asks(notebook, "user", party, _later(turns, n), "talk", "utterance", getattr(party, "max_prompt_tokens", None))


def _reward(cfg: Config, notebook: str, turns: int, n: float) -> list[Asks]:
    """n rewards a turn: the response judge reads the talk, the profile judge the two profiles."""
    judge, limit = cfg.judge, cfg.judge.max_prompt_tokens
    return [Asks(notebook, "response_judge", judge, {1: n, **_later(turns, n)}, "talk", limit=limit),
            Asks(notebook, "profile_judge", judge, _later(turns, n), "profile", "pairs")]  # fmt: skip


def _policy(cfg: Config, notebook: str, turns: int, n: float, *, first: float | None = None, writes: bool = True, **more) -> Asks:
    by_turn = {1: n if first is None else first, **_later(turns, n)}
    sees, answer = (cfg.ppo.history_profiles, "profile") if writes else ("talk", "response")
    options = {"party": cfg.policy, "limit": cfg.rollout.max_prompt_tokens, "system": "policy" if writes else "base", **more}
    return Asks(notebook, "policy", by_turn=by_turn, sees=sees, writes=answer, **options)


def _prepare(cfg: Config) -> Iterator[Asks]:
    """01 fills slots by a model (C.2), 03 attacks the judges: the same attacks at every scale."""
    given = cfg.personas
    if SOURCES[given.source].fills_ten_slots and given.conversion == "llm":
        train = given.train_users or ALOE_USERS - given.test_users
        yield Asks("01_profiles_and_data", "converter", cfg.user, {1: train + given.test_users})
    for role in ("response_judge", "profile_judge", "evaluator"):
        yield Asks("03_rewards_and_judges", role, cfg.evaluator if role == "evaluator" else cfg.judge, {1: 1})


def _play(
    cfg: Config, notebook: str, some: Sequence[rows.Row], users: int, turns: int, *, swap: bool = False, answered: Sequence[str] = ()
) -> Iterator[Asks]:
    """Rows that meet E users for K turns. At temperature 0 the answer to "Hello" is the same for all users, and equal questions
    are asked once: by a policy behind a server, and by the evaluator, whose swapped questions are then those of the others.
    `answered`: roles that have been asked about "Hello" before."""
    scripted, greedy = EVALUATORS[cfg.evaluator.kind].scripted, cfg.evaluation.temperature == 0
    for row in some:
        method, party = METHODS[row.method], cfg.evaluation.comparators.get(row.comparator, cfg.policy)
        told = any("profile" in names for _, names in method.holes)  # the true profile stands in its prompt
        served, calls = row.comparator or not POLICIES[cfg.policy.kind].trainable, CALLS.get(row.method, 1)
        yield _user(cfg, notebook, turns, users)
        if not (method.scripted and scripted):
            once = 0 if "policy" in answered else calls
            first = once if served and greedy and not told else calls * users
            yield _policy(cfg, notebook, turns, calls * users, first=first, writes=method.writes_profile, party=party)
        verdicts = users * (2 if swap else 1)
        once = 0 if "evaluator" in answered else users
        marks = {1: once if greedy and not told else verdicts, **_later(turns, verdicts)}
        seen, limit = ("talk", cfg.evaluator.max_prompt_tokens) if cfg.evaluator.sees == "dialogue" else ("", None)
        yield Asks(notebook, "evaluator", cfg.evaluator, marks, seen, limit=limit)
        if told or method.writes_profile:
            sees, answer = ("", "") if told else ("profile", "pairs")
            yield Asks(notebook, "profile_judge", cfg.judge, {1: users} if told else _later(turns, users), sees, answer)


def _train_ppo(cfg: Config, notebook: str, cohorts: int) -> list[Asks]:
    rollout = cfg.rollout
    talks = cohorts * rollout.users * (rollout.samples if rollout.continuation == "independent" else 1)
    samples = cohorts * rollout.users * rollout.samples
    n = samples // talks
    passes = 1 if cfg.ppo.packing == "tree" else n  # in a tree the N samples share one pass of their prompt
    policy = _policy(cfg, notebook, rollout.turns, talks, samples=n, trained=passes)
    return [_user(cfg, notebook, rollout.turns, talks), *_reward(cfg, notebook, rollout.turns, samples), policy]


def _ablate(cfg: Config) -> Iterator[Asks]:
    """Each variant's training up to the comparison, and each on Vanilla beside both rewards, which 20_ppo trains."""
    cohorts = min(cfg.ablations.iterations or cfg.ppo.iterations, cfg.ppo.iterations)
    for variant in cfg.ablations.variants:
        changed = config.change_config(cfg, ablations.list_changes(cfg, variant), f"ablations.variants: {variant}")
        yield from _train_ppo(changed, "21_ablations", cohorts)
    compared = [rows.Row("rlpa")] * (1 + len(cfg.ablations.variants))
    yield from _play(cfg, "21_ablations", compared, cfg.evaluation.users, cfg.evaluation.turns, swap=cfg.evaluation.swap)


def _train_grpo(cfg: Config) -> list[Asks]:
    """A round plays its moments with one sample, then trains on N samples of each."""
    n, turns, samples = cfg.grpo.rounds * cfg.grpo.users, cfg.rollout.turns, cfg.grpo.samples
    policies = [_policy(cfg, "22_grpo", turns, n), _policy(cfg, "22_grpo", turns, n, samples=samples, trained=samples)]
    return [_user(cfg, "22_grpo", turns, n), *_reward(cfg, "22_grpo", turns, n * samples), *policies]


def _train_baselines(cfg: Config) -> Iterator[Asks]:
    """SFT and DPO pass every turn of each conversation, DPO with two responses."""
    for notebook, given, sides in (("11_sft", cfg.sft, 1), ("12_dpo", cfg.dpo, 2)):
        n = given.conversations or cfg.personas.train_users or ALOE_USERS
        yield _policy(cfg, notebook, cfg.rollout.turns, n, writes=False, samples=sides, trained=sides, sampled=False)


def _analyse(cfg: Config) -> Iterator[Asks]:
    """31, 32 and 35; 33 reads the rows of 30 back, and 35 its willing users."""
    window = cfg.long_term.max_prompt_tokens or cfg.rollout.max_prompt_tokens
    for notebook, given, times in (
        ("31_preference_conflict", cfg.conflict, 1), ("32_long_term", cfg.long_term, 1),
        ("35_difficult_users", cfg.difficult, len(cfg.difficult.manners)),
    ):  # fmt: skip
        some, users = rows.select_rows(cfg, given.methods), min(given.users or cfg.evaluation.users, cfg.evaluation.users)
        for ask in _play(cfg, notebook, some * times, users, given.turns, answered=("policy", "evaluator")):
            yield replace(ask, limit=window) if (notebook, ask.role) == ("32_long_term", "policy") else ask
        writers = users * sum(METHODS[row.method].writes_profile for row in some)
        if given is cfg.conflict:  # does each profile hold the old value, and the new one?
            yield Asks(notebook, "profile_judge", cfg.judge, _later(given.turns, 2 * writers), "profile")
        elif given is cfg.long_term:  # what has been told at the checkpoints
            marks = dict.fromkeys(long_term.checkpoints(given.turns, given.every), users * len(some))
            yield Asks(notebook, "profile_judge", cfg.judge, marks, "words")


def _study(cfg: Config) -> Iterator[Asks]:
    """34: dialogues of every user model and of the impostor, whom the run's own plays; claims in them; rewritten profiles."""
    given, notebook = cfg.study, "34_user_and_reward_model_evaluation"
    users, turns, trainable = given.personas, given.turns, POLICIES[cfg.policy.kind].trainable
    models = [cfg.user, *given.user_models.values(), cfg.user]
    greedy = cfg.evaluation.temperature == 0 and not trainable
    for place, party in enumerate(models):
        yield _user(cfg, notebook, turns, users, party)
        yield _policy(cfg, notebook, turns, users, first=float(place == 0) if greedy else None)
    silent = users * sum(not USERS[party.kind].scripted for party in models)
    yield Asks(notebook, "user_judge", cfg.judge, {turns: silent}, "words", "claims")
    if not trainable:  # no training log, so replies are judged now
        yield replace(_reward(cfg, notebook, turns, users)[0], by_turn={1: 1, **_later(turns, users)})
    by_lexicon = SOURCES[cfg.personas.source].scripted or cfg.user.model is None
    if not by_lexicon:
        yield Asks(notebook, "rewriter", cfg.user, {1: given.profiles})
    for party in (cfg.judge, *given.profile_judges.values()):
        yield Asks(notebook, "profile_judge", party, {1: given.profiles * (2 if by_lexicon else 1)})
