"""Put measurements into results.json, the one source of the README, and draw the LR sweep.

    python benchmarks/collect.py --record record.jsonl --sweep sweep.jsonl --speed speed.jsonl

Each file replaces its part of results.json; a part whose file is not given stays as it is. With
both a record and a sweep, images/lr_sweep.png shows the validation accuracy by peak learning rate,
and the LR finder's answers to the seeds of the record. Refuses rows of a smoke test.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean

import common
import matplotlib.pyplot as plt

import utils


def check(rows: list[dict], path: Path) -> list[dict]:
    """Return the rows; ValueError if there are none, or some of a smoke test."""
    if not rows:
        raise ValueError(f"{path} has no measurements: run the benchmark first.")
    if any(row["smoke"] for row in rows):
        raise ValueError(f"{path} has rows of a smoke test, which are no results: take them out.")
    return rows


def group_by_lr(rows: list[dict]) -> dict[str, dict[float, list[float]]]:
    """Return the accuracies of a sweep by its other settings, and by max_lr within them."""
    groups = defaultdict(lambda: defaultdict(list))
    for row in rows:
        settings = dict(row["settings"])
        if "max_lr" in settings and "diverged" not in row:
            max_lr = settings.pop("max_lr")
            name = ", ".join(f"{key} {value}" for key, value in settings.items()) or "as it is"
            groups[name][max_lr].append(row["accuracy"])
    return {name: group for name, group in groups.items() if len(group) > 1}


@plt.rc_context(utils.STYLE)
def draw_lr_sweep(sweep: list[dict], record: list[dict], path: Path):
    """Draw the accuracies of a sweep, and the learning rates that the record was made with."""
    figure, axis = plt.subplots(figsize=(8, 4.5))
    colors = (utils.BLUE, utils.GREEN, utils.GREY)
    markers = "os^Dv"
    for i, (name, group) in enumerate(group_by_lr(sweep).items()):
        style = {"color": colors[i % len(colors)], "marker": markers[i % len(markers)]}
        lrs = sorted(group)
        axis.plot(lrs, [mean(group[lr]) for lr in lrs], **style, markersize=8, label=name)
        for lr in lrs:
            axis.plot([lr] * len(group[lr]), group[lr], ".", color=style["color"], alpha=0.5)
    for i, row in enumerate(record):
        label = f"LR finder, {len(record)} seeds" if i == 0 else None
        axis.axvline(row["max_lr"], color=utils.ORANGE, linestyle="--", label=label)
    axis.set(xscale="log", xlabel="peak learning rate", ylabel="accuracy on validation images (%)")
    axis.set_title("Where the LR finder leads, and what training with each peak gives")
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
    if args.record and args.sweep:
        figure = args.into / "images" / "lr_sweep.png"
        draw_lr_sweep(results["sweep"], results["record"], figure)
        print(f"{figure} is drawn")


if __name__ == "__main__":
    main()
