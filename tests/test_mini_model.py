"""The tiny policy as a base: it keeps the format, copies what was said, and does different things when asked
to."""

import hashlib
import json

import pytest

from rlpa_lib.agents import models
from rlpa_lib.agents.local_policy import LocalPolicy
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.dialogue import Dialogue, Utterance, policy_view
from rlpa_lib.dialogue.profile import Profile, Reply, parse_reply
from rlpa_lib.mini import language
from rlpa_lib.mini.judge import RuleJudge
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.mini.user import AgendaUser
from rlpa_lib.mini.world import WEIGHTS
from rlpa_lib.settings import config


@pytest.fixture(scope="module")
def policy():
    return LocalPolicy(*models.load_model(config.load_config("smoke")))


def answers(policy, views, temperature=1.0):
    return [c[0].text for c in policy.generate(views, 1, seed=0, temperature=temperature, max_new_tokens=144)]


def test_weights_are_those_of_the_record_and_small():
    record = json.loads((WEIGHTS / "training_record.json").read_text())
    weights = WEIGHTS / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == record["sha256"]
    assert weights.stat().st_size <= 12e6


def test_any_text_survives_the_tokenizer(policy):
    profile = "<profile>\n</profile>\n\n<response>\nok\n</response>"
    for text in ("- Location: Zürich, 34!", profile, "你好 🙂"):
        assert policy.tokenizer.decode(policy.tokenizer(text, add_special_tokens=False).input_ids) == text


def test_known_words_are_one_token(policy):
    assert len(policy.tokenizer("Note what you know about the user", add_special_tokens=False).input_ids) == 7


@pytest.fixture(scope="module")
def held_out(policy):
    """40 unseen users, six turns of the untrained policy: (persona, dialogue, reply)."""
    people, user = builtin_personas("vanilla", 40, 3), AgendaUser(3, "user_test")
    dialogues, rows = [Dialogue(p.id, p.id) for p in people], []
    for turn in range(6):
        dialogues = [d.hear(u) for d, u in zip(dialogues, user.reply(people, dialogues), strict=True)]
        views = [policy_view(d, prompt_files.load_prompt("policy", "mini")) for d in dialogues]
        texts = [c[0].text for c in policy.generate(views, 1, seed=turn, temperature=1.0, max_new_tokens=144)]
        rows += [(p, d, parse_reply(t)) for p, d, t in zip(people, dialogues, texts, strict=True)]
        dialogues = [d.answer(t, parse_reply(t)) for d, t in zip(dialogues, texts, strict=True)]
    return rows


def test_format_is_kept_with_unseen_users(held_out):
    assert sum(reply.format_ok for _, _, reply in held_out) / len(held_out) >= 0.95


def test_facts_are_copied_from_unseen_frames_and_values(held_out):
    """Of what the profile block says about told slots, most is right; the crowd it learned from leaves facts
    out."""
    right = written = 0
    for persona, dialogue, reply in held_out:
        items = tuple((s, v) for s, v in reply.profile.items if s in dialogue.ledger())
        right, written = right + len(RuleJudge().match(Profile(items), persona.profile)), written + len(items)
    # Measured .88 (368 of 417); the aim is .9 (LOG.md), this is the floor below which something broke.
    assert written > 100 and right / written >= 0.8


def _uses(texts, phrases):
    parsed = [[f[1] for options in language.parse(t) for s in options[:1] for f in s.facts] for t in texts]
    return sum(phrase in used for phrase, used in zip(phrases, parsed, strict=True)) / len(texts)


@pytest.fixture(scope="module")
def moments():
    """(dialogue with one told fact and a question pending, the words of the fact) of training users."""
    rows = []
    for i, persona in enumerate(builtin_personas("train", 500, 9)):
        job = persona.profile.get("Occupation")
        first = (
            Dialogue(str(i), persona.id)
            .hear(Utterance("Hello"))
            .answer("x", Reply(Profile(), "Hello and welcome. What is your job?", True))
        )
        rows.append(
            (first.hear(Utterance(f"I work as {language.add_article(job)}.", ("Occupation",), (job,))), job)
        )
    return rows


def test_a_reminder_makes_base_use_what_it_knows_more_often(policy, moments):
    views = [policy_view(d, prompt_files.load_prompt("base", "mini"), "none") for d, _ in moments]
    plain = _uses(answers(policy, views), [job for _, job in moments])
    reminded = [
        [
            *v[:-1],
            {"role": "user", "content": f"{v[-1]['content']} {prompt_files.load_prompt('reminder', 'mini')}"},
        ]
        for v in views
    ]
    # Measured with 500 moments and two seeds: .59 -> .71 and .64 -> .72; with 120 the difference drowns in
    # chance.
    assert _uses(answers(policy, reminded), [job for _, job in moments]) > plain + 0.03


def test_a_revision_after_a_critique_uses_it_more_often_than_the_draft(policy, moments):
    views = [policy_view(d, prompt_files.load_prompt("base", "mini"), "none") for d, _ in moments]
    drafts = answers(policy, views)
    asked = [
        [
            *v,
            {"role": "assistant", "content": t},
            {"role": "user", "content": prompt_files.load_prompt("critique", "mini")},
        ]
        for v, t in zip(views, drafts, strict=True)
    ]
    critiques = answers(policy, asked)
    revise = [
        [
            *v,
            {"role": "assistant", "content": c},
            {"role": "user", "content": prompt_files.load_prompt("revise", "mini")},
        ]
        for v, c in zip(asked, critiques, strict=True)
    ]
    jobs = [job for _, job in moments]
    assert _uses(answers(policy, revise), jobs) > _uses(drafts, jobs) + 0.1


def test_retrieved_context_is_used(policy, moments):
    text = prompt_files.load_prompt("rag", "mini")
    views = [
        [
            {"role": "system", "content": prompt_files.load_prompt("base", "mini")},
            {
                "role": "user",
                "content": text.format(context=d.pending.text, message="Do you have an idea for my weekend?"),
            },
        ]
        for d, _ in moments
    ]
    assert _uses(answers(policy, views), [job for _, job in moments]) > 0.2
