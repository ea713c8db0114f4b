"""The miniature is a plug-in: settings.kinds names what makes its parties (its one door: test_layout.py)."""

import subprocess
import sys

from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.mini.judge import RuleEvaluationJudge, RuleJudge
from rlpa_lib.mini.user import MANNERS, AgendaUser
from rlpa_lib.settings.config import load_config
from rlpa_lib.settings.kinds import EVALUATORS, JUDGES, SOURCES, USERS, resolve


def test_the_kinds_make_the_parties_of_the_miniature():
    cfg = load_config("mini")
    [persona] = resolve(SOURCES["builtin"].make)(cfg.personas, "vanilla", 1, 0)
    assert isinstance(persona, Persona)
    assert resolve(USERS["agenda"].make)(cfg, "train", 3, None, "terse") == AgendaUser(
        3, "user_train", MANNERS["terse"]
    )
    options = {"defended": False, "failure_limit": 1.0}
    assert resolve(JUDGES["rule"].make)(cfg, None, **options) == RuleJudge()
    assert resolve(EVALUATORS["rule"].make)(cfg, None, **options) == RuleEvaluationJudge()


def test_the_parties_load_no_torch():
    code = (
        "import sys, rlpa_lib.agents.parties; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
