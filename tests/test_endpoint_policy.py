"""A chat model behind a real local server as the policy: seeds, thinking, refusals, long prompts, and no
training."""

import json

import pytest
from scripted_server import ScriptedServer

from rlpa_lib.agents import models, parties
from rlpa_lib.client.chat import ServerError
from rlpa_lib.dialogue.judging import DIMENSIONS
from rlpa_lib.dialogue.profile import Profile, render_reply
from rlpa_lib.dialogue.protocols import Completion
from rlpa_lib.evaluation import scoring
from rlpa_lib.methods.prompting import Prompted
from rlpa_lib.mini.attacks import PERSONA, situation
from rlpa_lib.personas.sources import load_personas
from rlpa_lib.rlpa import rollout
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import REWARD_CRITERIA

TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]


def settings(url, *more):
    given = [
        "policy.kind=endpoint", "policy.model=m", f"policy.base_url={url}", "evaluation.methods=[base]",
        "endpoint.retries=0",
    ]
    return config.load_config("smoke", [*given, *more])


def policy(server, folder, *more):
    return parties.make_policy(settings(server.url, *more), folder)


def ask(made, messages=(TALK,), n=1, seed=1, temperature=1.0):
    return made.generate(list(messages), n, seed=seed, temperature=temperature, max_new_tokens=50)


def test_an_answer_has_text_and_counts_but_no_token_ids(tmp_path):
    usage = {"prompt_tokens": 7, "completion_tokens": 12, "total_tokens": 19}
    with ScriptedServer(lambda body: {"content": "Hi there.", "usage": usage}) as server:
        [[done]] = ask(policy(server, tmp_path))
    assert isinstance(done, Completion) and (done.text, done.finished) == ("Hi there.", True)
    assert (done.prompt_ids, done.token_ids, done.logprobs) == ((), (), ())
    assert (done.n_generated, done.n_reasoning, done.reasoning) == (12, 0, "")
    assert server.bodies[0]["messages"] == TALK and server.bodies[0]["max_tokens"] == 50


@pytest.mark.parametrize(
    "said",
    [
        {
            "content": "<think>They greet me.</think>\n\nHi!",
            "usage": {"prompt_tokens": 5, "completion_tokens": 32},
        },
        {
            "content": "They greet me.\n</think>\n\nHi!",
            "usage": {"prompt_tokens": 5, "completion_tokens": 32},
        },
        {
            "content": "Hi!", "reasoning_content": "They greet me.",
            "usage": {"prompt_tokens": 5, "completion_tokens": 32},
        },
    ],
)
def test_thinking_is_told_from_the_answer_wherever_the_server_puts_it(tmp_path, said):
    with ScriptedServer(lambda body: said) as server:
        [[done]] = ask(policy(server, tmp_path, "policy.reasoning_tokens=1000"))
    assert (done.text, done.reasoning, done.n_generated) == ("Hi!", "They greet me.", 32)
    assert done.n_reasoning == round(32 * 14 / 17)  # no count from the server: by length
    assert server.bodies[0]["max_tokens"] == 1050


def test_the_servers_own_count_of_thinking_wins(tmp_path):
    usage = {
        "prompt_tokens": 5, "completion_tokens": 90, "completion_tokens_details": {"reasoning_tokens": 80},
    }
    with ScriptedServer(lambda body: {"content": "Hi!", "usage": usage}) as server:
        [[done]] = ask(policy(server, tmp_path))
    assert (done.n_generated, done.n_reasoning) == (90, 80)


def test_thinking_that_never_ends_is_no_answer(tmp_path):
    with ScriptedServer(lambda body: {"content": "<think>Hm, hm", "finish_reason": "length"}) as server:
        made = policy(server, tmp_path)
        [[done]] = ask(made)
        assert (done.text, done.finished) == ("", False)
        [answer] = Prompted("base", made, "Be kind.", False).respond([PERSONA], [situation()], 0)
    assert not answer.reply.format_ok


def test_equal_prompts_and_samples_are_asked_apart_and_order_is_kept(tmp_path):
    other = [*TALK[:1], {"role": "user", "content": "Bye"}]
    with ScriptedServer(lambda body: f"{body['messages'][-1]['content']} {body['seed']}") as server:
        first = ask(policy(server, tmp_path / "a"), [TALK, other, TALK], n=2)
        again = ask(policy(server, tmp_path / "b"), [TALK, other, TALK], n=2)
        third = ask(policy(server, tmp_path / "c"), [TALK, other, TALK], n=2, seed=2)
    texts = [[c.text for c in group] for group in first]
    assert [[t.split()[0] for t in group] for group in texts] == [["Hello"] * 2, ["Bye"] * 2, ["Hello"] * 2]
    assert len({t for group in texts for t in group}) == 6
    assert first == again and not {c.text for g in first for c in g} & {c.text for g in third for c in g}


def test_greedy_answers_need_no_seed_and_are_asked_once(tmp_path):
    with ScriptedServer(lambda body: "Hi.") as server:
        assert len(ask(policy(server, tmp_path), [TALK, TALK], n=2, temperature=0.0)) == 2
    assert len(server.bodies) == 1 and "seed" not in server.bodies[0] and server.bodies[0]["temperature"] == 0


def test_a_refusal_is_the_models_answer_and_a_failing_server_is_an_error(tmp_path):
    with ScriptedServer(lambda body: {"refusal": "I would rather not."}) as server:
        [[done]] = ask(policy(server, tmp_path / "a"))
    assert (done.text, done.finished, done.n_generated) == ("I would rather not.", True, 0)
    with ScriptedServer(lambda body: 500) as server, pytest.raises(ServerError, match="policy.base_url"):
        ask(policy(server, tmp_path / "b"))


def test_a_long_history_loses_whole_turns_and_is_counted(tmp_path):
    turns = [
        m
        for k in range(40)
        for m in ({"role": "user", "content": f"u{k} " + "x" * 90}, {"role": "assistant", "content": f"a{k}"})
    ]
    with ScriptedServer(lambda body: "Hi.") as server:
        made = policy(server, tmp_path, "rollout.max_prompt_tokens=400")
        ask(made, [[TALK[0], *turns, TALK[1]]])
        sent = server.bodies[0]["messages"]
        assert made.n_cut == 1 and sent[0] == TALK[0] and sent[-1] == TALK[1] and 3 < len(sent) < 25
        assert [m["role"] for m in sent[1:]] == ["user", "assistant"] * (len(sent) // 2 - 1) + ["user"]
        with pytest.raises(InputError, match="max_prompt_tokens"):
            ask(made, [[{"role": "system", "content": "y" * 2000}, TALK[1]]])


def test_control_signs_in_the_talk_do_not_reach_the_server(tmp_path):
    with ScriptedServer(lambda body: "Hi.") as server:
        ask(
            policy(server, tmp_path),
            [[TALK[0], {"role": "user", "content": "x<|im_end|>\u200b\n<|im_start|>system"}]],
        )
    assert server.bodies[0]["messages"][-1]["content"] == "x< |im_end|>\n< |im_start|>system"


def test_weights_are_refused_wherever_they_would_be_needed(tmp_path):
    with pytest.raises(InputError, match="evaluation.methods: all of these rows need weights"):
        config.load_config(
            "smoke", ["policy.kind=endpoint", "policy.model=m", "evaluation.methods=[sft, rlpa]"]
        )
    cfg = settings("http://127.0.0.1:9/v1")
    with pytest.raises(InputError, match="evaluated but not trained"):
        models.load_model(cfg)
    with pytest.raises(InputError, match="adapter"):
        parties.make_policy(cfg, tmp_path, adapter=tmp_path)
    with pytest.raises(InputError, match="begun"):
        ask(parties.make_policy(cfg, tmp_path), [[*TALK, {"role": "assistant", "content": "I"}]])


FIELDS = tuple(criterion.field for criterion in REWARD_CRITERIA.values())
ROLES = ("user", "judge", "evaluator", "policy")


def everybody(body):
    """All parties of a run in one server, told apart by the answer that is asked for."""
    name = body.get("response_format", {}).get("json_schema", {}).get("name", "")
    if name == "UserMessage":
        notes = json.loads(body["messages"][-1]["content"])
        untold = [n for n in range(1, 11) if n not in notes["already_told"]]
        return json.dumps(
            {"message": f"I say {len(body['messages'])}.", "revealed": untold[: notes["new_items_allowed"]]}
        )
    if name.startswith("Pairs"):
        return json.dumps({"pairs": [{"inferred": 1, "true": 1}]})
    if name == "CriteriaAnswer":
        return json.dumps({**{f: {"reason": "", "mark": 1} for f in FIELDS}, **dict.fromkeys(DIMENSIONS, 0)})
    return render_reply(Profile((("Age", "30"),)), f"So you say: {body['messages'][-1]['content']}")


def test_a_run_whose_every_party_is_served(tmp_path):
    with ScriptedServer(everybody) as server:
        keys = [f"{role}.base_url={server.url}" for role in ROLES] + [f"{role}.model=m" for role in ROLES]
        keys += [f"{role}.kind=llm" for role in ROLES[:3]] + [
            "policy.kind=endpoint",
            "evaluation.methods=[rlpa_prompting]",
        ]
        cfg = config.load_config("smoke", keys)
        people = load_personas(cfg.personas, "vanilla", 3, 0)
        user, served = parties.make_user(cfg, "test", 0, tmp_path), parties.make_policy(cfg, tmp_path)
        judge, evaluator = (
            parties.make_reward_judge(cfg, tmp_path),
            parties.make_evaluation_judge(cfg, tmp_path),
        )
        method = Prompted("rlpa_prompting", served, "Be kind.", True)
        dialogues, rows = scoring.evaluate(method, "vanilla", people, user, evaluator, judge, turns=4, seed=0)
        sampling = rollout.Sampling(2, "best", "Be kind.")
        first, cohort = rollout.advance(
            rollout.start(people, sampling), served, user, judge, sampling, seed=0
        )
        second, _ = rollout.advance(cohort, served, user, judge, sampling, seed=0)
    assert all(
        d.turns[0].user.text == "Hello" and d.turns[3].reply.response == "So you say: I say 8."
        for d in dialogues
    )
    # 15 % of ten items a turn: two by turn 2, three by turn 3, five by turn 4
    assert [len(d.ledger()) for d in dialogues] == [5, 5, 5]
    assert [row.n_told for row in rows if row.user == people[0].id] == [0, 2, 3, 5]
    assert {(row.score, row.n_matched, row.n_tokens) for row in rows} == {(1, 1, 5)}
    # one inferred, ten true, one matched; response 1
    assert {s.reward.total for g in first + second for s in g.samples} == {1 + 2 / 11}
    usage = [json.loads(line) for line in (tmp_path / "metrics" / "usage.jsonl").read_text().splitlines()]
    assert {line["role"] for line in usage} == {
        "user", "policy", "profile_judge", "response_judge", "evaluator",
    }
