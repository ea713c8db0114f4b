"""Long dialogues (section 5.3): what was revealed, by ledger and by judge; scores at checkpoints; what the
window cost; kills in mid-run."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from scripted_server import ScriptedServer

from rlpa_lib import runs
from rlpa_lib.agents import parties
from rlpa_lib.agents.local_policy import LocalPolicy
from rlpa_lib.dialogue.dialogue import Dialogue, Turn, Utterance
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.evaluation import conflict, long_term, played
from rlpa_lib.methods.controls import OracleControl
from rlpa_lib.methods.prompting import Prompted
from rlpa_lib.mini.attacks import PERSONA
from rlpa_lib.mini.judge import RuleRevealJudge
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.mini.play import play_careful
from rlpa_lib.mini.user import AgendaUser
from rlpa_lib.settings import config


def talk(*said):
    """A dialogue of these utterances, (text, stated slots) each."""
    return Dialogue(
        "d",
        PERSONA.id,
        tuple(Turn(Utterance(text, stated), "", Reply(Profile(), "I see.", True)) for text, stated in said),
    )


HAND = talk(
    ("Hello", ()), ("I am at home in Lisbon.", ("Location",)), ("For fun I really enjoy rock climbing.", ()),
    ("Well.", ("Age",)),
)


def test_checkpoints_are_those_of_the_paper():
    assert long_term.list_checkpoints(70, 10) == [1, 10, 20, 30, 40, 50, 60, 70]
    assert (
        long_term.list_checkpoints(3, 10) == [1]
        and long_term.list_checkpoints(3, 2) == [1, 2]
        and long_term.list_checkpoints(4, 1) == [1, 2, 3, 4]
    )


def test_what_was_revealed_by_hand():
    """The ledger has a false entry at turn 4 (Age, not in the words) and misses one at turn 3 (Interests)."""
    table = long_term.track_revealed([PERSONA], [HAND], [1, 2, 3, 4], RuleRevealJudge(), by_judge=False)
    assert table["by_ledger"].tolist() == [0, 1, 1, 2] and table["by_judge"].tolist() == [0, 1, 2, 2]
    assert table["agree"].tolist() == [10, 10, 9, 8] and table["told"].tolist() == [0, 1, 1, 2]
    assert long_term.track_revealed([PERSONA], [HAND], [3], RuleRevealJudge(), by_judge=True)[
        "told"
    ].tolist() == [2]
    facts = long_term.compare_ledgers(table)
    # 40 slots: both told 0+1+1+1 = 3, ledger alone 1, judge alone 2, neither 34. Chance: (4*5 + 36*35) / 1600
    # = 0.8.
    assert (
        facts["slots"] == 40
        and facts["agreement"] == pytest.approx(37 / 40)
        and facts["kappa"] == pytest.approx((0.925 - 0.8) / 0.2)
    )
    assert (
        facts["max_by_ledger"] == pytest.approx(0.1)
        and facts["max_by_judge"] == pytest.approx(0.125)
        and facts["unjudged"] == 0
    )


def test_reading_the_words_of_the_miniature_agrees_with_the_ledger():
    for split, speech in (("vanilla", "user_test"), ("extended", "user_test"), ("train", "user_train")):
        people = builtin_personas(split, 10, 0)
        dialogues = play_careful(people, AgendaUser(0, speech), 12, 0)
        facts = long_term.compare_ledgers(
            long_term.track_revealed(people, dialogues, [1, 6, 12], RuleRevealJudge(), by_judge=False)
        )
        assert facts["kappa"] > 0.97, (split, facts)


def test_what_somebody_else_does_is_not_revealed():
    heard = talk(("A friend sent me a postcard from Lisbon.", ()), ("I am at home in Madrid.", ()))
    assert RuleRevealJudge().find_revealed([(PERSONA, heard)]) == [frozenset()]


def test_a_language_model_decides_and_long_talks_are_asked_in_parts(tmp_path):
    def answers(body):
        shown = body["messages"][-1]["content"]
        return json.dumps(
            {
                "revealed": [9]
                if "home in Lisbon" in shown
                else [3, "1"]
                if "love rock climbing" in shown
                else []
            }
        )

    with ScriptedServer(answers) as server:
        more = [
            "judge.kind=llm", "judge.model=m", f"judge.base_url={server.url}", "run.prompt_set=en",
            "judge.max_prompt_tokens=1300",
        ]
        judge = parties.make_reveal_judge(config.load_config("smoke", more), tmp_path)
        [short] = judge.find_revealed([(PERSONA, HAND)])
        n_short = len(server.bodies)
        filler = [("word " * 150, ())] * 8
        [whole] = judge.find_revealed(
            [(PERSONA, talk(("My home in Lisbon.", ()), *filler, ("I love rock climbing.", ())))]
        )
    assert short == {"Location"} and n_short == 1
    assert len(server.bodies) > n_short + 2 and whole == {"Location", "Interests", "Age"}
    sent = " ".join(b["messages"][-1]["content"] for b in server.bodies[n_short:])
    # every word of the user, none of the assistant's
    assert sent.count("word word") >= 8 and "I see." not in sent


def test_an_answer_that_cannot_be_read_is_a_gap_and_not_zero(tmp_path):
    with ScriptedServer(lambda body: json.dumps({"revealed": [11]})) as server:  # there are ten items
        more = [
            "judge.kind=llm", "judge.model=m", f"judge.base_url={server.url}", "run.prompt_set=en",
            "run.max_judge_failure_rate=1.0", "endpoint.retries=0", "endpoint.parse_retries=0",
        ]
        table = long_term.track_revealed(
            [PERSONA], [HAND], [2], parties.make_reveal_judge(config.load_config("smoke", more), tmp_path),
            by_judge=True,
        )
    assert (
        table["by_judge"].isna().all() and table["told"].isna().all() and table["by_ledger"].tolist() == [1]
    )
    assert long_term.compare_ledgers(pd.concat([table, table]))["unjudged"] == 2


def judged(user, turn, matched, told, inferred=4, dropped=0):
    return {
        "user": user, "turn": turn, "n_matched": matched, "n_true": 10, "n_told": told,
        "n_inferred": inferred, "n_dropped": dropped, "profile_f1": 2 * matched / (inferred + 10),
    }


def test_progress_by_hand():
    """Three users alike, two checkpoints: 2 of 4 items right and 3 of 10 slots told, then 4 of 6 and 5."""
    rows = (
        [judged(u, 1, 2, 3) for u in "abc"]
        + [judged(u, 2, 4, 5, 6) for u in "abc"]
        + [judged(u, 3, 0, 5) for u in "abc"]
    )
    told = pd.DataFrame(
        [(u, t, n) for u in "abc" for t, n in ((1, 3), (2, 5))], columns=["user", "turn", "told"]
    )
    data = long_term.progress_table({"rlpa": rows}, {"rlpa": told})
    value = data.set_index(["measure", "turn"])["value"]
    assert value["profile score", 1] == pytest.approx(100 * 4 / 14) and value[
        "profile score", 2
    ] == pytest.approx(50)
    assert value["recall", 1] == pytest.approx(20) and value["Theoretical Max", 2] == pytest.approx(50)
    assert value["best score", 1] == pytest.approx(100 * 6 / 13) and len(data) == 8  # turn 3 is no checkpoint
    assert (data["low"] <= data["value"] + 1e-9).all() and (data["value"] <= data["high"] + 1e-9).all()
    [average] = long_term.average_table(data).to_dict("records")
    assert average["method"] == "rlpa" and average["Theoretical Max"] == pytest.approx(40)


def test_what_the_window_cost_by_hand():
    rows = [
        judged("a", 1, 0, 0), judged("a", 2, 0, 0), judged("a", 3, 0, 0, dropped=1),
        judged("a", 4, 0, 0, dropped=3),
    ]
    first, second = long_term.window_table({"rlpa": rows}, 2).to_dict("records")
    assert first == {
        "method": "rlpa", "turns": "1-2", "dropped": 0.0, "most": 0, "prompts_cut": 0.0, "profiles_lost": 0,
    }
    # At turn 4 all three turns before are gone, and the latest profile block with them.
    assert second == {
        "method": "rlpa", "turns": "3-4", "dropped": 2.0, "most": 3, "prompts_cut": 1.0, "profiles_lost": 1,
    }


def line(turn, seconds, memory, method="rlpa"):
    return {
        "method": method, "turn": turn, "method_s": seconds, "user_s": 0.1, "judges_s": 0.2,
        "memory_mb": memory,
    }


def test_growth_and_cost_by_hand():
    """Six turns: quadratic time against linear. The middle third is turns 3-4, the last 5-6; linear growth
    gives 5.5 / 3.5."""
    # the first two were played again
    lines = [line(k, 99.0, 0) for k in (1, 2)] + [line(k, k**2, 100 + k) for k in range(1, 7)]
    growth = long_term.growth_table(lines).set_index("quantity")
    assert growth.loc["method_s", "times"] == pytest.approx((25 + 36) / (9 + 16)) and growth.loc[
        "method_s", "linear"
    ] == pytest.approx(5.5 / 3.5)
    assert growth.loc["user_s", "times"] == 1.0 and growth.loc["memory_mb", "times"] == pytest.approx(
        105.5 / 103.5
    )
    first, *_ = long_term.cost_table(lines, 10, 3).to_dict("records")
    assert (
        first["turns"] == "1-3"
        and first["method_ms"] == pytest.approx(100 * 14 / 3)
        and first["memory_mb"] == 103
    )
    assert long_term.growth_table([line(1, 1, 1)]).isna().any(axis=None)  # too short to tell, and no error


class Slow(OracleControl):
    """The oracle, which takes its time."""

    def respond(self, *args):
        time.sleep(0.25)
        return super().respond(*args)


def play(folder, method):
    """A conflict of ten turns and a long dialogue of twelve, as the notebooks play them; folders that are not
    finished go on."""
    cfg = config.load_config("smoke")
    run = runs.claim(cfg, 0, Path(folder), "params/smoke.yaml")
    people = parties.load_people(cfg, "vanilla", 3, 0)
    shifting, willing = (
        parties.make_shifting_user(cfg, conflict.draw_shifts(people, 0), 0),
        parties.make_user(cfg, "vanilla", 0),
    )
    judges, common = (parties.make_evaluation_judge(cfg), parties.make_reward_judge(cfg)), {"swap": False}
    played.evaluate_row(
        run, method, "conflict", people, shifting, *judges, turns=10, valid=shifting.valid, log="conflict",
        **common,
    )
    played.evaluate_row(
        run, method, "long_term", people, willing, *judges, turns=12, log="long_term", **common
    )


def outcome(folder):
    kinds = ("dialogues", "judgements")
    return {
        f"{kind}-{name}": (folder / kind / f"oracle-{name}.jsonl").read_bytes()
        for kind in kinds
        for name in ("conflict", "long_term")
    }


@pytest.mark.slow
def test_conflict_and_long_term_go_on_after_sigkill(tmp_path):
    """Killed in the conflict and again in the long dialogue, then finished: byte for byte what an undisturbed
    run leaves."""
    play(tmp_path / "whole", OracleControl())
    code = "import sys; from test_long_term import Slow, play; play(sys.argv[1], Slow())"
    for waits_for, turn in (("conflict", 7), ("long_term", 5)):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "killed")], cwd=Path(__file__).parent
        )
        log = tmp_path / "killed" / "metrics" / f"{waits_for}.jsonl"
        for _ in range(1200):
            if log.exists() and len(log.read_text().splitlines()) >= turn:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL
    played = [
        json.loads(text)["turn"]
        for text in (tmp_path / "killed/metrics/long_term.jsonl").read_text().splitlines()
    ]
    assert 5 <= played[-1] < 12
    play(tmp_path / "killed", OracleControl())
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    again = [
        json.loads(text)["turn"]
        for text in (tmp_path / "killed/metrics/long_term.jsonl").read_text().splitlines()
    ]
    # nothing that was done is done again
    assert again[: len(played)] == played and again[len(played)] in (played[-1], played[-1] + 1)


def test_seventy_turns_keep_to_the_window_and_say_what_was_dropped(tiny_random_model, tmp_path):
    """A real policy with room for few turns: only the oldest go, the latest block and the words that wait
    stay, and every row says how many."""
    model, tokenizer = tiny_random_model
    seen = []

    class Watching(LocalPolicy):
        def generate(self, messages, n, **options):
            answers = super().generate(messages, n, **options)
            seen.extend(
                (m, self.tokenizer.decode(c[0].prompt_ids), c[0].dropped)
                for m, c in zip(messages, answers, strict=True)
            )
            return answers

    policy = Watching(model, tokenizer, max_prompt_tokens=700)
    block = Profile((("Location", "LATEST BLOCK"),))
    turns = tuple(
        Turn(Utterance(f"utterance {k:02d}"), "", Reply(block, f"response {k:02d}", True)) for k in range(69)
    )
    dialogue = Dialogue("d", "p", turns).hear(Utterance("the last words"))
    method = Prompted("rlpa", policy, "SYSTEM", True, max_new_tokens=2)
    [answer] = method.respond([Persona("p", "", "", Profile())], [dialogue], 0)
    [(messages, prompt, dropped)] = seen
    assert len(messages) == 2 + 2 * 69 and answer.n_dropped == dropped > 50
    assert "SYSTEM" in prompt and "the last words" in prompt and prompt.count("LATEST BLOCK") == 1
    kept = [k for k in range(69) if f"utterance {k:02d}" in prompt]
    # the oldest go, and no others
    assert kept == list(range(dropped, 69)) == [k for k in range(69) if f"response {k:02d}" in prompt]
