"""Built-in personas of the offline world, and the value files that they are drawn from."""

import random
import re

import pytest

from rlpa_lib.dialogue.profile import SLOTS
from rlpa_lib.mini.language import find_templates
from rlpa_lib.mini.lexicon import GENDERS, Value, find_value, list_extended_slots, list_values, normalise
from rlpa_lib.mini.personas import (
    EXTENDED_SIZES,
    YEARS_OF_LEVEL,
    _agree,
    builtin_personas,
    describe,
    describe_manner,
)
from rlpa_lib.settings.config import InputError

LISTED = tuple(slot for slot in SLOTS if slot not in ("Age", "Gender"))
PERSON_WORDS = set(
    "i me my mine you your yours he him his she her hers they them their we us our ours myself yourself"
    .split()
)
GROUPS = set("health tech arts trades education science business service law farming transport media".split())
THEMES = set("craft outdoors sport music food art games books nature tech social travel".split())
SIZES = {"Interests": (130, 50), "Occupation": (110, 40), "Educational Background": (70, 25)}


@pytest.fixture(scope="module")
def train():
    return builtin_personas("train", 3000, 0)


def every_value():
    return [
        value for slot in (*LISTED, *list_extended_slots()) for value in list_values(slot)
    ]


def noun(gender):
    return GENDERS[gender][0]


@pytest.mark.parametrize("split", ["train", "vanilla", "extended"])
def test_the_same_seed_gives_the_same_personas_and_n_only_cuts(split):
    personas = builtin_personas(split, 30, 7)
    assert personas == builtin_personas(split, 30, 7)
    assert personas[:11] == builtin_personas(split, 11, 7)
    assert [p.profile for p in personas] != [p.profile for p in builtin_personas(split, 30, 8)]
    assert personas[17].id == f"{split}-00017"


def test_no_two_personas_are_alike(train):
    assert len({p.id for p in train}) == 3000
    assert len({p.profile.items for p in train}) == 3000
    assert len({p.description for p in train}) > 2990
    # Also without age, gender and interest.
    assert len({p.profile.items[3:] for p in train}) > 2900


@pytest.mark.parametrize("split", ["vanilla", "extended"])
def test_a_test_set_has_74_different_personas(split):
    personas = builtin_personas(split, 74, 0)
    assert len({p.id for p in personas}) == len({p.profile.items for p in personas}) == 74


@pytest.mark.parametrize("split, values", [("train", "train"), ("vanilla", "test")])
def test_profiles_have_the_ten_slots_with_values_of_their_split(split, values):
    for persona in builtin_personas(split, 200, 3):
        assert persona.profile.slots() == SLOTS and not persona.profile.filled
        assert persona.profile.get("Gender") in GENDERS
        for slot in LISTED:
            value = find_value(persona.profile.get(slot), slot)
            assert value.split == values and value.canonical == persona.profile.get(slot)


def test_extended_profiles_hold_only_slots_of_the_open_schema():
    personas = builtin_personas("extended", 74, 0)
    low, high = EXTENDED_SIZES
    assert {len(p.profile) for p in personas} == set(range(low, high + 1))
    for persona in personas:
        for slot, phrase in persona.profile.items:
            assert slot in list_extended_slots() and slot not in SLOTS
            assert find_value(phrase, slot).split == "extended"


def test_ages_fit_schooling_job_and_family(train):
    for persona in train:
        age = int(persona.profile.get("Age"))
        assert 18 <= age <= 82
        for slot in LISTED:
            attrs = find_value(persona.profile.get(slot), slot).attrs
            assert int(attrs.get("min_age", 18)) <= age <= int(attrs.get("max_age", 82))
            assert age >= YEARS_OF_LEVEL.get(attrs.get("level"), 18)


def test_schooling_mostly_belongs_to_the_job_and_genders_are_balanced(train):
    def group(slot, persona):
        return find_value(persona.profile.get(slot), slot).attrs["group"]

    related = sum(group("Occupation", p) == group("Educational Background", p) for p in train) / 3000
    shares = {g: sum(p.profile.get("Gender") == g for p in train) / 3000 for g in GENDERS}
    assert related == pytest.approx(0.75, abs=0.03)
    assert shares == pytest.approx({"male": 0.48, "female": 0.48, "non-binary": 0.04}, abs=0.03)


@pytest.mark.parametrize("split", ["train", "vanilla", "extended"])
def test_the_description_says_every_value(split):
    for persona in builtin_personas(split, 400, 5):
        for slot, value in persona.profile.items:
            said = noun(value) if slot == "Gender" else value
            assert re.search(rf"(?<!\w){re.escape(said)}(?!\w)", persona.description), (
                slot,
                persona.description,
            )


@pytest.mark.parametrize("split", ["train", "vanilla", "extended"])
def test_texts_are_finished_and_verbs_and_articles_agree(split):
    for persona in builtin_personas(split, 400, 6):
        text = f"{persona.description} {persona.personality}"
        assert not re.search(r"[<>{}\n]|  ", text) and text.endswith(".")
        assert not re.search(r"\b(?:they|They) (?:is|has|was|lives|works|enjoys)\b", text)
        assert not re.search(r"\b(?:[Ss]?[Hh]e) (?:are|have|live|work|enjoy)\b", text)
        assert not re.search(r"\ba [aeio]\w|\ba (?:8\d|11|18)-|\ban [^aeiouAEIOUFHLMNRSX8\d]", text), text
        assert 1 <= len(re.findall(r"\.(?:\s|$)", persona.personality)) <= 2


def test_pronouns_follow_the_gender():
    wanted = {"male": {"he"}, "female": {"she"}, "non-binary": {"they"}}
    for persona in builtin_personas("train", 400, 2):
        words = set(re.findall(r"\w+", persona.personality.lower()))
        assert words & {"he", "she", "they"} == wanted[persona.profile.get("Gender")]
    # An open-schema persona has no gender item, so its texts must not give one away.
    for persona in builtin_personas("extended", 74, 2):
        assert not set(re.findall(r"\w+", persona.description.lower())) & {
            "he", "she", "his", "her", "himself", "herself",
        }


def test_a_description_by_hand():
    items = (("Age", "18"), ("Gender", "non-binary"), ("Occupation", "electrician"))
    texts = {describe(items, random.Random(seed)) for seed in range(400)}
    assert "They are an 18-year-old non-binary person who works as an electrician." in texts
    assert "They are a non-binary person aged 18 and work as an electrician." in texts
    assert len(texts) > 20


def test_verbs_agree_with_they():
    verbs = {"<is>": "are", "<has>": "have", "<relaxes>": "relax", "<watches>": "watch", "<studies>": "study",
             "<misses>": "miss", "<goes>": "go", "<names>": "name", "<would>": "would"}
    for marked, plural in verbs.items():
        assert _agree(f"they {marked} it", "they") == f"they {plural} it"
        assert _agree(f"she {marked} it", "she") == f"she {marked.strip('<>')} it"


def test_every_slot_has_five_ways_to_be_told():
    for slot in set(SLOTS) - {"Gender"} | set(list_extended_slots()):
        assert len({t.text for t in find_templates("persona", "tell", slot)}) >= 5, slot
    assert all(len({t.text for t in find_templates("persona", act)}) >= 5 for act in ("lead", "any"))


def test_a_personality_text_by_hand():
    trait = Value("Personality Traits", ("shy", "timid"), "train", {"pace": "reserved"})
    texts = {describe_manner(trait, "male", random.Random(seed)) for seed in range(200)}
    assert "He is shy. He keeps answers short." in texts
    assert "By nature he is shy. He opens up slowly and waits for questions." in texts
    assert len(texts) == 10


def test_bad_requests_are_named():
    with pytest.raises(InputError, match="no split 'test'"):
        builtin_personas("test", 3, 0)
    with pytest.raises(InputError, match="negative"):
        builtin_personas("train", -1, 0)
    assert builtin_personas("train", 0, 0) == []


def test_every_form_names_one_value_in_words_that_fit_any_speaker():
    forms = [form for value in every_value() for form in value.forms]
    assert len({form.lower() for form in forms}) == len({normalise(form) for form in forms}) == len(forms)
    for form in forms:
        assert form.isascii() and not re.search(r"[\d,.;:|]", form) and form == form.strip() and form, form
        assert not set(re.findall(r"[a-z]+", form.lower())) & PERSON_WORDS, form
        assert len(form.split()) <= 8, form


def test_every_value_has_paraphrases_and_one_that_drops_a_word_of_the_first():
    for value in every_value():
        assert len(value.forms) >= 3, value
        first = set(normalise(value.canonical).split())
        assert any(len(first & set(normalise(form).split())) < len(first) for form in value.forms[1:]), value


@pytest.mark.parametrize("slot", LISTED)
def test_train_and_test_values_are_disjoint(slot):
    train, test = (
        {normalise(f) for v in list_values(slot, split) for f in v.forms}
        for split in ("train", "test")
    )
    assert train and test and not train & test
    # No phrase of one split may stand inside a phrase of the other: a judge could take one for the other.
    for a, b in ((train, test), (test, train)):
        padded = " | ".join(f" {form} " for form in b)
        assert not [form for form in a if f" {form} " in padded]


@pytest.mark.parametrize("slot", SIZES)
def test_value_files_have_their_sizes_and_attributes(slot):
    assert tuple(len(list_values(slot, split)) for split in ("train", "test")) == SIZES[slot]
    for value in list_values(slot):
        assert all(len(form.split()) <= 6 for form in value.forms), value
        if slot == "Interests":
            assert value.attrs["theme"] in THEMES
        else:
            assert value.attrs["group"] in GROUPS
        if slot == "Educational Background":
            assert value.attrs["level"] in YEARS_OF_LEVEL
            assert all(re.match("an? ", form) for form in value.forms), value
        if slot == "Occupation":
            assert not any(re.match("(?i)an? |the |uni|use|eu|one|hour|hon", form) for form in value.forms), (
                value
            )
