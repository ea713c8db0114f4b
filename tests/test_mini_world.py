"""The miniature is a plug-in: one module reaches into it, and settings.kinds names what makes its parties."""

import ast
import subprocess
import sys
from pathlib import Path

from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.mini.judge import RuleEvaluationJudge, RuleJudge
from rlpa_lib.mini.user import MANNERS, AgendaUser
from rlpa_lib.settings.config import load_config
from rlpa_lib.settings.kinds import EVALUATORS, JUDGES, SOURCES, USERS, resolve

LIBRARY = Path(__file__).resolve().parents[1] / "rlpa_lib"


def imports_mini(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if any(name == "rlpa_lib.mini" or name.startswith("rlpa_lib.mini.") for name in names):
            return True
    return False


def test_one_module_alone_imports_the_miniature():
    outside = [path for path in LIBRARY.rglob("*.py") if LIBRARY / "mini" not in path.parents]
    found = {str(path.relative_to(LIBRARY)) for path in outside if imports_mini(path)}
    assert found - {"plan/rehearsal.py", "plan/rehearsal_analyses.py"} == {"agents/world.py"}


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
