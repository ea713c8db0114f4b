"""VLLMPolicy against pretended servers over real HTTP: what is sent, what is redone, what is refused.
tests/real_vllm has the real ones."""

import asyncio
import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer
from pretend_vllm import PretendVLLM
from test_trainer import config, quiet, same, served

from rlpa_lib import runs
from rlpa_lib.agents.vllm_client import ServerLost, Weights, read_weights
from rlpa_lib.agents.vllm_policy import NoServerLeft, StaleSamples, VLLMPolicy, read_completions, too_old
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.evaluation import rows
from rlpa_lib.rlpa import ppo
from rlpa_lib.settings.config import InputError, load_config

TOKENIZER = byte_tokenizer()
END = TOKENIZER.eos_token_id


def prompts(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


SIX = prompts("a", "b", "c", "d", "e", "f")


@pytest.fixture
def servers():
    """Makes servers that are closed at the end."""
    made = []

    def make(*args, **kwargs):
        made.append(PretendVLLM(*args, **kwargs))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def policy_of():
    def make(*servers, **settings):
        return VLLMPolicy(TOKENIZER, [s.url for s in servers], timeout=10.0, **settings)

    return make


@pytest.fixture
def adapter(tmp_path):
    def make(content, name=None):
        folder = tmp_path / (name or f"made-{content}")
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps({"r": 8}))
        (folder / "adapter_model.safetensors").write_bytes(content.encode())
        return folder

    return make


def sample(policy, messages=SIX, n=2, seed=1, temperature=1.0, length=8):
    return policy.generate(messages, n, seed=seed, temperature=temperature, max_new_tokens=length)


def ids(groups):
    return [[c.token_ids for c in group] for group in groups]


# ---- pure parts


def test_too_old_counts_updates_behind_the_newest():
    assert too_old([3, 2, 1, 0], newest=3, allowed=1) == [2, 3]
    assert too_old([3, 3], newest=3, allowed=0) == []
    assert too_old([2], newest=3, allowed=0) == [0]


def test_adapter_names_tell_weights_and_version_apart(adapter, tmp_path):
    one = read_weights(adapter("x"), 1)
    assert one.version == 1 and one.name.startswith(one.owner + "v1-")
    assert read_weights(adapter("y"), 1).name != one.name
    assert read_weights(adapter("x"), 2).name != one.name
    assert read_weights(adapter("x", "beside"), 1).name == one.name
    (tmp_path / "run").mkdir()
    assert read_weights(adapter("x", "run/v1"), 1).owner != one.owner
    with pytest.raises(InputError, match="no adapter here"):
        read_weights(tmp_path / "nothing", 1)


@pytest.mark.parametrize(
    ("key", "value"), [("use_dora", True), ("bias", "all"), ("lora_bias", True), ("modules_to_save", ["x"])]
)
def test_adapters_that_servers_would_apply_in_part_are_refused_by_name(adapter, key, value):
    file = adapter("x") / "adapter_config.json"
    file.write_text(json.dumps({"r": 8, key: value}))
    with pytest.raises(InputError, match=f"adapter_config.json: vLLM servers do not apply its {key}"):
        read_weights(file.parent, 1)
    file.write_text(json.dumps({"r": 8, key: None, "bias": "none"}))
    assert read_weights(file.parent, 1)


def answer_with(**changes):
    choice = {
        "index": 0, "token_ids": [70, 71, END], "logprobs": {"token_logprobs": [-1.0, -2.0, -0.5]},
        "finish_reason": "stop",
    }
    choice |= {"prompt_token_ids": [5, 6]}
    return {"model": "a", "choices": [{**choice, **changes}]}


def test_an_answer_becomes_a_completion():
    [made] = read_completions(answer_with(), [5, 6], Weights("a", version=4), TOKENIZER)
    assert (
        made.prompt_ids == (5, 6) and made.token_ids == (70, 71, END) and made.logprobs == (-1.0, -2.0, -0.5)
    )
    assert made.finished and made.version == 4 and made.text == TOKENIZER.decode([70, 71])
    [cut] = read_completions(answer_with(finish_reason="length"), [5, 6], Weights("a"), TOKENIZER)
    assert not cut.finished and cut.text == TOKENIZER.decode([70, 71, END])


@pytest.mark.parametrize(
    "changes", [{"prompt_token_ids": [5]}, {"token_ids": [70]}, {"token_ids": None}, {"logprobs": None}]
)
def test_an_answer_that_does_not_fit_is_refused(changes):
    with pytest.raises(ServerLost, match="is it vLLM"):
        read_completions(answer_with(**changes), [5, 6], Weights("a"), TOKENIZER)


def test_an_answer_by_other_weights_is_refused():
    with pytest.raises(ServerLost, match="asked for b"):
        read_completions(answer_with(), [5, 6], Weights("b"), TOKENIZER)


def test_sampler_gap_by_hand():
    trainer, sampler = torch.tensor([[-1.0, -2.0, 9.0]]), torch.tensor([[-1.5, -1.8, 0.0]])
    gap = ppo.sampler_gap(trainer, sampler, torch.tensor([[True, True, False]]))
    assert gap == pytest.approx({"sampler_gap": 0.35, "sampler_max_ratio": torch.tensor(0.5).exp().item()})


def test_truncated_importance_by_hand():
    weights = ppo.truncated_importance(
        torch.log(torch.tensor([0.2, 0.9])), torch.log(torch.tensor([0.4, 0.1])), 2.0
    )
    assert weights.tolist() == pytest.approx([0.5, 2.0])


# ---- sampling


def test_what_is_asked_for(servers, policy_of):
    server = servers()
    groups = sample(policy_of(server), prompts("a"), n=3, temperature=0.7, length=5)
    [body] = server.requests
    wanted = {
        "model": "tiny", "n": 3, "temperature": 0.7, "max_tokens": 5, "top_p": 1.0, "stop_token_ids": [END],
        "ignore_eos": True, "logprobs": 0,
    }
    assert {key: body[key] for key in wanted} == wanted and tuple(body["prompt"]) == groups[0][0].prompt_ids
    assert [c.finished for c in groups[0]] == [True, False, True]
    assert 0 <= body["seed"] < 2**62


def test_same_seed_same_samples_and_equal_prompts_are_drawn_apart(servers, policy_of):
    server = servers()
    policy = policy_of(server)
    twice = prompts("a", "b", "a")
    first = ids(sample(policy, twice))
    assert ids(sample(policy, twice)) == first != ids(sample(policy, twice, seed=2))
    assert first[0] != first[2]
    assert ids(sample(policy, prompts("b"))) == [first[1]]


def test_prompts_go_round_the_servers_and_samples_stay_together(servers, policy_of):
    one, two = servers(), servers()
    groups = sample(policy_of(one, two), n=2)
    asked = [Counter(tuple(body["prompt"]) for body in server.requests) for server in (one, two)]
    assert asked[0] == Counter(groups[i][0].prompt_ids for i in (0, 2, 4)) and asked[1] == Counter(
        groups[i][0].prompt_ids for i in (1, 3, 5)
    )
    assert ids(groups) == ids(sample(policy_of(two), n=2)), "which server draws does not matter"


def test_requests_in_flight_are_bounded(servers, policy_of):
    server = servers(seconds=0.05)
    sample(policy_of(server, concurrency=2), prompts(*"abcdefgh"))
    assert server.busiest == 2


def test_inside_a_running_event_loop(servers, policy_of):
    async def cell():
        return sample(policy_of(servers()))

    assert len(asyncio.run(cell())) == 6


def test_long_prompts_lose_turns_and_are_counted(servers, policy_of):
    turns = [{"role": role, "content": "x" * 30} for role in ("user", "assistant", "user")]
    policy = policy_of(servers(), max_prompt_tokens=70)
    assert len(sample(policy, [turns])[0][0].prompt_ids) <= 70 and policy.n_cut == 1


def test_impossible_settings_are_refused(servers, policy_of):
    for bad in ({"n": 0}, {"temperature": -1.0}, {"length": 0}):
        with pytest.raises(InputError, match="needs n >= 1"):
            sample(policy_of(servers()), **bad)
    for urls in ([], ["http://a/v1", "http://a/v1"]):
        with pytest.raises(InputError, match="policy.servers"):
            VLLMPolicy(TOKENIZER, urls)


# ---- failures


def test_a_server_that_dies_in_the_middle_is_dropped(servers, policy_of):
    one, two = servers(), servers()
    want = ids(sample(policy_of(one)))

    def die(path, body, count):
        two.dead = count > 1
        return "hang up" if two.dead else None

    two.fail = die
    policy = policy_of(one, two)
    with pytest.warns(UserWarning, match="dropped"):
        groups = sample(policy)
    assert ids(groups) == want and policy.n_redone > 0
    assert [s.gone != "" for s in policy.servers] == [False, True]


def test_none_left_is_a_clear_error_and_can_be_gone_on_from(servers, policy_of):
    server = servers()
    server.dead = True
    policy = policy_of(server)
    with (
        pytest.warns(UserWarning, match="dropped"),
        pytest.raises(NoServerLeft, match=rf"{server.url}: .*checkpoint"),
    ):
        sample(policy)
    server.dead = False
    assert len(sample(policy)) == 6, "servers that were started again are found"


@pytest.mark.parametrize("fault", ["hang up", (500, "engine trouble"), (503, "busy"), (429, "slow down")])
def test_a_passing_fault_is_retried_on_the_same_server(servers, policy_of, fault):
    one, two = servers(lambda path, body, count: fault if count == 1 else None), servers()
    policy = policy_of(one, two)
    groups = sample(policy)
    assert len(one.requests) == 3 and policy.n_redone == 0
    assert ids(groups) == ids(sample(policy_of(two)))


def test_a_fault_that_stays_drops_the_server_with_its_words(servers, policy_of):
    policy = policy_of(servers(lambda *_: (500, "engine trouble")), servers(), retries=1)
    with pytest.warns(UserWarning, match="engine trouble"):
        assert len(sample(policy)) == 6


def test_a_request_that_was_broken_off_is_not_taken_for_an_answer(servers, policy_of):
    server = servers()
    whole, broken = server.answer, []

    def answer(path, body):
        status, made = whole(path, body)
        if not broken:
            broken.append(body)
            made["choices"][0]["finish_reason"] = "abort"
        return status, made

    server.answer = answer
    groups = sample(policy_of(server), prompts("a"))
    assert len(server.requests) == 2 and {c.finished for c in groups[0]} == {True, False}


def test_a_refused_request_is_the_users_fault_and_not_sent_again(servers, policy_of):
    server = servers(lambda *_: (400, "prompt too long"))
    with pytest.raises(InputError, match="policy.servers: .*400: prompt too long"):
        sample(policy_of(server), prompts("a"))
    assert server.count == 1
    server.fail = lambda *_: (401, "who are you")
    with pytest.raises(InputError, match="401.*VLLM_API_KEY"):
        sample(policy_of(server), prompts("a"))


# ---- adapters


def test_swapping_loads_once_everywhere_and_gives_back_the_old(servers, policy_of, adapter):
    one, two = servers(), servers()
    one.adapters["someone-elses"] = adapter("z")
    policy = policy_of(one, two)
    assert {c.version for g in sample(policy) for c in g} == {0}
    for version, weights in ((1, "x"), (2, "yy")):
        policy.load_weights(adapter(weights), version)
        assert {c.version for g in sample(policy) for c in g} == {version} == {policy.version}
    assert list(one.adapters) == ["someone-elses", policy.newest.name] and list(two.adapters) == [
        policy.newest.name
    ]
    assert Counter(kind for kind, _ in one.changes + two.changes) == {"load": 4, "unload": 2}
    policy_of(one, two).load_weights(adapter("yy"), 2)
    assert len(one.changes) == 3, "another process of the run finds it loaded"


def test_two_processes_may_load_at_the_same_moment(servers, policy_of, adapter):
    server, folder = servers(seconds=0.1), adapter("x")
    policies = [policy_of(server) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda p: p.load_weights(folder, 1), policies))
    assert list(server.adapters) == [policies[0].newest.name]


def test_a_server_that_was_started_anew_gets_the_adapter_again(servers, policy_of, adapter):
    server = servers()
    policy = policy_of(server)
    policy.load_weights(adapter("x"), 1)
    server.adapters.clear()
    groups = sample(policy)
    assert {c.version for g in groups for c in g} == {1} and len(groups) == 6
    assert [kind for kind, _ in server.changes] == ["load", "load"]


def refuses(word):
    return lambda path, body, count: (
        (500, "rank too high") if path.endswith("load_lora_adapter") and word in body["lora_path"] else None
    )


@pytest.mark.parametrize(("lag", "kept"), [(0, False), (1, True)])
def test_a_server_that_keeps_the_old_adapter_is_used_within_the_allowed_lag(
    servers, policy_of, adapter, lag, kept
):
    one, two = servers(), servers(refuses("made-y"))
    policy = policy_of(one, two, max_policy_lag=lag)
    policy.load_weights(adapter("x"), 1)
    if kept:
        policy.load_weights(adapter("y"), 2)
    else:
        with pytest.warns(UserWarning, match="rank too high"):
            policy.load_weights(adapter("y"), 2)
    versions = [g[0].version for g in sample(policy)]
    assert versions == ([2, 1] * 3 if kept else [2] * 6)


def test_an_adapter_that_nobody_takes_is_an_error(servers, policy_of, adapter):
    policy = policy_of(servers(refuses("made-y")))
    with pytest.warns(UserWarning, match="dropped"), pytest.raises(NoServerLeft, match="rank too high"):
        policy.load_weights(adapter("y"), 1)


@pytest.mark.parametrize(("lag", "versions"), [(0, [2] * 6), (1, [1] + [2] * 5)])
def test_samples_that_became_too_old_are_drawn_again(servers, policy_of, adapter, lag, versions):
    """The adapter is swapped while the first answer is under way."""
    server = servers()
    policy = policy_of(server, max_policy_lag=lag, concurrency=1)
    policy.load_weights(adapter("x"), 1)
    whole, swapped = server.answer, []

    def answer(path, body):
        made = whole(path, body)
        if path.endswith("completions") and not swapped:
            swapped.append(True)
            newest = read_weights(adapter("y"), 2)
            server.adapters = {newest.name: newest.folder}
            policy.newest = newest
        return made

    server.answer = answer
    assert [g[0].version for g in sample(policy)] == versions


def test_samples_that_stay_too_old_are_an_error(servers, policy_of, adapter):
    server = servers()
    policy = policy_of(server)
    whole, versions = server.answer, iter(range(2, 100))

    def answer(path, body):
        made = whole(path, body)
        if path.endswith("completions"):
            policy.newest = read_weights(adapter("y"), next(versions))
        return made

    server.answer = answer
    with pytest.raises(StaleSamples, match="max_policy_lag = 0"):
        sample(policy, prompts("a"))


# ---- training


def test_training_stops_clearly_without_servers_and_goes_on_exactly(
    servers, policy_of, tmp_path, monkeypatch
):
    monkeypatch.setattr("rlpa_lib.rlpa.rollout.parse_reply", lambda text: Reply(Profile(), text, True))
    server, cfg = servers(), config(policy={"lora_dropout": 0.0})

    def train(folder):
        return served(tmp_path / folder, policy_of(server), cfg).train(say=quiet)

    whole = train("whole")
    answered = len(server.requests)

    def die(path, body, count):
        server.dead = path.endswith("completions") and len(server.requests) >= answered + 8
        return "hang up" if server.dead else None

    server.fail = die
    with pytest.warns(UserWarning, match="dropped"), pytest.raises(NoServerLeft, match="last checkpoint"):
        train("stopped")
    server.fail, server.dead = lambda *_: None, False
    assert same(train("stopped")) == same(whole) and len(server.requests) > answered + 8


# ---- whole models (policy.tuning: full), and servers that sleep


@pytest.fixture
def model(tmp_path):
    """Makes a folder that holds a whole model."""

    def make(content):
        folder = tmp_path / f"model-{content}"
        if folder.exists():
            return folder
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(content.encode())
        return folder

    return make


def path(url):
    return url.partition("?")[0]


def test_a_whole_model_is_read_in_place_while_no_request_runs(servers, policy_of, model):
    one, two = servers(updates=True), servers(updates=True)
    policy = policy_of(one, two)
    before = ids(sample(policy))
    for version, weights in ((1, "x"), (2, "yy")):
        policy.load_weights(model(weights), version)
        assert {c.version for g in sample(policy) for c in g} == {version}
        assert one.whole == two.whole == str(model(weights)) and one.word == policy.newest.name
    assert ids(sample(policy)) != before
    swap = ["/pause", "/update_weight_version", "/collective_rpc", "/update_weight_version", "/resume"]
    assert [path(url) for url in one.calls] == 2 * swap and "clear_cache=true" in one.calls[0], (
        "key-value blocks of the old weights must not be found again"
    )
    policy_of(one, two).load_weights(model("yy"), 2)
    assert len(one.calls) == 10, "another process of the run finds it loaded"


def test_rows_with_adapters_and_with_the_base_follow_a_whole_model(servers, policy_of, model, adapter):
    """Rows of one run at `policy.tuning: full`: PPO's model, SFT's adapter on the base, the base itself."""
    server = servers(updates=True)
    policy_of(server).load_weights(model("x"), 1)
    with_adapter = policy_of(server)
    with_adapter.load_weights(adapter("z"), 1)
    assert server.whole == server.STARTED and {c.version for g in sample(with_adapter) for c in g} == {1}
    policy_of(server).load_weights(model("x"), 1)
    assert {c.version for g in sample(policy_of(server)) for c in g} == {0} and server.word == "default"


def test_a_restarted_server_gets_the_whole_model_again_and_its_base_samples_are_not_taken(
    servers, policy_of, model
):
    server = servers(updates=True)
    policy = policy_of(server)
    policy.load_weights(model("x"), 1)
    want = ids(sample(policy))
    server.restart()
    assert ids(sample(policy)) == want
    answer, restarted = server.answer, []

    def restart_within(url, body):
        made = answer(url, body)
        if not restarted:
            restarted.append(server.restart())
        return made

    server.answer = restart_within
    assert ids(sample(policy)) == want and policy.n_redone > 0


def test_a_server_without_updates_refuses_a_whole_model_with_the_remedy(servers, policy_of, model):
    policy = policy_of(servers())
    with pytest.warns(UserWarning, match="dropped"), pytest.raises(NoServerLeft, match="serve --updates"):
        policy.load_weights(model("x"), 1)


def test_a_model_that_cannot_be_read_is_not_sampled(servers, policy_of, model):
    """The old weights are gone by then, so no lag makes them good enough."""
    fail = lambda url, *_: (500, "no such file") if url == "/collective_rpc" else None  # noqa: E731
    server = servers(fail, updates=True)
    policy = policy_of(server, max_policy_lag=5)
    sample(policy)
    with pytest.warns(UserWarning, match="dropped"), pytest.raises(NoServerLeft, match="no such file"):
        policy.load_weights(model("x"), 1)
    assert server.word == "none"


def test_a_folder_that_holds_neither_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=rf"{tmp_path}: no adapter here and no model"):
        read_weights(tmp_path, 1)


@pytest.mark.parametrize(("whole", "level"), [(False, 1), (True, 2)])
def test_servers_sleep_while_the_trainer_works(servers, policy_of, model, adapter, whole, level):
    make, server = (model if whole else adapter), servers(updates=True)
    policy = policy_of(server, sleeps=True)
    policy.load_weights(make("x"), 1)
    want = ids(sample(policy))
    policy.rest()
    policy.rest()
    assert not server.awake and [url for url in server.calls if path(url) == "/sleep"] == [
        f"/sleep?level={level}&mode=wait"
    ]
    assert ids(sample(policy)) == want, "asked again, they wake up with what they held"
    policy.rest()
    policy.load_weights(make("yy"), 2)
    woken = server.calls[-5:] if whole else server.calls[-2:]
    assert woken[0] == "/wake_up?tags=weights" and woken[-1] == "/wake_up?tags=kv_cache"
    assert {c.version for g in sample(policy) for c in g} == {2}


@pytest.mark.parametrize("whole", [False, True])
def test_another_client_wakes_what_an_ended_one_has_left_asleep(servers, policy_of, model, adapter, whole):
    """A training that failed within an update, and then a row of the evaluation."""
    server, folder = servers(updates=True), (model if whole else adapter)("x")
    ended = policy_of(server, sleeps=True)
    ended.load_weights(folder, 1)
    want = ids(sample(ended))
    ended.rest()
    row = policy_of(server, sleeps=True)
    row.load_weights(folder, 1)
    assert ids(sample(row)) == want
    server.paused, server.word, server.whole = True, "none", None  # killed while it read a model
    assert {c.version for g in sample(policy_of(server)) for c in g} == {0}


def test_servers_elsewhere_do_not_sleep(servers, policy_of):
    server = servers(updates=True)
    policy_of(server).rest()
    assert not server.calls


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_training_serves_what_it_trains_and_lets_the_servers_rest(
    servers, policy_of, tmp_path, monkeypatch, tuning
):
    monkeypatch.setattr("rlpa_lib.rlpa.rollout.parse_reply", lambda text: Reply(Profile(), text, True))
    server, cfg = servers(updates=True), config(policy={"lora_dropout": 0.0, "tuning": tuning})
    logged = served(tmp_path, policy_of(server, sleeps=True), cfg).train(say=quiet)
    assert {row["policy_lag"] for row in logged} == {0} and server.requests
    assert len([url for url in server.calls if path(url) == "/sleep"]) == len(logged)
    kept = [folder.name for folder in tmp_path.glob("*/ppo-served/*")]
    assert kept == [f"v{len(logged):06d}"], "what is of no more use is deleted"
    if tuning == "full":
        assert Path(server.whole) == tmp_path / f"models/ppo-served/v{len(logged):06d}"


def test_rows_are_served_from_the_folder_that_training_has_left(servers, tmp_path, model):
    """At `policy.tuning: full` PPO leaves models/ppo, and the rows beside it play the base."""
    server = servers(updates=True)
    keys = ["policy.kind=vllm", f"policy.servers=[{server.url}]", "policy.tuning=full"]
    cfg = load_config("smoke", [*keys, "evaluation.methods=[base, rlpa]"])
    run = runs.claim(cfg, 0, tmp_path / "run", "test")
    shutil.copytree(model("x"), run.path("models/ppo"))
    stage = rows.Stage(run)
    base, tuned = stage.rows
    assert {c.version for g in sample(stage._policy(tuned)) for c in g} == {1}
    assert server.whole == str(run.path("models/ppo"))
    assert {c.version for g in sample(stage._policy(base)) for c in g} == {0}
    assert server.whole == server.STARTED
