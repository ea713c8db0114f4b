"""Rows whose users share weights are played in one batch, each with what it would get alone, and a killed one
goes on with the same bits."""

import pytest
import torch

from rlpa_lib import runs
from rlpa_lib.agents import models, parties
from rlpa_lib.agents.local_policy import LocalPolicy
from rlpa_lib.evaluation import played, rows
from rlpa_lib.evaluation.rows import Row, Stage
from rlpa_lib.evaluation.scoring import Part
from rlpa_lib.methods.controls import MisdirectedAnswers, PromptedOracle, StyleOnly, no_profile
from rlpa_lib.methods.prompting import Prompted, Retrieval, SelfCritic
from rlpa_lib.methods.table import respond_together
from rlpa_lib.mini.judge import RuleEvaluationJudge, RuleJudge
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.mini.user import MANNERS, AgendaUser
from rlpa_lib.settings import config

PEOPLE = {"vanilla": builtin_personas("vanilla", 4, 0), "extended": builtin_personas("extended", 3, 0)}
JUDGES = RuleEvaluationJudge(), RuleJudge()
TURNS = 3


class Watched(LocalPolicy):
    """Keeps the size of each batch and all completions."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.sizes, self.said = [], []

    def generate(self, messages, n, **options):
        groups = super().generate(messages, n, **options)
        self.sizes.append(len(messages))
        self.said.append([c for group in groups for c in group])
        return groups


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return models.load_model(config.load_config("smoke"))


class Letters:
    def encode(self, texts):
        counts = torch.tensor([[t.count(c) + 0.01 for c in "aeinrst"] for t in texts])
        return torch.nn.functional.normalize(counts, dim=-1).numpy()


METHODS = {
    "base": lambda plain: plain,
    "self_critic": lambda plain: SelfCritic(plain, "Review your last reply.", "Please write it again."),
    "rag": lambda plain: Retrieval(plain, Letters(), "Earlier: {context} {message}", "{user}", "nothing", 2),
    "oracle": lambda plain: PromptedOracle(plain, "Know: {profile}"),
    "random": MisdirectedAnswers,
    "style": lambda plain: StyleOnly(plain, no_profile, "style"),
}


def prompted(policy):
    return Prompted("base", policy, "You talk with a user.", False, "none", 0.9, 24)


def open_run(folder):
    return runs.claim(config.load_config("smoke"), 3, folder, "params/smoke.yaml")


def parts_of(method):
    return [Part(method, name, people, AgendaUser(0, "user_test")) for name, people in PEOPLE.items()]


def play(run, policy, kind, parts=None):
    method = METHODS[kind](prompted(policy))
    return played.evaluate_together(run, parts or parts_of(method), *JUDGES, turns=TURNS, policy=policy)


@pytest.mark.parametrize("kind", METHODS)
def test_each_part_gets_what_it_would_get_alone(tmp_path, model, kind):
    together, alone = Watched(*model, reuse=True), []
    both = play(open_run(tmp_path / "both"), together, kind)
    for name in PEOPLE:
        policy = Watched(*model, reuse=True)
        [part] = [p for p in parts_of(METHODS[kind](prompted(policy))) if p.benchmark == name]
        alone += play(open_run(tmp_path / "alone"), policy, kind, [part])
    assert both == alone
    assert set(together.sizes) == {7} and len(together.sizes) == TURNS * (3 if kind == "self_critic" else 1)
    kept, other = (
        {f.name: f.read_bytes() for f in (tmp_path / name / "dialogues").iterdir()}
        for name in ("both", "alone")
    )
    assert kept == other and len(kept) == 2
    lines = open_run(tmp_path / "both").read_metrics("evaluation")
    assert [(r["benchmark"], r["turn"]) for r in lines] == [(b, t + 1) for t in range(TURNS) for b in PEOPLE]
    share = [r["method_s"] for r in lines[:2]]
    assert share[0] / share[1] == pytest.approx(4 / 3)


class Mortal(Watched):
    """Dies at its n-th call."""

    def __init__(self, *args, dies_at, **options):
        super().__init__(*args, **options)
        self.dies_at = dies_at

    def generate(self, *args, **options):
        if self._recalled is None and len(self.said) == self.dies_at:
            raise KeyboardInterrupt
        return super().generate(*args, **options)


@pytest.mark.parametrize("torn", ["", "extended", "vanilla"])
@pytest.mark.parametrize("kind", ["base", "self_critic", "rag"])
def test_a_killed_row_goes_on_with_the_same_bits(tmp_path, model, kind, torn):
    """Killed in turn 3, also between the marks of two benchmarks' turn 2 (`torn` lacks its own)."""
    calls = 3 if kind == "self_critic" else 1
    whole = Watched(*model, reuse=True)
    wanted = play(open_run(tmp_path / "whole"), whole, kind)
    run = open_run(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        play(run, Mortal(*model, reuse=True, dies_at=2 * calls), kind)
    if torn:
        key = f"{'base' if kind == 'base' else kind}-{torn}"
        run.mark_done(f"evaluation/{key}", run.fingerprint(key, "", "1"))
    later = Watched(*model, reuse=True)
    assert play(run, later, kind) == wanted
    assert later.said[-calls:] == whole.said[-calls:], "logarithms and all"
    before = len(whole.said) - len(later.said)
    assert before == 0, "what is known is read again, and nothing twice"


def test_a_part_that_is_far_ahead_is_read_back(tmp_path, model):
    run, policy = open_run(tmp_path / "run"), Watched(*model, reuse=True)
    first = parts_of(prompted(policy))[0]
    alone = play(run, policy, "base", [first])
    policy.sizes.clear()
    assert play(run, policy, "base")[0] == alone[0] and set(policy.sizes) == {3}


def test_policies_without_a_seed_a_prompt_are_asked_one_after_another():
    class Server:
        asked = []

        def generate(self, messages, n, *, seed, **_):
            self.asked.append((len(messages), seed))
            return LocalPolicy.generate(self.local, messages, n, seed=seed, temperature=0, max_new_tokens=1)

    server = Server()
    server.local = LocalPolicy(*models.load_model(config.load_config("smoke")))
    plain, cases = prompted(server), []
    for seed, part in enumerate(parts_of(plain), start=10):
        said = zip(part.start(), part.user.reply(part.personas, part.start()), strict=True)
        cases.append((plain, part.personas, [d.hear(utterance) for d, utterance in said], seed))
    answers = respond_together(cases)
    assert Server.asked == [(4, 10), (3, 11)] and list(map(len, answers)) == [4, 3]


def test_manners_are_met_in_one_batch(tmp_path, monkeypatch):
    """As notebook 35 plays them: the same people, one user model a manner."""
    keys = ["evaluation.methods=[base]", "rollout.max_new_tokens=24"]
    run = runs.claim(config.load_config("smoke", keys), 0, tmp_path / "run", "params/smoke.yaml")
    stage, sizes, real = Stage(run), [], LocalPolicy.generate

    def watched(self, messages, n, **options):
        sizes.append(len(messages))
        return real(self, messages, n, **options)

    monkeypatch.setattr(LocalPolicy, "generate", watched)
    people = PEOPLE["vanilla"]
    met = {m: (people, parties.make_user(run.cfg, "vanilla", 0, run, m)) for m in MANNERS}
    options = {"turns": 2, "swap": False, "log": "difficult"}
    found = stage.load_together(Row("base"), met, *JUDGES, **options)
    assert sizes == [4 * len(MANNERS)] * 2 and list(found) == list(MANNERS)
    assert all({r["benchmark"] for r in judged} == {name} for name, judged in found.items())
    assert stage.load_together(Row("base"), met, *JUDGES, **options) == found and len(sizes) == 2
    again = rows.read_dialogues(run, "base", "terse")
    assert [d.persona_id for d in again] == [p.id for p in people]
