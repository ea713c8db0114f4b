"""Coverage of the 95 % intervals of N-IR and N-R² over simulated studies whose true curve is known.

`python tests/benchmarks/bench_coverage.py` (1,000 studies a curve, 74 users, ten turns; about ten minutes on
one core, not a test). Prints, for each curve, statistic and normalisation: coverage, how often the interval
lay above and below the truth (all in percent), mean length, milliseconds.
"""

import argparse
import time

import numpy as np
from scipy import special

from rlpa_lib.evaluation.curve_intervals import improvement_interval
from rlpa_lib.evaluation.metrics import normalized_improvement

TURNS = np.arange(10)
CURVES = {
    "rising": np.linspace(0.2, 0.8, 10), "from zero": np.linspace(0.0, 0.8, 10),
    "saturating": 0.8 * (1 - np.exp(-(TURNS + 0.3) / 2.5)), "falling": np.linspace(0.8, 0.3, 10),
    "rise and fall": np.array([0.07, 0.15, 0.57, 0.70, 0.77, 0.76, 0.64, 0.58, 0.53, 0.50]),
    "fall and rise": np.array([0.7, 0.55, 0.45, 0.35, 0.3, 0.32, 0.4, 0.5, 0.6, 0.7]),
    "slow rise": np.array([0.62, 0.69, 0.70, 0.74, 0.73, 0.74, 0.76, 0.78, 0.77, 0.80]),
    "noisy": np.array([0.42, 0.34, 0.50, 0.51, 0.51, 0.45, 0.47, 0.47, 0.50, 0.38]),
    "near zero": np.array([0.0, 0.04, 0.02, 0.04, 0.03, 0.01, 0.04, 0.01, 0.02, 0.01]),
    "flat": np.full(10, 0.5),
}


def study(curve_K, users: int, alike: float, rng: np.random.Generator):
    """0/1 scores (E, K) with means curve_K; `alike` is the correlation between a user's turns of the normal
    variables behind the scores."""
    normal = np.sqrt(alike) * rng.normal(size=(users, 1)) + np.sqrt(1 - alike) * rng.normal(
        size=(users, len(curve_K))
    )
    return (normal < special.ndtri(curve_K)).astype(float)


def coverage(
    curve_K, name: str, norm: str, studies: int, users: int = 74, alike: float = 0.3
) -> dict[str, float]:
    """Over `studies` simulated studies: shares covered, above and below the truth, mean length and seconds of
    an interval."""
    truth = normalized_improvement(curve_K, norm)[name == "n_r2"]
    ends, start = [], time.perf_counter()
    for number in range(studies):
        found = improvement_interval(study(curve_K, users, alike, np.random.default_rng(number)), name, norm)
        ends.append((found.low, found.high))
    low, high = np.transpose(ends)
    # The truth of a straight line, 1, and that of a flat one, 0, are known to the last digit only up to
    # rounding.
    above, below = np.mean(low > truth + 1e-9), np.mean(high < truth - 1e-9)
    seconds = (time.perf_counter() - start) / studies
    return {
        "covered": 1 - above - below, "above": above, "below": below, "length": np.mean(high - low),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--users", type=int, default=74)
    parser.add_argument("--alike", type=float, default=0.3)
    parser.add_argument("--curves", nargs="*", default=list(CURVES))
    options = parser.parse_args()
    print(f"{options.studies} studies, {options.users} users, correlation {options.alike}")
    print(f"{'curve':14} {'statistic':14} {'covered':>8} {'above':>6} {'below':>6} {'length':>7} {'ms':>5}")
    for curve in options.curves:
        for name in ("n_ir", "n_r2"):
            for norm in ("global", "running"):
                f = coverage(CURVES[curve], name, norm, options.studies, options.users, options.alike)
                shares = f"{100 * f['covered']:8.1f} {100 * f['above']:6.1f} {100 * f['below']:6.1f}"
                print(
                    f"{curve:14} {name + ' ' + norm:14} {shares} "
                    f"{f['length']:7.3f} {1000 * f['seconds']:5.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
