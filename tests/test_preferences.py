"""Preference conversations: ALOE's format, what is wrong with a line, the offline generator, and nobody of
the test inside."""

import json

import pytest

from rlpa_lib.agents import parties
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.methods import preferences
from rlpa_lib.methods.preferences import (
    Conversation,
    Exchange,
    build_history,
    generate,
    load_preferences,
    read_conversations,
)
from rlpa_lib.mini.judge import RuleEvaluationJudge
from rlpa_lib.mini.user import AgendaUser
from rlpa_lib.personas.sources import load_personas
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError


def turn(k=1, **changes):
    said = {
        "user": f"message {k}",
        "assistant": {"preferred": f"good {k}", "rejected": f"bad {k}"},
        "chosen": "preferred",
    }
    return {**said, "inferred_profile": f"profile {k}", "inferred_personality": "None", **changes}


def line(*turns, **changes):
    return {
        "profile": "He is a baker.", "personality": "He is calm.", "conversations": list(turns or [turn()]),
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    def make(*lines):
        path = tmp_path / "conversations.jsonl"
        path.write_text(
            "\n".join(text if isinstance(text, str) else json.dumps(text) for text in lines) + "\n",
            encoding="utf-8",
        )
        return path

    return make


def test_one_line_by_hand(write):
    [read] = read_conversations(write(line(turn(1, chosen="rejected"), turn(2))))
    first = Exchange("message 1", "good 1", "bad 1", "rejected", "profile 1", "None")
    second = Exchange("message 2", "good 2", "bad 2", "preferred", "profile 2", "None")
    assert read == Conversation("He is a baker.", "He is calm.", (first, second))
    assert [e.said for e in read.exchanges] == ["bad 1", "good 2"]


def test_history_holds_what_was_really_said(write):
    [read] = read_conversations(write(line(turn(1, chosen="rejected"), turn(2), turn(3))))
    texts = [(m["role"], m["content"]) for m in build_history(read, 2, "Be kind.")]
    assert texts == [
        ("system", "Be kind."), ("user", "message 1"), ("assistant", "bad 1"), ("user", "message 2"),
        ("assistant", "good 2"), ("user", "message 3"),
    ]


def test_known_oddities_are_taken_as_they_come(write):
    several = turn(1, assistant={"preferred": ["one", "two"], "rejected": ["three", "four"]})
    raw = '"She paints." "She skis."\n'  # a raw line of ALOE's profile file, with two texts and their quotes
    bare = {key: value for key, value in turn().items() if not key.startswith("inferred")}
    path = write(
        "\ufeff" + json.dumps(line(several)) + " " + json.dumps(line(profile=raw)), "", "\r",
        line(bare, extra=1),
    )
    read = read_conversations(path)
    assert [len(c.exchanges) for c in read] == [1, 1, 1]
    assert read[0].exchanges[0].preferred == ("one", "two") and read[0].exchanges[0].said == "one"
    assert read[1].profile == "She paints. She skis."
    assert read[2].exchanges[0].inferred_profile == ""


BROKEN = [
    ('{"profile": "x"', "line 2: not JSON"),
    ("[1, 2]", "line 2: an object was expected, not list"),
    (line(conversations=[]), "line 2: `conversations` has no turn"),
    ({"profile": "x", "personality": "y"}, "line 2: `conversations` is missing"),
    (line(profile=7), "line 2: `profile` is int, not str"),
    (line(turn(1), "hello"), "line 2: turn 2: an object was expected, not str"),
    (line(turn(1), turn(2, chosen="both")), "line 2: turn 2: `chosen` is 'both'"),
    (line(turn(1), turn(2), turn(3, assistant={"preferred": "x"})), "line 2: turn 3: `rejected` is missing"),
    (
        line(turn(1, assistant={"preferred": 3, "rejected": "x"})),
        "line 2: turn 1: `preferred` is int, not str or list",
    ),
    (
        line(turn(1, assistant={"preferred": [], "rejected": "x"})),
        "line 2: turn 1: `preferred` is a list without texts",
    ),
    (
        line(turn(1, assistant={"preferred": "x", "rejected": ["a", " "]})),
        "line 2: turn 1: `rejected` is empty",
    ),
    (line(turn(1, user=" ")), "line 2: turn 1: `user` is empty"),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN)
def test_a_broken_line_is_named_with_its_number(write, broken, message):
    path = write(line(), broken, line())
    with pytest.raises(InputError) as error:
        read_conversations(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_all_broken_lines_are_counted(write):
    with pytest.raises(InputError, match=r"line 1: not JSON.*\(and 2 more broken lines: 3, 4\)"):
        read_conversations(write("{", line(), "[]", "{"))


def test_files_without_conversations(tmp_path, write):
    with pytest.raises(InputError, match="gone.jsonl: cannot be read"):
        read_conversations(tmp_path / "gone.jsonl")
    with pytest.raises(InputError, match="holds no conversation"):
        read_conversations(write("", " "))
    path = write(line())
    path.write_bytes(path.read_bytes() + b"\xff\xfe")
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        read_conversations(path)


@pytest.fixture(scope="module")
def generated():
    people = load_personas(config.load_config("mini").personas, "train", 12, 3)
    return people, generate(people, AgendaUser(3), 5, 3)


def test_generated_conversations_survive_the_file(generated, write):
    people, made = generated
    assert len(made) == 12 and {len(c.exchanges) for c in made} == {5}
    assert [c.profile for c in made] == [p.description for p in people]
    assert read_conversations(write(*[c.to_json() for c in made])) == made


def test_the_generator_repeats_itself_and_follows_its_seed(generated):
    people, made = generated
    assert generate(people[:3], AgendaUser(3), 5, 3) == made[:3]
    assert generate(people[:3], AgendaUser(3), 5, 4) != made[:3]


def test_both_sides_continue_and_the_user_answers_what_was_said(generated):
    people, made = generated
    chosen = [e.chosen for c in made for e in c.exchanges]
    assert 15 < chosen.count("preferred") < 45
    for persona, conversation in zip(people, made, strict=True):
        dialogue = Dialogue(persona.id, persona.id)
        for exchange in conversation.exchanges:
            dialogue = dialogue.hear(AgendaUser(3).reply([persona], [dialogue])[0])
            assert dialogue.pending.text == exchange.user
            dialogue = dialogue.answer(exchange.said, Reply(Profile(), exchange.said, True))


def test_the_preferred_response_is_the_better_one(generated):
    """Judged against the true persona, as rows are; turn 1 is left out, because nothing has been told."""
    people, made = generated
    judge, scores = RuleEvaluationJudge(), {"preferred": [], "rejected": []}
    for persona, conversation in zip(people, made, strict=True):
        dialogue = Dialogue(persona.id, persona.id)
        for k, exchange in enumerate(conversation.exchanges):
            dialogue = dialogue.hear(AgendaUser(3).reply([persona], [dialogue])[0])
            for side in scores:
                [verdict] = judge.evaluate([(persona, dialogue, getattr(exchange, side))])
                scores[side] += [verdict.score] if k else []
            dialogue = dialogue.answer(exchange.said, Reply(Profile(), exchange.said, True))
    means = {side: sum(values) / len(values) for side, values in scores.items()}
    assert means["preferred"] > means["rejected"] + 0.4, means


def aloe_folder(tmp_path, conversations):
    people = [
        f"She is {20 + i} and likes "
        f"{', '.join(w + ending for ending in ('ade', 'ine', 'oza', 'uka', 'ery'))}."
        for i, w in enumerate(WORDS)
    ]
    (tmp_path / "profile.jsonl").write_text("\n".join(json.dumps(text) for text in people))
    (tmp_path / "personality.jsonl").write_text(json.dumps("She is calm."))
    (tmp_path / "conversations.jsonl").write_text("\n".join(json.dumps(c) for c in conversations(people)))
    return config.load_config("smoke", ["personas.source=aloe", f"personas.path={tmp_path}"])


WORDS = "stamps shells clocks lamps kites maps bells masks boots coins drums forks".split()


def test_aloes_own_file_is_read_without_the_test_users(tmp_path):
    cfg = aloe_folder(tmp_path, lambda people: [line(profile=f'"{text}"\n') for text in people])
    test = load_personas(cfg.personas, "vanilla", None, 0)
    loaded = load_preferences(cfg, None, None, 0)
    assert len(loaded) == len(WORDS) - len(test) and len(test) == 3
    assert not {c.profile for c in loaded} & {p.description for p in test}
    assert load_preferences(cfg, None, 4, 0) == loaded[:4]
    assert [c.profile for c in load_preferences(cfg, None, None, 1)] != [c.profile for c in loaded]
    with pytest.raises(InputError, match="conversations.jsonl: 10 conversations asked for, but 9"):
        load_preferences(cfg, None, 10, 0)


def test_without_the_file_the_agenda_user_of_the_run_talks(tmp_path):
    cfg = aloe_folder(tmp_path, lambda people: [line()])
    (tmp_path / "conversations.jsonl").unlink()
    made = load_preferences(cfg, parties.make_user(cfg, "train", 0), 2, 0)
    assert len(made) == 2 and {len(c.exchanges) for c in made} == {cfg.rollout.turns}
    models = config.load_config(
        "smoke", ["personas.source=aloe", f"personas.path={tmp_path}", "user.kind=llm", "user.model=m"]
    )
    with pytest.raises(InputError, match="need ALOE's conversations.jsonl"):
        load_preferences(models, None, 2, 0)


def test_a_broken_file_stops_a_run_before_anything_is_written(tmp_path):
    from rlpa_lib.reproduce import runner

    aloe_folder(tmp_path, lambda people: [line(), line(conversations=[])])
    changes = [
        "personas.source=aloe", f"personas.path={tmp_path}", "evaluation.users=2", "personas.test_users=2",
        "personas.train_users=8",
    ]
    with pytest.raises(InputError, match=f"{preferences.FILE}: line 2: `conversations` has no turn"):
        runner.reproduce("smoke", 0, tmp_path / "run", overrides=changes)
    assert not (tmp_path / "run").exists()
