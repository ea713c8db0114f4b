"""What a figure draws is in the table that it returns."""

import warnings

import pandas as pd
import pytest

from rlpa_lib import figures
from rlpa_lib.dialogue.profile import Profile
from rlpa_lib.figures import frame


def test_slot_distribution_divides_found_and_filled():
    statistics = pd.DataFrame(
        {"slot": ["Age", "Location"], "count": [4, 2], "share": [1.0, 0.5], "filled_share": [0.0, 0.5]}
    )
    figure, data = figures.slot_distribution(statistics, "t")
    assert data["found_share"].tolist() == [1.0, 0.25]
    widths = [[bar.get_width() for bar in bars] for bars in figure.axes[0].containers]
    assert widths == [[100.0, 25.0], [0.0, 25.0]]


def test_profile_card_marks_filled_values():
    profile = Profile((("Age", "34"), ("Location", "Lisbon " * 20)), frozenset({"Location"}))
    figure, data = figures.profile_card(profile, "t")
    assert data["filled"].tolist() == [False, True]
    assert "(filled)" in figure.axes[0].tables[0][2, 1].get_text().get_text()


def test_chinese_values_are_written_in_a_font_that_has_them_or_a_warning_says_which_is_missing(monkeypatch):
    profile = Profile((("Occupation", "儿科护士"),))

    def family(*installed):
        monkeypatch.setattr(frame.font_manager, "get_font_names", lambda: ["DejaVu Sans", *installed])
        figure, _ = figures.profile_card(profile, "t")
        return figure.axes[0].tables[0][1, 1].get_text().get_fontfamily()

    with pytest.warns(UserWarning, match="fonts-noto-cjk"):
        assert family() == ["DejaVu Sans"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert family("Noto Sans CJK SC", "Other") == ["DejaVu Sans", "Noto Sans CJK SC"]
    rows = pd.DataFrame({"slot": ["职业"], "count": [4], "share": [1.0], "filled_share": [0.0]})
    family()
    with pytest.warns(UserWarning, match="fonts-noto-cjk"):  # in any kind of figure
        figures.slot_distribution(rows, "t")


def test_a_font_installed_after_matplotlib_made_its_list_is_found(monkeypatch):
    fonts = frame.font_manager.fontManager
    listed = [font for font in fonts.ttflist if font.name != "DejaVu Serif"]
    missing = next(font.fname for font in fonts.ttflist if font.name == "DejaVu Serif")
    monkeypatch.setattr(fonts, "ttflist", listed)
    monkeypatch.setattr(frame, "CHINESE_FONTS", ("DejaVu Serif",))
    monkeypatch.setattr(frame.font_manager, "findSystemFonts", lambda: [missing, __file__])
    frame._meet_new_fonts.cache_clear()
    assert frame.find_fonts() == ["DejaVu Sans", "DejaVu Serif"]
    frame._meet_new_fonts.cache_clear()


@pytest.mark.parametrize("last", [1, 2, 9])
def test_steps_are_whole_numbers_however_few(last):
    with frame.panels(1, 1, (3, 3)) as (figure, [axes]):
        axes.plot(range(1, last + 1), [1.0] * last, marker="o")
        frame.use_whole_numbers(axes)
        figure.canvas.draw()
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks and all(tick == int(tick) for tick in ticks)


def test_reveal_curve_by_hand():
    shares = pd.DataFrame(
        {"user": list("abab"), "pace": ["reserved"] * 4, "turn": [1, 1, 2, 2], "share": [0.0, 0.0, 0.1, 0.3]}
    )
    _, data = figures.reveal_curve(shares, 0.15, "t")
    second = data.query("turn == 2 and pace == 'all'").iloc[0]
    # Mean of .1 and .3; its interval by t with one degree of freedom, .1 * 12.7 to each side, ends at the
    # ends of the scale.
    assert second[["share", "share_low", "share_high"]].tolist() == pytest.approx([0.2, 0, 1])
    assert set(data["pace"]) == {"all", "reserved"}


def test_score_bars_have_intervals_over_users():
    figure, data = figures.score_bars(
        pd.DataFrame({"a": [0.0, 1.0, 0.5, 0.5], "b": [1.0, 1.0, 1.0, 1.0]}), "x", "t"
    )
    assert data["mean"].tolist() == [0.5, 1.0] and data["users"].tolist() == [4, 4]
    assert data["low"][0] < 0.5 < data["high"][0]
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.5, 1.0]


def test_judge_confusion_has_labels_in_rows():
    table = pd.DataFrame(
        [
            {
                "mark": "N", "tp": 5, "fp": 1, "fn": 2, "tn": 3, "cohens_kappa": 0.4, "cohens_kappa_low": 0.1,
                "cohens_kappa_high": 0.7,
            }
        ]
    )
    figure, data = figures.judge_confusion(table, "t")
    assert [text.get_text() for text in figure.axes[0].texts] == ["5", "2", "1", "3"]
    assert data is table
