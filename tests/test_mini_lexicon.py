"""Do two phrasings mean the same? The overlap of eq. 2 rests on it, so it is attacked here."""

import pytest

from rlpa_lib.mini import lexicon as lex
from rlpa_lib.mini.lexicon import find_value, list_extended_slots, list_values, same_value

LISTED = (*lex.LISTED, *list_extended_slots())


@pytest.mark.parametrize("slot", LISTED)
def test_all_forms_of_a_value_match_and_no_form_of_another(slot):
    values = list_values(slot)
    for index, value in enumerate(values):
        for form in value.forms:
            # every pair would take long; the neighbours in the file are the likeliest to be mixed up
            for other in (*values[max(0, index - 6) : index + 7], values[(index * 7) % len(values)]):
                assert same_value(slot, form, other.canonical) == (other is value), (form, other.canonical)


def test_find_by_hand():
    assert find_value("The Portuguese capital!").canonical == "Lisbon"
    assert find_value("lisbon", "Location").canonical == "Lisbon"
    assert find_value("lisbon", "Occupation") is None
    assert find_value("Atlantis") is None


@pytest.mark.parametrize(
    "phrase, years",
    [
        ("34", 34), ("34 years old", 34), ("thirty-four", 34), ("thirty four", 34), ("forty", 40),
        ("nineteen", 19), ("about fifty-one years", 51), ("40, forty", 40), ("", None),
        ("middle-aged", None), ("34 or 35", None), ("thirty or forty", None), ("twenty 30", None),
    ],
)
def test_ages_by_hand(phrase, years):
    assert lex.parse_age(phrase) == years


def test_age_words_are_read_back():
    assert [lex.parse_age(lex.spell_number(n)) for n in range(100)] == list(range(100))


def test_ages_match_in_any_notation_and_only_when_equal():
    assert same_value("Age", "thirty-four", "34") and same_value("Age", "34 years old", "34")
    assert not same_value("Age", "35", "34")
    assert not same_value("Age", "unknown", "34") and not same_value("Age", "old", "young")


def test_genders_by_hand():
    assert same_value("Gender", "woman", "female") and same_value("Gender", "A lady", "Female")
    assert not same_value("Gender", "man", "female")
    # The word "female" holds the word "male", and a hedge names both.
    assert not same_value("Gender", "female", "male")
    assert not same_value("Gender", "man or woman", "female") and not same_value(
        "Gender", "man, woman", "female"
    )


@pytest.mark.parametrize(
    "slot, inferred, true",
    [
        ("Interests", "playing tennis, rock climbing", "rock climbing"),
        ("Interests", "rock climbing and playing tennis", "rock climbing"),
        ("Interests", "playing tennis rock climbing", "rock climbing"),
        ("Interests", "playing tennis rock climbing", "playing tennis"),
        ("Interests", "rock climbing, chess, golf, cooking, sewing", "rock climbing, singing, surfing"),
        ("Marital Status", "single, happily married, divorced", "single"),
        ("Marital Status", "single or happily married", "single"),
        ("Location", "Lisbon Madrid Paris", "Lisbon"),
        ("Location", "Lisbon and Madrid", "Lisbon"),
        ("Occupation", "nurse teacher cook driver clerk painter", "pediatric nurse"),
        ("Occupation", "nurse", "pediatric nurse at a large city hospital"),
        ("Interests", "the", "rock climbing"),
    ],
)
def test_padding_and_hedging_do_not_match(slot, inferred, true):
    assert not same_value(slot, inferred, true)


def test_lists_by_hand():
    true = "hiking, playing the piano and cooking"
    assert same_value("Interests", "hiking", true)
    assert same_value("Interests", "cooking, hiking", true)
    assert same_value("Interests", "hiking, golf", true), "half of what was inferred is true"
    assert not same_value("Interests", "hiking, golf, chess", true)
    assert not same_value("Interests", "golf", true)
    assert not same_value("Interests", "hiking", "hiking, cooking, chess and golf"), (
        "less than a third of the truth"
    )
    assert same_value("Interests", "hiking, hiking", "hiking")


def test_near_copies_of_free_text_match():
    assert same_value("Occupation", "history teacher", "teacher of history")
    assert same_value("Occupation", "software engineers", "software engineer")
    assert not same_value("Occupation", "history teacher", "history writer")
    assert same_value(
        "Educational Background", "bachelor's degree in nursing", "a bachelor's degree in nursing"
    )
    assert same_value("Others", "big blond dog called Biscuit with", "a golden retriever named Biscuit"), (
        "a slip in a paraphrase"
    )


@pytest.mark.parametrize(
    "slot, inferred, true",
    [
        ("Family Background", "two older sisters", "two older brothers"),
        (
            "Educational Background", "a bachelor's degree in nursing nutrition",
            "a bachelor's degree in nursing",
        ),
        ("Educational Background", "a bachelor's degree", "a bachelor's degree in nursing"),
        ("Educational Background", "a bachelor's degree in sleeping", "a bachelor's degree in nursing"),
        ("Occupation", "history painter", "history teacher"),
    ],
)
def test_what_could_be_another_value_does_not_match(slot, inferred, true):
    assert not same_value(slot, inferred, true)


@pytest.mark.parametrize("slot", ["Educational Background", "Occupation", "Others"])
def test_no_stock_phrase_fits_many_values(slot):
    """A guess that matched a large share of all users would be paid for without having listened."""
    truths = [value.canonical for value in list_values(slot)]
    for truth in truths[::8]:
        for n in (1, 2, 3):
            piece = " ".join(truth.split()[:n])
            assert sum(same_value(slot, piece, other) for other in truths) <= 1, piece


def test_slots_must_agree_unless_the_schema_is_open():
    assert lex.are_compatible("location", "Location")
    assert not lex.are_compatible("Interests", "Location")
    assert lex.are_compatible("Hobby", "Favorite Food")
    assert not lex.are_compatible("Age", "Favorite Food")
