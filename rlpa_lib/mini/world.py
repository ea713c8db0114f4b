"""Makes the miniature's personas, users and judges (see settings.kinds); agents.world reaches the rest."""

from pathlib import Path

from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.mini import lexicon as lex
from rlpa_lib.mini.judge import RuleEvaluationJudge, RuleJudge, RuleRevealJudge
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.mini.user import MANNERS, AgendaUser
from rlpa_lib.settings.kinds import Supply

WEIGHTS = Path(__file__).parent / "weights"  # the tiny model that ships with the package
# The generator has no end, so "all" means as many as the paper has (appendices C.1 and C.2).
ALL_USERS = {"train": 3821, "vanilla": 74, "extended": 74}


def load_personas(cfg, split: str, n: int | None, seed: int) -> list[Persona]:
    """`personas.sources.load_personas` for the built-in source; `cfg` is not used."""
    return builtin_personas(split, ALL_USERS[split] if n is None else n, seed)


def count_personas(cfg, split: str) -> Supply:
    """How many users "all" of a split are, and that the generator makes others as well; `cfg` is not used."""
    n = ALL_USERS[split]
    return Supply(n, f"the built-in generator makes {n:,} where none are asked for by number", more=True)


def list_values(slot: str, years: int) -> list[str]:
    """The training values of a slot that somebody of that age may have."""
    return [v.canonical for v in lex.list_values(slot, "train") if int(v.attrs.get("min_age", 0)) <= years]


def make_user(cfg, split: str, seed: int, run=None, manner: str = "willing") -> AgendaUser:
    """The user of a split; test users have their own sentence frames. `manner`: a key of MANNERS."""
    return AgendaUser(seed, "user_train" if split == "train" else "user_test", MANNERS[manner])


def make_reward_judge(cfg, run=None, **_) -> RuleJudge:
    """The source of training rewards. Rules need no defence and never fail, so no option matters."""
    return RuleJudge()


def make_evaluation_judge(cfg, run=None, **_) -> RuleEvaluationJudge:
    """The source of evaluation scores; as `make_reward_judge`."""
    return RuleEvaluationJudge()


def make_reveal_judge(cfg, run=None) -> RuleRevealJudge:
    """The judge of what a user's words have told."""
    return RuleRevealJudge()
