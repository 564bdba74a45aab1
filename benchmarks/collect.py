"""Put measurements into results.json, the one source of the README, and draw the LR sweep.

    python benchmarks/collect.py --record record.jsonl --sweep sweep.jsonl --speed speed.jsonl

Each file replaces its part of results.json; a part whose file is not given stays as it is. With a
sweep, images/lr_sweep.png shows the validation accuracy by peak learning rate, also of the runs
whose peak was the LR finder's. Refuses rows of a smoke test.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean

import common
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

import utils


def check(rows: list[dict], path: Path) -> list[dict]:
    """Return the rows; ValueError if there are none, or some of a smoke test."""
    if not rows:
        raise ValueError(f"{path} has no measurements: run the benchmark first.")
    if any(row["smoke"] for row in rows):
        raise ValueError(f"{path} has rows of a smoke test, which are no results: take them out.")
    return rows


def describe(settings: dict) -> str:
    """Name settings for a reader: "half size, epochs 5"."""
    words = [key if value is True else f"{key} {value}" for key, value in settings.items()]
    return ", ".join(words).replace("_", " ") or "as it is"


def group_by_lr(rows: list[dict]) -> tuple[dict, dict[str, dict[float, list[float]]]]:
    """Return what all rows have in common, and the accuracies by other settings and by max_lr."""
    done = [row for row in rows if "diverged" not in row and "max_lr" in row["settings"]]
    found = [dict(row["settings"]) for row in done]
    lrs = [settings.pop("max_lr") for settings in found]
    items = found[0].items() if found else ()
    shared = {key: value for key, value in items if all(s.get(key) == value for s in found)}
    groups = defaultdict(lambda: defaultdict(list))
    for row, settings, lr in zip(done, found, lrs, strict=True):
        own = {key: settings[key] for key in settings if key not in shared}
        groups[describe(own)][lr].append(row["accuracy"])
    return shared, groups


@plt.rc_context(utils.STYLE)
def draw_lr_sweep(rows: list[dict], path: Path):
    """Draw the accuracies of a sweep, and what the LR finder said where it was asked."""
    figure, axis = plt.subplots(figsize=(8, 4.5))
    colors = (utils.BLUE, utils.GREEN, utils.GREY)
    markers = "os^Dv"
    shared, groups = group_by_lr(rows)
    for i, (name, group) in enumerate(groups.items()):
        style = {"color": colors[i % len(colors)], "marker": markers[i % len(markers)]}
        lrs = sorted(group)
        axis.plot(lrs, [mean(group[lr]) for lr in lrs], **style, markersize=8, label=name)
        for lr in lrs:
            axis.plot([lr] * len(group[lr]), group[lr], ".", color=style["color"], alpha=0.5)
    asked = [row for row in rows if row["settings"] == shared and "max_lr" in row]
    if asked:
        points = [row["max_lr"] for row in asked], [row["accuracy"] for row in asked]
        label = f"as it is, peak from the LR finder ({len(asked)} seed{'s' * (len(asked) > 1)})"
        style = {"color": utils.ORANGE, "marker": "X", "linestyle": "", "markersize": 10}
        axis.plot(*points, **style, markeredgecolor="white", label=label)
    axis.set(xscale="log", xlabel="peak learning rate", ylabel="accuracy on validation images (%)")
    # Powers of ten alone would be one or two, too few to read a rate off.
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    title = "Accuracy by peak learning rate" + ", and where the LR finder leads" * bool(asked)
    axis.set_title(title + f"\n({describe(shared)})" * bool(shared))
    axis.legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main():
    """Read the files, and write results.json and the figure."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    for name in ("record", "sweep", "speed"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"rows of {name}.py")
    parser.add_argument("--into", type=Path, default=common.ROOT, help="the repository's folder")
    args = parser.parse_args()
    path = args.into / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    try:
        for name in ("record", "sweep", "speed"):
            if file := getattr(args, name):
                results[name] = check(common.read_rows(file), file)
    except ValueError as error:
        parser.error(str(error))
    utils._write(path, (json.dumps(results, indent=1) + "\n").encode())  # the old whole or the new
    print(f"{path} has {', '.join(f'{name} ({len(rows)})' for name, rows in results.items())}")
    if args.sweep:
        figure = args.into / "images" / "lr_sweep.png"
        draw_lr_sweep(results["sweep"], figure)
        print(f"{figure} is drawn")


if __name__ == "__main__":
    main()
