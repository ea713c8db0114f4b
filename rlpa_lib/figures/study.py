"""Figure of notebook 34: how far profile judges count from the truth. As in `figures`: (figure, the drawn DataFrame)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from rlpa_lib.figures.frame import GREY, PALETTE, panels


def overlap_counts(found: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """True against counted overlap, one panel a judge and set (`rewrites.count_overlaps` with a column `set`); areas: cases."""
    data = found.dropna(subset="predicted").groupby(["set", "judge", "true", "predicted"], as_index=False).size()
    data = data.rename(columns={"size": "cases"}).astype({"predicted": int})
    sets, judges, top = list(dict.fromkeys(found["set"])), list(dict.fromkeys(found["judge"])), int(data[["true", "predicted"]].max().max())
    size = (2.8 * len(judges), 0.4 + 2.8 * len(sets))
    with panels(len(sets) * len(judges), len(judges), size, {"axes.titlesize": 10}, sharex=True, sharey=True) as (figure, grid):
        for axes, (name, judge) in zip(grid, [(s, j) for s in sets for j in judges], strict=True):
            part = data[(data["set"] == name) & (data["judge"] == judge)]
            axes.plot([0, top], [0, top], color=GREY, linewidth=0.8, zorder=0)
            axes.scatter(part["true"], part["predicted"], s=300 * part["cases"] / data["cases"].max() + 8, color=PALETTE[0], alpha=0.7)
            axes.set(title=f"{judge}, {name}", xlabel="true overlap", ylabel="counted", xlim=(-0.7, top + 0.7), ylim=(-0.7, top + 0.7))
    return figure, data
