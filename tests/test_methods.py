"""Methods by hand: what each one sends to the policy, what the user gets to see, and what stays hidden but is
counted."""

import numpy as np
import pytest

from rlpa_lib.agents.local_policy import LocalPolicy
from rlpa_lib.agents.prompt_tokens import prompt_ids
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.dialogue import Dialogue, Utterance
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.protocols import Completion
from rlpa_lib.methods.controls import Lent, MisdirectedAnswers, PromptedOracle, StyleOnly, no_profile
from rlpa_lib.methods.prompting import Prompted, Retrieval, SelfCritic, split_thought
from rlpa_lib.mini import language
from rlpa_lib.mini import lexicon as lex
from rlpa_lib.settings.config import InputError


class Scripted:
    """A policy that says what it is given, call by call, and remembers prompts and seeds. Text of n words has
    n tokens."""

    def __init__(self, *calls):
        self.calls, self.prompts, self.seeds = list(calls), [], []

    def generate(self, messages, n, *, seed, temperature, max_new_tokens):
        self.prompts.append(messages)
        self.seeds.append(seed)
        texts = self.calls.pop(0)
        return [[Completion((1,), tuple(range(len(text.split()))), (), text, True)] for text in texts]


class Letters:
    """An encoder whose vectors count letters, so that similarities are known by hand."""

    def encode(self, texts):
        counts = np.array(
            [[text.lower().count(c) + 1e-6 for c in "abcdefghijklmnopqrstuvwxyz"] for text in texts],
            dtype=np.float32,
        )
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def talk(*pairs, now, user="u"):
    """A dialogue of finished (user, assistant) turns and a pending message."""
    dialogue = Dialogue(f"d-{user}", user)
    for said, answered in pairs:
        dialogue = dialogue.hear(Utterance(said)).answer(answered, Reply(Profile(), answered, True))
    return dialogue.hear(Utterance(now))


def person(name, **slots):
    return Persona(name, "", "", Profile(tuple(slots.items())))


ANNA, BEN = person("anna", Location="Lisbon"), person("ben", Location="Oslo")


def test_base_and_reminder_differ_in_the_last_message_alone():
    dialogue = talk(("Hello", "Hi!"), now="I am a baker.")
    base = Prompted("base", Scripted(["Good."]), "system", False)
    reminder = Prompted("reminder", Scripted(["Good."]), "system", False, suffix="Remember me.")
    assert base.messages(dialogue)[:-1] == reminder.messages(dialogue)[:-1]
    assert reminder.messages(dialogue)[-1] == {"role": "user", "content": "I am a baker. Remember me."}
    [answer] = reminder.respond([ANNA], [dialogue], 0)
    assert (answer.reply.response, answer.n_tokens, answer.hidden) == ("Good.", 1, ())


def test_self_critic_makes_three_calls_and_shows_the_third():
    policy = Scripted(
        ["first a", "first b"],
        ["It misses the cat. It is kind.", "Fine. Fine."],
        ["second one a", "second one b"],
    )
    critic = SelfCritic(Prompted("base", policy, "system", False), "Review it.", "Rewrite it.")
    answers = critic.respond([ANNA, BEN], [talk(now="Hello", user="a"), talk(now="Hello", user="b")], 5)
    assert [a.reply.response for a in answers] == ["second one a", "second one b"]
    assert [(s.kind, s.text, s.n_tokens) for s in answers[0].hidden] == [
        ("draft", "first a", 2),
        ("critique", "It misses the cat. It is kind.", 7),
    ]
    assert answers[0].n_tokens == 2 + 7 + 3
    roles = [(m["role"], m["content"]) for m in policy.prompts[2][0]]
    assert roles == [
        ("system", "system"), ("user", "Hello"), ("assistant", "first a"), ("user", "Review it."),
        ("assistant", "It misses the cat. It is kind."), ("user", "Rewrite it."),
    ]
    assert len(set(policy.seeds)) == 3  # a revision is not drawn with the numbers of its draft


def test_later_turns_of_self_critic_know_revisions_alone():
    critic = SelfCritic(
        Prompted("base", Scripted(["draft"], ["critique"], ["revision"]), "system", False),
        "Review.",
        "Rewrite.",
    )
    [answer] = critic.respond([ANNA], [talk(now="Hello")], 0)
    later = talk(now="Hello").answer(answer.completion, answer.reply).hear(Utterance("And now?"))
    assert [m["content"] for m in critic.inner.messages(later)] == ["system", "Hello", "revision", "And now?"]


THOUGHTS = [
    ("Thought: a baker\nReply: Good bread!", ("a baker", "Good bread!")),
    ("Thought: a baker Reply: Good bread!", ("a baker", "Good bread!")),
    (
        "Thought: one\nThought: two\nReply: Good bread!\nWhich flour?",
        ("one\nThought: two", "Good bread!\nWhich flour?"),
    ),
    ("Reply: Good bread!", ("", "Good bread!")),
    ("Good bread!", ("", "Good bread!")),
    ("Thought: a baker, and then the tokens ran", ("a baker, and then the tokens ran", "")),
    ("Thought: x\nReply: a\nReply: b", ("x", "a\nReply: b")),
    ("I got a nice Reply: from him.", ("", "I got a nice Reply: from him.")),
    ("", ("", "")),
]


@pytest.mark.parametrize(("text", "parts"), THOUGHTS)
def test_thought_and_visible_reply_are_told_apart(text, parts):
    assert split_thought(text) == parts


def test_a_thought_without_a_reply_is_a_broken_format():
    cot = Prompted("cot", Scripted(["Thought: hm", "Thought: hm\nReply: Hi!"]), "system", False, thinks=True)
    cut, whole = cot.respond([ANNA, BEN], [talk(now="Hello")] * 2, 0)
    assert (cut.reply.format_ok, cut.reply.response) == (False, "")
    assert (whole.reply.format_ok, whole.reply.response, whole.hidden[0].text, whole.n_tokens) == (
        True, "Hi!", "hm", 4,
    )


def rag(policy, k=5):
    plain = Prompted("base", policy, "system", False)
    return Retrieval(
        plain, Letters(), "Context:\n{context}\nNow: {message}", "({number}) {user} | {assistant}", "none", k
    )


def test_rag_puts_the_closest_exchanges_first_and_five_at_most():
    turns = [(letter * 3, letter * 3) for letter in "bcdefgh"]
    dialogue = talk(*turns, now="ffff d")
    policy = Scripted(["x"])
    [answer] = rag(policy).respond([ANNA], [dialogue], 0)
    shown = policy.prompts[0][0][-1]["content"].split("\n")
    assert shown[0] == "Context:" and shown[-1] == "Now: ffff d" and len(shown) == 7
    assert shown[1] == "(1) fff | fff" and shown[2] == "(2) ddd | ddd"
    assert shown[3] == "(3) hhh | hhh"  # the rest are equally far: the latest come first
    assert answer.hidden[0].kind == "retrieved" and answer.hidden[0].text.startswith("turn 5 (0.9")


def test_rag_with_less_than_five_exchanges_and_with_none():
    policy = Scripted(["x", "y"])
    rag(policy).respond(
        [ANNA, BEN], [talk(now="Hello", user="a"), talk(("aa", "aa"), ("b", "b"), now="b", user="b")], 0
    )
    first, second = (prompt[-1]["content"] for prompt in policy.prompts[0])
    assert first == "Context:\nnone\nNow: Hello"
    assert second == "Context:\n(1) b | b\n(2) aa | aa\nNow: b"


def test_rag_searches_in_its_own_dialogue_alone():
    mine, other = talk(("xx", "x"), now="zz", user="a"), talk(("zz", "z"), now="zz", user="b")
    policy = Scripted(["x", "y"])
    rag(policy).respond([ANNA, BEN], [mine, other], 0)
    assert "z" not in policy.prompts[0][0][-1]["content"].split("\nNow")[0]


def test_a_message_with_braces_is_only_text():
    policy = Scripted(["x"])
    rag(policy).respond([ANNA], [talk(("{context} {0}", "{message}"), now="{user}")], 0)
    assert policy.prompts[0][0][-1]["content"] == "Context:\n(1) {context} {0} | {message}\nNow: {user}"


def test_style_only_answers_after_the_given_profile():
    policy = Scripted(["Nice!\n</response>"])
    style = StyleOnly(
        Prompted("rlpa", policy, "system", True),
        lambda p, d: Profile((("Location", "Oslo"),)),
        "style_only_other",
    )
    [answer] = style.respond([ANNA], [talk(now="Hello")], 0)
    assert policy.prompts[0][0][-1] == {
        "role": "assistant",
        "content": "<profile>\n- Location: Oslo\n</profile>\n\n<response>\n",
    }
    assert answer.reply == Reply(Profile((("Location", "Oslo"),)), "Nice!", True) and answer.n_tokens == 2
    assert no_profile(ANNA, talk(now="Hello")) == Profile()


def test_a_final_assistant_message_is_continued(tiny_random_model):
    model, tokenizer = tiny_random_model
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "Hello"}]
    begun = [*asked, {"role": "assistant", "content": "<profile>"}]
    assert (
        tokenizer.decode(prompt_ids(tokenizer, begun))
        == tokenizer.decode(prompt_ids(tokenizer, asked)) + "<profile>"
    )
    [[one]] = LocalPolicy(model, tokenizer).generate([begun], 1, seed=0, temperature=0, max_new_tokens=3)
    assert one.prompt_ids == tuple(prompt_ids(tokenizer, begun)) and len(one.token_ids) == 3


def test_profiles_are_lent_by_the_next_user_at_the_same_turn():
    def with_profile(user, *cities):
        dialogue = Dialogue(user, user)
        for city in cities:
            dialogue = dialogue.hear(Utterance("x")).answer(
                "", Reply(Profile((("Location", city),)), "y", True)
            )
        return dialogue

    lent = Lent.by_the_next([with_profile("a", "Rome", "Paris"), with_profile("b", "Bern", "Basel")])
    assert lent(person("a"), talk(now="x")).get("Location") == "Bern"
    assert lent(person("a"), talk(("x", "y"), now="x")).get("Location") == "Basel"
    assert lent(person("b"), talk(now="x")).get("Location") == "Rome"
    with pytest.raises(InputError, match="at least two users"):
        Lent.by_the_next([with_profile("a", "Rome")])


def test_controls_of_real_models():
    policy = Scripted(["to anna", "to ben"], ["x", "y"])
    plain = Prompted("base", policy, "system", False)
    answers = MisdirectedAnswers(plain).respond([ANNA, BEN], [talk(now="Hello")] * 2, 0)
    assert [a.reply.response for a in answers] == ["to ben", "to anna"]
    PromptedOracle(plain, "True: {profile}").respond([ANNA, BEN], [talk(now="Hello")] * 2, 0)
    assert [p[0]["content"] for p in policy.prompts[1]] == [
        "system\n\nTrue: - Location: Lisbon",
        "system\n\nTrue: - Location: Oslo",
    ]
    with pytest.raises(InputError, match="at least two users"):
        MisdirectedAnswers(plain).respond([ANNA], [talk(now="Hello")], 0)


@pytest.mark.parametrize("language_", ["en", "zh", "mini"])
def test_chain_of_thought_has_five_shots_that_parse(language_):
    text = prompt_files.load_prompt("cot", language_)
    shots = text.split("\nUser:")[1:]
    assert len(shots) == 5
    for shot in shots:
        thought, visible = split_thought("\n".join(shot.split("\n")[1:]))
        assert thought and visible


def test_shots_of_the_miniature_speak_its_language_and_give_no_test_value_away():
    shots = prompt_files.load_prompt("cot", "mini").split("\nUser:")[1:]
    values = set()
    for shot in shots:
        lines = shot.strip().split("\n")
        reply = lines[2].removeprefix("Reply: ")
        assert all(language.parse(reply)), reply
        for options in filter(None, (*language.parse(reply), *language.parse(lines[0], "user_train"))):
            values |= {lex.find_value(phrase) for _, phrase in options[0].facts}
    assert len(values) == 4 and {value.split for value in values} == {"train"}


@pytest.mark.parametrize(
    "name", ["reminder", "critique", "revise", "rag", "rag_exchange", "rag_nothing", "cot"]
)
@pytest.mark.parametrize("language_", ["en", "zh", "mini"])
def test_every_method_has_its_prompts(name, language_):
    assert prompt_files.load_prompt(name, language_)
