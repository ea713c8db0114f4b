"""How many requests each notebook makes of each role, turn by turn: arithmetic on counts in the settings.

E users, K turns, N samples. Nobody is asked for the first word, "Hello"; at turn 1 there is no profile.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rlpa_lib.agents import parties
from rlpa_lib.evaluation import ablations, long_term, rows
from rlpa_lib.personas import sources
from rlpa_lib.rlpa import rollout
from rlpa_lib.settings import config
from rlpa_lib.settings.base import ProfileJudgeConfig, Section
from rlpa_lib.settings.config import Config
from rlpa_lib.settings.kinds import EVALUATORS, JUDGES, METHODS, POLICIES, PROMPTING, SOURCES, USERS
from rlpa_lib.settings.roles import find_section

KINDS = {"user": USERS, "response_judge": JUDGES, "profile_judge": JUDGES, "evaluator": EVALUATORS}  # by role


@dataclass(frozen=True)
class Asks:
    """The prompts that one role gets in a notebook. `by_turn`: turn (from 1) -> how many.

    `sees` and `writes`: what of the dialogue prompts and answers hold (`pilot.Texts`). A policy gives
    `samples` answers a prompt, and training passes a prompt through it `trained` times (0: never).
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
        """How often an answer holds what belongs to no turn: claims come for each utterance after "Hello"."""
        return turn - 1 if self.writes == "claims" else 1


def list_asks(cfg: Config) -> list[Asks]:
    """All that a run of these settings asks, notebook by notebook; what rules answer is left out."""
    given, every = cfg.evaluation, rows.list_rows(cfg)
    own = [row for row in every if row.method in PROMPTING and not row.comparator]
    others = [row for row in every if row not in own]  # 30 reads back the rows of 10
    sizes = {"vanilla": given.users, "extended": given.extended_users or given.users}
    found = [*_prepare(cfg), *_analyse(cfg), *_study(cfg)]
    for place, name in enumerate(given.benchmarks):
        options = {"swap": given.swap, "answered": ("policy",) if place else ()}
        found += _play(cfg, "10_prompting_baselines", own, sizes[name], given.turns, **options)
        found += _play(cfg, "30_evaluation", others, sizes[name], given.turns, **options)
    if POLICIES[cfg.policy.kind].trainable:
        found += [*_train_baselines(cfg), *_train_ppo(cfg, "20_ppo", rollout.count_cohorts(cfg))]
        found += [*_ablate(cfg), *_train_grpo(cfg)]
    found = [ask for ask in found if not _is_scripted(cfg, ask)]
    return sorted((ask for ask in found if sum(ask.by_turn.values())), key=lambda ask: ask.notebook)


def _is_scripted(cfg: Config, ask: Asks) -> bool:
    # section judge says who judges profiles, too
    party = cfg.judge if isinstance(ask.party, ProfileJudgeConfig) else ask.party
    return ask.role in KINDS and KINDS[ask.role][party.kind].scripted


def _turns(turns: int, n: float, first: float = 0.0) -> dict[int, float]:
    """`first` at turn 1 and n at every later one."""
    return {1: first, **dict.fromkeys(range(2, turns + 1), n)}


def _user(notebook: str, party: Section, turns: int, n: float) -> Asks:
    limit = getattr(party, "max_prompt_tokens", None)
    return Asks(notebook, "user", party, _turns(turns, n), "talk", "utterance", limit)


def _overlap(cfg: Config, notebook: str, turns: int, n: float, writes: str = "pairs") -> Asks:
    return Asks(notebook, *_profile_judge(cfg), _turns(turns, n), "profile", writes)


def _profile_judge(cfg: Config) -> tuple[str, Section]:
    return "profile_judge", find_section(cfg, "profile_judge")[1]


def _response(cfg: Config, notebook: str, turns: int, n: float, first: float) -> Asks:
    limit = cfg.judge.max_prompt_tokens
    return Asks(notebook, "response_judge", cfg.judge, _turns(turns, n, first), "talk", limit=limit)


def _policy(cfg: Config, notebook: str, by_turn: Mapping[int, float], writes_profile=True, **more) -> Asks:
    sees, writes, system = "talk", "response", "base"
    if writes_profile:
        sees, writes, system = cfg.ppo.history_profiles, "profile", "policy"
    party, limit = more.pop("party", cfg.policy), cfg.rollout.max_prompt_tokens
    return Asks(notebook, "policy", party, by_turn, sees, writes, limit, system, **more)


def _prepare(cfg: Config) -> Iterator[Asks]:
    """01 fills slots by a model (C.2), 03 attacks the judges: the same attacks at every scale."""
    given = cfg.personas
    sizes = {"train": sources.count_train(given), **dict.fromkeys(("vanilla", "extended"), given.test_users)}
    if SOURCES[given.source].one_test_set:
        del sizes["extended"]
    if users := sum(n for split, n in sizes.items() if parties.pick_conversion(cfg, split)):
        yield Asks("01_profiles_and_data", "converter", cfg.user, {1: users})
    for role in ("response_judge", "profile_judge", "evaluator"):
        yield Asks("03_rewards_and_judges", role, find_section(cfg, role)[1], {1: 1})


def _play(
    cfg: Config, notebook: str, some: Sequence[rows.Row], users: int, turns: int, *, swap: bool = False,
    answered: Sequence[str] = (),
) -> Iterator[Asks]:  # fmt: skip
    """Rows that meet E users for K turns; `answered`: roles already asked about "Hello"."""
    greedy, evaluator = cfg.evaluation.temperature == 0, cfg.evaluator
    seen, limit = ("talk", evaluator.max_prompt_tokens) if evaluator.sees == "dialogue" else ("", None)
    for row in some:
        method, party = METHODS[row.method], cfg.evaluation.comparators.get(row.comparator, cfg.policy)
        told = any("profile" in names for _, names in method.holes)  # the true profile stands in its prompt
        same = greedy and not told  # then one answer to "Hello" serves all users, asked once of a server
        yield _user(notebook, cfg.user, turns, users)
        if not (method.scripted and EVALUATORS[evaluator.kind].scripted):
            calls = row.entry.calls
            served = row.comparator or not POLICIES[cfg.policy.kind].trainable
            first = calls * ("policy" not in answered) if served and same else calls * users
            by_turn = _turns(turns, calls * users, first)
            yield _policy(cfg, notebook, by_turn, method.writes_profile, party=party)
        verdicts = users * (2 if swap else 1)
        first = users * ("evaluator" not in answered) if same else verdicts  # equal questions are asked once
        yield Asks(notebook, "evaluator", evaluator, _turns(turns, verdicts, first), seen, limit=limit)
        if told:
            yield Asks(notebook, *_profile_judge(cfg), {1: users})  # the same two at every turn
        elif method.writes_profile:
            yield _overlap(cfg, notebook, turns, users)


def _train_ppo(cfg: Config, notebook: str, cohorts: int) -> list[Asks]:
    rollout, turns = cfg.rollout, cfg.rollout.turns
    talks = cohorts * rollout.users * (rollout.samples if rollout.continuation == "independent" else 1)
    samples = cohorts * rollout.users * rollout.samples
    passes = 1 if cfg.ppo.packing == "tree" else samples // talks  # a tree's samples share the prompt
    policy = _policy(cfg, notebook, _turns(turns, talks, talks), samples=samples // talks, trained=passes)
    return [*_rewarded(cfg, notebook, talks, samples), policy]


def _rewarded(cfg: Config, notebook: str, talks: float, replies: float) -> list[Asks]:
    """Talks of a training: the user, and both judges on all the replies of a turn."""
    turns = cfg.rollout.turns
    judged = _response(cfg, notebook, turns, replies, replies), _overlap(cfg, notebook, turns, replies)
    return [_user(notebook, cfg.user, turns, talks), *judged]


def _ablate(cfg: Config) -> Iterator[Asks]:
    """The variants' trainings up to the comparison, then these and 20_ppo's (both rewards) on Vanilla."""
    given, most = cfg.evaluation, rollout.count_cohorts(cfg)
    cohorts = min(cfg.ablations.iterations or most, most)
    for variant in cfg.ablations.variants:
        changes, where = ablations.list_changes(cfg, variant), f"ablations.variants: {variant}"
        yield from _train_ppo(config.change_config(cfg, changes, where), "21_ablations", cohorts)
    compared = [rows.Row("rlpa")] * (1 + len(cfg.ablations.variants))
    yield from _play(cfg, "21_ablations", compared, given.users, given.turns, swap=given.swap)


def _train_grpo(cfg: Config) -> list[Asks]:
    """A round plays its moments with one sample, then trains on N samples of each."""
    n, turns, samples = cfg.grpo.rounds * cfg.grpo.users, cfg.rollout.turns, cfg.grpo.samples
    moments = _policy(cfg, "22_grpo", _turns(turns, n, n))
    trained = replace(moments, samples=samples, trained=samples)
    return [*_rewarded(cfg, "22_grpo", n, n * samples), moments, trained]


def _train_baselines(cfg: Config) -> Iterator[Asks]:
    """SFT and DPO pass every turn of each conversation, DPO with two responses."""
    for notebook, given, sides in (("11_sft", cfg.sft, 1), ("12_dpo", cfg.dpo, 2)):
        n = given.conversations or sources.count_train(cfg.personas)
        by_turn = _turns(cfg.rollout.turns, n, n)
        yield _policy(cfg, notebook, by_turn, False, samples=sides, trained=sides, sampled=False)


def _analyse(cfg: Config) -> Iterator[Asks]:
    """31, 32 and 35; 33 reads the rows of 30 back, and 35 its willing users."""
    window = {"32_long_term": cfg.long_term.max_prompt_tokens}
    for notebook, given, times in (
        ("31_preference_conflict", cfg.conflict, 1), ("32_long_term", cfg.long_term, 1),
        ("35_difficult_users", cfg.difficult, len(cfg.difficult.manners)),
    ):  # fmt: skip
        some = rows.select_rows(cfg, given.methods)
        users = min(given.users or cfg.evaluation.users, cfg.evaluation.users)
        for ask in _play(cfg, notebook, some * times, users, given.turns, answered=("policy", "evaluator")):
            yield replace(ask, limit=window.get(notebook) or ask.limit) if ask.role == "policy" else ask
        if given is cfg.conflict:  # does each profile hold the old value, and the new one?
            n = 2 * users * sum(METHODS[row.method].writes_profile for row in some)
            yield _overlap(cfg, notebook, given.turns, n, writes="")  # there is but one pair to find
        elif given is cfg.long_term:  # what has been told at the checkpoints
            marks = dict.fromkeys(long_term.list_checkpoints(given.turns, given.every), users * len(some))
            yield Asks(notebook, *_profile_judge(cfg), marks, sees="words")


def _study(cfg: Config) -> Iterator[Asks]:
    """34: dialogues of every user model and of the impostor (the run's own user); rewritten profiles."""
    given, notebook = cfg.study, "34_user_and_reward_model_evaluation"
    users, turns, trainable = given.personas, given.turns, POLICIES[cfg.policy.kind].trainable
    models = [cfg.user, *given.user_models.values(), cfg.user]
    same = cfg.evaluation.temperature == 0 and not trainable
    for place, party in enumerate(models):
        yield _user(notebook, party, turns, users)
        yield _policy(cfg, notebook, _turns(turns, users, float(place == 0) if same else users))
    silent = users * sum(not USERS[party.kind].scripted for party in models)
    yield Asks(notebook, "user_judge", cfg.judge, {turns: silent}, sees="words", writes="claims")
    if not trainable:  # there is no training log, so replies are judged now
        yield _response(cfg, notebook, turns, users, 1)
    by_lexicon = SOURCES[cfg.personas.source].scripted or cfg.user.model is None
    if not by_lexicon:
        yield Asks(notebook, "rewriter", cfg.user, {1: given.profiles})
    for party in (_profile_judge(cfg)[1], *given.profile_judges.values()):
        yield Asks(notebook, "profile_judge", party, {1: given.profiles * (2 if by_lexicon else 1)})
