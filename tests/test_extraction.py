"""How good the slot rules are on hand-labelled profiles of ALOE, which the project does not ship (appendix
C.2)."""

import json
import os
from pathlib import Path

import pytest

from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile
from rlpa_lib.personas.extraction import hash_text
from rlpa_lib.personas.sources import read_aloe
from rlpa_lib.settings.config import InputError
from rlpa_lib.study.extraction_quality import measure_extraction

ROOT = Path(__file__).resolve().parents[1]
ALOE = Path(os.environ.get("RLPA_ALOE") or ROOT.parent / "shared" / "aloe")
LABELS = json.loads((ROOT / "tests" / "data" / "aloe_labels.json").read_text(encoding="utf-8"))["labels"]


@pytest.mark.skipif(
    not (ALOE / "profile.jsonl").is_file(),
    reason="needs ALOE's profile.jsonl and personality.jsonl: set RLPA_ALOE to their folder",
)
def test_precision_and_recall_on_labelled_profiles():
    personas = read_aloe(ALOE / "profile.jsonl", ALOE / "personality.jsonl")
    table = measure_extraction(LABELS, personas)
    print(table.round(3).to_string(index=False))
    assert table["personas"].min() == len(LABELS) == 40
    assert (table["precision"] >= 0.9).all()
    assert (table["recall"] >= 0.8).all()
    # Labels of other people must not fit: the comparison is not so lenient that anything passes.
    keys = list(LABELS)
    shuffled = {key: LABELS[other] for key, other in zip(keys, keys[1:] + keys[:1], strict=True)}
    assert (
        measure_extraction(shuffled, personas)
        .set_index("slot")
        .loc[["Occupation", "Interests"], "precision"]
        .max()
        < 0.2
    )


def test_quality_by_hand():
    label = {
        "age": "30", "gender": "male", "occupation": "history teacher", "marital_status": None,
        "interests": ["chess", "playing the piano"],
    }
    items = (
        ("Age", "30"), ("Gender", "female"), ("Occupation", "teacher"), ("Marital Status", "single"),
        ("Interests", "playing chess and golf"),
    )
    persona = Persona("x", "A text.", "", Profile(items, frozenset({"Marital Status"})))
    table = measure_extraction({hash_text("A text."): label}, [persona]).set_index("slot")
    assert table.loc["Age", ["labelled", "predicted", "correct"]].tolist() == [1, 1, 1]
    assert table.loc["Gender", ["precision", "recall"]].tolist() == [0.0, 0.0]
    assert table.loc["Occupation", "correct"] == 1
    assert table.loc["Marital Status", "predicted"] == 0, "a filled value is no prediction"
    assert table.loc["Interests", ["precision", "recall"]].tolist() == [0.5, 0.5]


def test_labels_of_other_people_are_refused():
    with pytest.raises(InputError):
        measure_extraction(LABELS, [Persona("x", "Nobody labelled this.", "", Profile())])
