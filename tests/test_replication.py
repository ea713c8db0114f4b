"""The replication map covers the paper and points only to what exists; planted errors are found."""

import pytest
import yaml

from rlpa_lib.report import replication
from rlpa_lib.runs import record
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError

SOURCE = record.PACKAGE_DIR / "report" / "replication_map.yaml"


@pytest.fixture(scope="module")
def shipped():
    """What is wrong with the map as it ships (nothing; but each test below is about what it plants)."""
    return replication.check_map()


@pytest.fixture
def tree():
    return yaml.load(SOURCE.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def row(tree, item):
    return next(entry for section in tree.values() for entry in section if entry["item"] == item)


@pytest.fixture
def problems(tmp_path, shipped):
    """Problems that a changed map has on top of those of the map that ships."""

    def find(tree):
        path = tmp_path / "map.yaml"
        path.write_text(
            yaml.dump(tree, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)), encoding="utf-8"
        )
        return [text for text in replication.check_map(path) if text not in shipped]

    return find


def test_the_map_has_no_problems(shipped):
    assert shipped == []


def test_every_numbered_item_of_the_paper_is_required():
    required = replication.load_required()
    assert {f"equation {n}" for n in range(1, 9)} <= set(required)
    assert {f"table {n}" for n in range(1, 11)} <= set(required)
    figures = {item.rstrip("ab") for item in required if item.startswith("figure")}
    assert figures == {f"figure {n}" for n in range(1, 19)}
    assert len(set(required)) == len(required)


@pytest.mark.parametrize(
    "item",
    [
        "equation 3", "actor learning rate", "figure 9", "RAG (D.2)", "table 7", "figure 4b",
        "trait count",
    ],
)
def test_a_missing_row_is_found(tree, problems, item):
    for section in tree:
        tree[section] = [entry for entry in tree[section] if entry["item"] != item]
    assert problems(tree) == [f"{item}: has no row"]


def test_a_row_given_twice_is_found(tree, problems):
    tree["tables"].append(dict(row(tree, "table 7")))
    assert "table 7: has 2 rows" in problems(tree)


DEAD = [
    ("code", "rlpa_lib.rlpa.rewards:profile_f2", "no such symbol: rlpa_lib.rlpa.rewards:profile_f2"),
    ("code", "rlpa_lib.rlpa.reward:profile_f1", "no such symbol: rlpa_lib.rlpa.reward:profile_f1"),
    (
        "code",
        "rlpa_lib.dialogue.profile:Profile.rows",
        "no such symbol: rlpa_lib.dialogue.profile:Profile.rows",
    ),
    ("code", "rlpa_lib.dialogue.profile", "no such symbol: rlpa_lib.dialogue.profile"),
    # imported there, defined elsewhere
    (
        "code",
        "rlpa_lib.evaluation.scoring:profile_f1",
        "no such symbol: rlpa_lib.evaluation.scoring:profile_f1",
    ),
    ("keys", "ppo.clipp", "no such params key: ppo.clipp"),
    ("notebooks", "77_nowhere", "no such notebook: 77_nowhere"),
    (
        "files",
        "rlpa_lib/dialogue/prompts/en/nothing.txt",
        "no such file: rlpa_lib/dialogue/prompts/en/nothing.txt",
    ),
]


@pytest.mark.parametrize(("field", "pointer", "message"), DEAD)
def test_a_dead_pointer_is_found(tree, problems, field, pointer, message):
    entry = row(tree, "equation 3")
    entry[field] = [*entry.get(field, []), pointer]
    assert problems(tree) == [f"equation 3: {message}"]


def test_a_deviation_without_a_reason_is_found(tree, problems):
    del row(tree, "actor learning rate")["why"]
    [found] = problems(tree)
    assert "params/paper.yaml has ppo.lr = 2.5e-06, the source says 5e-07, and no reason is given" in found


def test_a_wait_that_is_over_is_found(tree, problems):
    """When a planned notebook comes into being, its row must be brought up to date."""
    entry = row(tree, "table 2")
    entry.pop("notebooks")
    entry.update(status="not yet", planned="21_ablations")
    assert any("21_ablations, which exists now" in text for text in problems(tree))


@pytest.mark.parametrize("change", [{"status": "done"}, {"paper": ""}])
def test_a_half_filled_row_is_found(tree, problems, change):
    row(tree, "equation 1").update(change)
    assert len(problems(tree)) == 1


def test_a_broken_map_is_one_line(tree, problems):
    row(tree, "table 2")["papr"] = "x"
    with pytest.raises(InputError, match="table 2: unknown field 'papr'"):
        problems(tree)


def test_the_table_shows_live_settings():
    cfgs = {name: config.load_config(name) for name in ("mini", "paper", "released")}
    cfgs["mini"] = config.load_config("mini", ["ppo.lr=1.25e-4"])
    table = replication.build_table(cfgs).set_index("item")
    rates = table.loc["actor learning rate"]
    assert [rates[f"{name} settings"] for name in cfgs] == [
        "ppo.lr = 0.000125", "ppo.lr = 2.5e-06", "ppo.lr = 5e-07",
    ]
    assert (table["paper"] != "").all()
    assert len(table) == len(replication.load_map())


def test_html_is_escaped_and_whole():
    table = replication.build_table({"mini": config.load_config("mini")})
    table.loc[0, "why"] = "<b>" + "long " * 40
    html = replication.to_html(table, "equation")
    assert "<b>" not in html and "&lt;b&gt;" in html
    assert "long " * 39 in html
    assert html.count("<tr") == 9


def test_html_says_a_common_setting_once_and_a_different_one_per_scale():
    cfgs = {name: config.load_config(name) for name in ("mini", "paper", "released")}
    html = replication.to_html(replication.build_table(cfgs), "hyper-parameter")
    assert f"ppo.kl_coef = {cfgs['paper'].ppo.kl_coef}" in html
    assert f"ppo.lr: mini {cfgs['mini'].ppo.lr}; paper 2.5e-06; released 5e-07" in html
