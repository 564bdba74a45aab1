"""Write the README's tables from results.json, and take a finished run of the notebook into it.

python benchmarks/report.py                       # write the tables, and draw the LR sweep
python benchmarks/report.py --check               # only compare: status 1 if a table differs
python benchmarks/report.py outputs/full          # this run replaces all of the record
python benchmarks/report.py outputs/full --add    # or joins them, as one more seed
"""

import re
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
from models.resnet import ResNet18


def describe(settings: dict) -> str:
    """Name settings for a reader: "epochs 5, half size"."""
    own = (name if value is True else f"{name} {value}" for name, value in sorted(settings.items()))
    return ", ".join(own).replace("_", " ") or "default settings"


def average(values: list[float]) -> str:
    """Return mean and standard deviation of percentages: "95.01 ± 0.12 %"."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if values[1:] else "") + " %"


def make_table(*rows: str) -> str:
    """Return a table in Markdown of a head and rows, whose cells are divided by " | "."""
    line = " | ".join("---" for _ in rows[0].split(" | "))
    return "\n".join(f"| {row} |" for row in (rows[0], line, *rows[1:]))


def group_sweep(results: dict) -> dict[str, dict[float, list]]:
    """Return the accuracies of the sweep by settings, and by peak to two digits."""
    groups = defaultdict(lambda: defaultdict(list))
    for row in results.get("sweep", []):
        setting = describe({n: value for n, value in row["settings"].items() if n != "max_lr"})
        groups[setting][float(f"{row['max_lr']:.2g}")].append(row["accuracy"])
    return groups


def get_blocks(results: dict) -> dict[str, str]:
    """Return the sentence and the tables of the README by their names."""
    record = sorted(results.get("record", []), key=lambda r: (len(r["settings"]), r["seed"]))
    headline, log, lines = "Not measured yet.", [], []  # the plainest settings come first
    names = ("accuracy", "mirrored_accuracy", "without_near_duplicates")
    for row in record:
        scores = " | ".join(average([row[name]]) if name in row else "\u2013" for name in names)
        line = f"{row['seed']} | {describe(row['settings'])} | {row['max_lr']:.3g}"
        line += f" | {row['loss']:.4f} | {scores} | {median(row['history']['seconds']):.3g} s"
        lines.append(f"{line} | {row['machine']}")
    head = "seed | settings | peak learning rate | test loss | accuracy, one view | mirrored views "
    head += "| without near duplicates | median epoch, training | machine"
    blocks = {"results": make_table(head, *lines)}
    if record:
        rows = [row for row in record if row["settings"] == record[0]["settings"]]
        logs, values = [row["history"] for row in rows], [row["accuracy"] for row in rows]
        shown = next((kept for kept in logs if "test_loss" in kept), {})  # record.py has none
        columns = (shown.get(name, []) for name in ("train_accuracy", "test_loss", "test_accuracy"))
        for epoch, cells in enumerate(zip(*columns, strict=False), 1):
            log.append(" | ".join([str(epoch), *(f"{value:#.4g}" for value in cells)]))
        headline = f"**{average(values)}** test accuracy after {len(logs[0]['seconds'])} epochs "
        headline += f"with {describe(rows[0]['settings'])} ({rows[0]['test_images']:,} images, "
        headline += f"mean ± standard deviation of {len(rows)} seeds)." if rows[1:] else "one run)."
    head, half = "epoch | train accuracy | test loss | test accuracy", (len(log) + 1) // 2
    pairs = zip_longest(log[:half], log[half:], fillvalue=" | | | ")
    blocks |= {"headline": headline, "log": make_table(f"{head} | {head}", *map(" | ".join, pairs))}
    lines = []
    for settings, peaks in sorted(group_sweep(results).items()):
        peak, values = max(peaks.items(), key=lambda item: mean(item[1]))
        line = f"{settings} | {peak} (best of {len(peaks)})"
        lines.append(f"{line} | {average(values)} | {len(values)}")
    head = "setting | peak learning rate | accuracy on validation images | runs"
    blocks["settings"], lines = make_table(head, *lines), []
    for row in results.get("speed", []):
        line = f"{row['what']} | {row['plain']:.3g} s | {row['ours']:.3g} s"
        lines.append(f"{line} | **{row['plain'] / row['ours']:.1f} x** | {row['machine']}")
    blocks["speed"] = make_table("what | plain | ours | ratio | machine", *lines)
    return blocks


def update_readme(check: bool) -> bool:
    """Write the blocks between their marks, or only compare; return whether any differs."""
    path = common.ROOT / "README.md"
    old = text = path.read_text(encoding="utf-8")
    for name, block in get_blocks(common.read_results()).items():
        marks = rf"(?s)(<!-- begin: {name} -->\n).*?(<!-- end: {name} -->)"
        renewed = re.sub(marks, lambda found, block=block: f"{found[1]}{block}\n{found[2]}", text)
        if renewed != text:
            print(f"README.md: {name} {'differs from results.json' if check else 'is new'}.")
        text = renewed
    if not check:
        utils.replace_file(path, lambda file: file.write(text.encode()))
    return text != old


@utils.plot_style()
def draw_sweep(results: dict):
    """Draw accuracy by peak in the short runs, for both optimizers, and what the finder chose."""
    short = {"half_size": True, "epochs": 5, "cutout_free_fraction": 0, "anneal_strategy": "cos"}
    (figure, axis), titles = plt.subplots(figsize=(8, 4.5)), []
    rows, groups = results["sweep"] + results.get("finder", []), group_sweep(results)
    for own, name, color in (({}, "Muon", utils.BLUE), ({"optimizer": "sgd"}, "SGD", utils.GREEN)):
        setting = describe(short | own)
        points = {peak: mean(values) for peak, values in sorted(groups[setting].items())}
        axis.plot(points.keys(), points.values(), "o-", color=color, label=name)
        for best in sorted(points, key=points.get)[-1:]:
            titles.append(f"{name} is best with a peak of {best} ({points[best]:.1f} %)")
        for peak in {row["max_lr"] for row in rows if describe(row["settings"]) == setting}:
            axis.axvline(peak, color=color, ls=":", label=f"LR finder's peak for {name}")
    axis.set(xscale="log", xlabel="peak learning rate", ylabel="accuracy on validation images (%)")
    axis.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
    axis.set_title(f"{', '.join(titles)}\n({describe(short)})")
    axis.legend()
    figure.savefig(common.ROOT / "images" / "lr_sweep.png")
    plt.close(figure)


def take_run(folder: Path, add: bool):
    """Put a run into the record and its figures into images/; stop if it is no result."""
    path, usual = folder / "checkpoint.pt", vars(utils.Config)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        run, history = state["run"], state["history"]
        changed = {n: value for n, value in run.items() if value != usual.get(n, value)}
        if state["model"].keys() != ResNet18().state_dict().keys():
            changed["network"] = "not ResNet18"
        row = {"settings": changed, "seed": changed.pop("seed", 0), "machine": state["machine"]}
        row |= {"max_lr": max(history.pop("lr")), "test_images": 10_000, "history": history}
        row |= {name: history[f"test_{name}"][-1] for name in ("loss", "accuracy")}
        data = run["profile"], run["dataset"], min(run["train_images"] or 50_000, 50_000)
        to_go = run["epochs"] - len(history["test_loss"])
    except Exception as error:  # there is no telling what a damaged file raises
        sys.exit(f"{path} is missing or damaged ({type(error).__name__}).")
    if to_go:
        sys.exit(f"{path} has {to_go} of {run['epochs']} epochs to go.")
    if data != ("full", "CIFAR-10", 50_000):
        sys.exit(f"{path} is not of a run on all of CIFAR-10, so it is no result.")
    changed |= {n: list(value) for n, value in changed.items() if type(value) is tuple}  # as JSON
    old = common.read_results().get("record", [])
    if add and old and changed not in [other["settings"] for other in old]:
        sys.exit(f"{folder} has other settings than the record: leave out --add.")
    gone = [r for r in old if not add or (r["settings"], r["seed"]) == (changed, row["seed"])]
    common.add_row("record", row, gone)
    told = [f"seed {other['seed']} with {other['accuracy']:.2f} %" for other in gone]
    print(f"results.json: {row['accuracy']:.2f} % replaces {', '.join(told) or 'nothing'}.")
    for figure in [] if add else sorted(folder.glob("*.png")):
        print("Replaced:", shutil.copy(figure, common.ROOT / "images"))


def main() -> bool:
    """Do what the arguments ask for; return whether a table was to be checked, and differs."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of a finished run of the notebook")
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.folder and not args.check:
        take_run(args.folder, args.add)
    if not args.check and common.read_results().get("sweep"):
        draw_sweep(common.read_results())
    return update_readme(args.check) and args.check


if __name__ == "__main__":
    sys.exit(main())
