"""Draws window.png, the README's picture, from the committed numbers: python docs/images/window.py"""

from __future__ import annotations

import csv
import json
from pathlib import Path

HERE = Path(__file__).parent
ARMS = {"constant": "constant learning rate", "annealed": "annealed to zero"}


def numbers() -> dict[str, list[list[float]]]:
    """By arm, [window in steps, change of dev perplexity to the raw weights in %, its interval's two ends]."""
    found: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    with (HERE.parents[1] / "benchmarks" / "tables" / "bert.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["metric"] == "perplexity" and row["relative"] and row["arm"] in found:
                change = [100 * float(row[key]) for key in ("relative", "relative_low", "relative_high")]
                found[row["arm"]].append([round(number, 4) for number in (float(row["window"]), *change)])
    return found


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    grey = "#8a8f98"  # readable on white and on black
    plt.rcParams.update(
        {"font.size": 12, "text.color": grey, "axes.labelcolor": grey, "axes.edgecolor": grey}
    )
    plt.rcParams.update(
        {"xtick.color": grey, "ytick.color": grey, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, axes = plt.subplots(figsize=(6.6, 3.4), layout="constrained")
    axes.axhline(0, color=grey, linewidth=1, linestyle="--")
    for (arm, label), color in zip(ARMS.items(), ("#2f7de1", "#e0792b"), strict=True):
        windows, change, low, high = zip(*numbers()[arm], strict=True)
        axes.fill_between(windows, low, high, color=color, alpha=0.22, linewidth=0)
        axes.semilogx(windows, change, "o-", color=color, label=label)
    axes.set(xlabel="averaging window, steps (of 3000)", ylabel="perplexity against raw, %")
    axes.legend(frameon=False, labelcolor="linecolor", loc="upper left")
    figure.savefig(
        HERE / "window.png", dpi=160, transparent=True, metadata={"Description": json.dumps(numbers())}
    )


if __name__ == "__main__":
    main()
