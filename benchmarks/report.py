"""Write the README's tables from results.json, and take a finished run of the notebook into it.

python benchmarks/report.py                       # write the tables, and draw the LR sweep
python benchmarks/report.py --check               # only compare: status 1 if a table differs
python benchmarks/report.py outputs/full          # this run replaces all of the record
python benchmarks/report.py outputs/full --add    # or joins them, as one more seed
"""

import shutil
import sys
from argparse import ArgumentParser, RawTextHelpFormatter
from collections import defaultdict
from itertools import zip_longest
from pathlib import Path
from statistics import mean, median, stdev

import common
import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import LogLocator

import utils


def describe(settings: dict) -> str:
    """Name settings for a reader: "half size, epochs 5"."""
    words = [key if value is True else f"{key} {value}" for key, value in settings.items()]
    return ", ".join(words).replace("_", " ") or "default settings"


def average(values: list[float]) -> str:
    """Return mean and standard deviation of percentages: "95.01 ± 0.12 %"."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if values[1:] else "") + " %"


def make_table(head: str, rows: list[list]) -> str:
    """Return a table in Markdown."""
    rows = [head.split(" | "), ["---"] * len(head.split(" | ")), *rows]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def divide(row: dict) -> tuple[str, str]:
    """Name what a row shares with those it is compared with, and its own settings but the peak."""
    own = {name: value for name, value in sorted(row["settings"].items()) if name != "max_lr"}
    run = {name: own.pop(name) for name in ("profile", "half_size", "epochs") if name in own}
    return describe(run), describe(own)


def group_sweep(results: dict) -> dict[tuple, dict[float, list]]:
    """Return the accuracies of the sweep as divided, and by peak to two digits."""
    groups = defaultdict(lambda: defaultdict(list))
    for row in results.get("sweep", []):
        groups[divide(row)][float(f"{row['max_lr']:.2g}")].append(row.get("accuracy", 0))
    return groups


def get_blocks(results: dict) -> dict[str, str]:
    """Return the sentence and the tables of the README by their names."""
    blocks, lines = {"headline": "Not measured yet.", "log": "Not measured yet."}, []
    names = ("accuracy", "mirrored_accuracy", "without_near_duplicates")
    for row in results.get("record", []):
        cells = [
            row["seed"],
            describe(row["settings"]),
            f"{row['max_lr']:.3g}",
            f"{row['loss']:.4f}",
        ]
        cells += [average([row[name]]) if name in row else "\u2013" for name in names]
        lines.append([*cells, f"{median(row['history']['seconds']):.3g} s", row["machine"]])
    head = "seed | settings | peak learning rate | test loss | accuracy, one view | mirrored views "
    head += "| without near duplicates | training of an epoch | machine"
    blocks["results"] = make_table(head, lines)
    if record := results.get("record"):
        history, settings = record[0]["history"], record[0]["settings"]
        names = list(history)[1:4]  # without the training loss
        columns = zip(*(history[name] for name in names), strict=True)
        lines = [[i, *(f"{value:#.4g}" for value in row)] for i, row in enumerate(columns, 1)]
        halves = lines[: (len(lines) + 1) // 2], lines[(len(lines) + 1) // 2 :]
        head = " | ".join(["epoch", *names] * 2).replace("_", " ")
        rows = [left + right for left, right in zip_longest(*halves, fillvalue=[])]
        blocks["log"] = make_table(head, rows)
        same = [row["accuracy"] for row in record if row["settings"] == settings]
        runs = f"mean ± standard deviation of {len(same)} seeds" if same[1:] else "one run"
        blocks["headline"] = (
            f"**{average(same)}** of the {record[0]['test_images']:,} test images are right "
            f"after {len(lines)} epochs with {describe(settings)} ({runs})."
        )
    lines = []
    for divided, peaks in sorted(group_sweep(results).items()):
        best = max(peaks, key=lambda peak: mean(peaks[peak]))
        peak = f"{best} (best of {len(peaks)})"
        lines.append([*divided, peak, average(peaks[best]), len(peaks[best])])
    head = "runs | setting | peak learning rate | accuracy on validation images | seeds"
    blocks["settings"] = make_table(head, lines)
    lines = []
    for row in results.get("speed", []):
        plain, ours = row["plain"], row["ours"]
        cells = [row["what"], f"{plain:.3g} s", f"{ours:.3g} s", f"**{plain / ours:.1f} x**"]
        lines.append([*cells, row["machine"]])
    blocks["speed"] = make_table("what | plain | ours | ratio | machine", lines)
    return blocks


def update_readme(check: bool) -> bool:
    """Write the blocks between their marks, or only compare; return whether any differs."""
    path = common.ROOT / "README.md"
    old = text = path.read_text(encoding="utf-8")
    for name, block in get_blocks(common.read_results()).items():
        before, begin, rest = text.partition(f"<!-- begin: {name} -->\n")
        _, end, after = rest.partition(f"<!-- end: {name} -->")
        renewed = f"{before}{begin}{block}\n{end}{after}" if end else text
        if renewed != text:
            print(f"README.md: {name} {'differs from results.json' if check else 'is new'}.")
        text = renewed
    if not check:
        utils.replace_file(path, lambda file: file.write(text.encode()))
    return text != old


@utils.plot_style()
def draw_sweep(results: dict):
    """Draw accuracy by peak for both optimizers, in the runs with most peaks."""
    groups, titles, (figure, axis) = group_sweep(results), [], plt.subplots(figsize=(8, 4.5))
    run, _ = max(groups, key=lambda divided: len(groups[divided]))
    rows = results["sweep"] + results.get("finder", [])
    asked = [row for row in rows if "max_lr" not in row["settings"]]
    for setting, name, color in (
        ("default settings", "Muon", utils.BLUE),
        ("optimizer sgd", "SGD", utils.GREEN),
    ):
        points = {peak: mean(values) for peak, values in sorted(groups[run, setting].items())}
        axis.plot(points.keys(), points.values(), "o-", color=color, label=name)
        for best in sorted(points, key=points.get)[-1:]:
            titles.append(f"{name} is best with a peak of {best} ({points[best]:.1f} %)")
        for peak in {row["max_lr"] for row in asked if divide(row) == (run, setting)}:
            axis.axvline(peak, color=color, ls=":", label=f"LR finder's peak for {name}")
    axis.set(xscale="log", xlabel="peak learning rate", ylabel="accuracy on validation images (%)")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_title(f"{', '.join(titles)}\n({run})")
    axis.legend()
    figure.savefig(common.ROOT / "images" / "lr_sweep.png")
    plt.close(figure)


def take_run(folder: Path, add: bool):
    """Put a run into the record and its figures into images/; ValueError if it is no result."""
    path, defaults = folder / "checkpoint.pt", vars(utils.Config)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        run, history = state["run"], state["history"]
        changed = {n: run[n] for n in run if n in defaults and run[n] != defaults[n]}
        row = {"settings": changed, "seed": changed.pop("seed", 0), "machine": state["machine"]}
        row |= {"max_lr": max(history.pop("lr")), "test_images": 10_000, "history": history}
        row |= {name: history[f"test_{name}"][-1] for name in ("loss", "accuracy")}
        is_whole = (run["profile"], run["dataset"]) == ("full", "CIFAR-10")
        is_whole &= (run["train_images"] or 50_000) >= 50_000
        to_go = run["epochs"] - len(history["test_loss"])
    except Exception as error:  # there is no telling what a damaged file raises
        raise ValueError(f"{path} is missing or damaged ({type(error).__name__}).") from None
    if to_go:
        raise ValueError(f"{path} has {to_go} of {run['epochs']} epochs to go.")
    if not is_whole:
        raise ValueError(f"{path} is not of a run on all of CIFAR-10, so it is no result.")
    old = common.read_results().get("record", [])
    if add and any(other["settings"] != changed for other in old):
        raise ValueError(f"{folder} has other settings than the record: leave out --add.")
    gone = [other for other in old if not add or other["seed"] == row["seed"]]
    common.add_row("record", row, keep=lambda other: other not in gone)
    told = [f"seed {other['seed']} with {other['accuracy']:.2f} %" for other in gone]
    print(f"results.json: {row['accuracy']:.2f} % replaces {', '.join(told) or 'nothing'}.")
    for figure in [] if add else sorted(folder.glob("*.png")):
        shutil.copy(figure, common.ROOT / "images")
        print(f"images/{figure.name} is replaced.")


def main() -> int:
    """Do what the arguments ask for; return 1 if a table differs, and 2 if a run is refused."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of a finished run of the notebook")
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    try:
        if args.folder:
            take_run(args.folder, args.add)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if common.read_results().get("sweep") and not args.check:
        draw_sweep(common.read_results())
    return int(update_readme(args.check) and args.check)


if __name__ == "__main__":
    sys.exit(main())
