"""The rewrite data set: a and b disjoint, the truth kept, and judges that miss what they must miss."""

import json
import random

import pandas as pd
import pytest

from rlpa_lib.agents import world
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile
from rlpa_lib.mini import lexicon as lex
from rlpa_lib.mini.judge import RuleJudge
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.runs.run import Run
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError
from rlpa_lib.study import rewrites
from rlpa_lib.study.rewrites import ItemPair, Rewrite

PEOPLE = builtin_personas("vanilla", 40, 0)


@pytest.mark.parametrize("paraphrase", [world.paraphrase_value, world.paraphrase_freely])
def test_items_are_paraphrased_or_altered_and_never_both(paraphrase):
    made = rewrites.rewrite_set(PEOPLE, 3, paraphrase)
    assert made == rewrites.rewrite_set(PEOPLE, 3, paraphrase) != rewrites.rewrite_set(PEOPLE, 4, paraphrase)
    for rewrite in made:
        slots = [pair.slot for pair in rewrite.pairs]
        assert 1 <= len(slots) == len(set(slots)) <= len(rewrite.reference) and set(slots) <= set(
            rewrite.reference.slots()
        )
        assert rewrite.overlap == [pair.label for pair in rewrite.pairs].count("same")
        for pair in rewrite.pairs:
            assert (
                pair.original == rewrite.reference.get(pair.slot)
                and pair.rewritten == rewrite.rewritten.get(pair.slot) != pair.original
            )
            if pair.label == "different":
                assert not lex.same_value(pair.slot, pair.rewritten, pair.original)
    sizes = [(rewrite.overlap, len(rewrite.pairs) - rewrite.overlap) for rewrite in made]
    assert min(a for a, _ in sizes) == 0 == min(b for _, b in sizes) and len(set(sizes)) > 15


def test_free_paraphrases_are_in_no_lexicon_and_belong_to_test_users():
    for slot, value, other in (line.split("\t") for _, line in lex.read_lines("paraphrases.tsv")):
        own = lex.find_value(value, slot)
        assert own.canonical == value and own.split == "test"
        assert lex.find_value(other) is None


def test_an_altered_age_is_another_age():
    for seed in range(50):
        assert abs(int(world.change_value("Age", "34", random.Random(seed))) - 34) >= 2


def test_a_persona_from_elsewhere_is_refused():
    strange = Persona(
        "p", "", "", Profile((("Occupation", "sworn dragon tamer of the north"), ("Hat size", "57")))
    )
    with pytest.raises(InputError, match="p: .*: cannot be rewritten"):
        [rewrites.rewrite_set([strange], seed) for seed in range(20)]


def case(name, *pairs):
    reference = Profile(tuple((slot, original) for slot, original, _, _ in pairs))
    return Rewrite(name, reference, tuple(ItemPair(*pair) for pair in pairs))


CASES = [
    case("one", ("Age", "34", "thirty-four", "same"), ("Location", "Lisbon", "Madrid", "different")),
    case(
        "two", ("Age", "34", "34", "same"), ("Gender", "male", "female", "different"),
        ("Location", "Lisbon", "the Portuguese capital", "same"),
    ),
]


def test_counting_by_hand():
    judges = {
        "rule": rewrites.count_with(RuleJudge()),
        "same text": rewrites.count_same_text,
        "shared slots": rewrites.count_shared_slots,
    }
    found = rewrites.count_overlaps(CASES, judges).pivot(index="case", columns="judge", values="predicted")
    assert found.loc["one", ["rule", "same text", "shared slots"]].tolist() == [1, 0, 2]
    assert found.loc["two", ["rule", "same text", "shared slots"]].tolist() == [2, 1, 3]


def test_table_8_by_hand_with_a_judge_that_fell_silent():
    found = pd.DataFrame(
        {"case": list("abcde"), "judge": "j", "true": [3, 3, 3, 3, 3], "predicted": [3, 2, 1, 3, None]}
    ).astype({"predicted": float})
    row = rewrites.table8(found).iloc[0]
    assert row[["exact_acc", "fuzzy_acc", "mse", "n", "unanswered"]].tolist() == [50, 75, 1.25, 4, 1]
    assert row["rmse"] == pytest.approx(1.25**0.5) and row["mean_error"] == -0.75
    assert row["exact_acc_low"] == pytest.approx(6.76, abs=0.01)  # exact binomial, 2 of 4
    assert row["mse_low"] <= 1.25 <= row["mse_high"] and row["rmse_high"] == pytest.approx(
        row["mse_high"] ** 0.5
    )
    perfect = rewrites.table8(found.assign(predicted=3.0)).iloc[0]
    assert perfect["exact_acc"] == 100 and perfect["mse_low"] == 0 == perfect["mse"]
    assert perfect["mse_high"] == pytest.approx(100 - perfect["exact_acc_low"])  # five cases prove little


def test_pairs_for_people_are_half_same_and_hide_the_label():
    made = rewrites.rewrite_set(PEOPLE, 0)
    items = rewrites.make_items(made, 40, 0)
    assert [item.hidden["system"] for item in items].count("same") == 20 and len(
        {item.id for item in items}
    ) == 40
    assert all("same" not in str(item.blocks) or "same" in str(item.blocks[0][1]) for item in items)


def test_training_users_fill_up_where_there_are_fewer_test_users(tmp_path):
    lines = [json.dumps(p.description) for p in builtin_personas("train", 30, 0)]
    (tmp_path / "profile.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "personality.jsonl").write_text('"A calm person."\n')
    sizes = [
        "study.profiles=7", "evaluation.users=2", "rollout.users=8", "personas.test_users=2",
        "personas.source=aloe",
    ]
    sizes.append(f"personas.path={tmp_path}")
    found = rewrites.load_references(
        Run(config.load_config("smoke", [*sizes, "user.kind=llm", "user.model=m"]), 0, tmp_path)
    )
    assert len(found) == len({p.id for p in found}) == 7 and all(p.id.startswith("aloe") for p in found)
    without_a_model = Run(config.load_config("smoke", sizes), 0, tmp_path)
    own = rewrites.load_references(without_a_model)
    assert len(own) == 7 and not any(p.id.startswith("aloe") for p in own), (
        "nobody can rewrite other personas"
    )
    assert set(rewrites.make_sets(without_a_model, own)) == {"listed", "free"}
    assert (
        len(rewrites.load_references(Run(config.load_config("smoke", ["study.profiles=90"]), 0, tmp_path)))
        == 90
    )
