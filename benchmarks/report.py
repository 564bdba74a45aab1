"""Write the README's tables from results.json, and take a finished run of the notebook into it.

    python benchmarks/report.py                       # write the tables, and draw the LR sweep
    python benchmarks/report.py --check               # only compare: status 1 if a table differs
    python benchmarks/report.py outputs/full          # this run replaces all of the record
    python benchmarks/report.py outputs/full --add    # or joins them, as one more seed

A run of the notebook is tested after every epoch: the last one counts. Its figures go to images/,
unless it is added. If CIFAR-10 is there, its network is tested with mirrored images, too.
"""

import contextlib
import json
import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, median, stdev

import common
import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import LogLocator
from torchvision import datasets

import utils
from models.resnet import ResNet18

NONE = "\u2013"  # a dash
HEADS = {
    "results": "seed | peak learning rate | test loss | accuracy, one view | mirrored views "
    "| without near duplicates | training of an epoch | machine",
    "log": "epoch | training loss | training accuracy | {0} loss | {0} accuracy",
    "settings": "run | setting | accuracy on validation images | runs",
    "speed": "what | plain | ours | ratio | machine",
}


def describe(settings: dict, form: str = "{}") -> str:
    """Name settings, if there are any, for a reader and in this form: "half size, epochs 5"."""
    words = [key if value is True else f"{key} {value}" for key, value in settings.items()]
    return form.format(", ".join(words).replace("_", " ")) if words else ""


def divide(row: dict) -> tuple[str, dict]:
    """Return the name of the run in which a row of the sweep compares settings, and those."""
    rest = dict(sorted(row["settings"].items()))
    run = {n: rest.pop(n) for n in ("half_size", "epochs", "train_images") if n in rest}
    return describe(run) or "as it is", rest


def average(values: list[float]) -> str:
    """Return mean and standard deviation of a few percentages: "95.01 ± 0.12 %"."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "") + " %"


def get_blocks(results: dict) -> dict[str, str]:
    """Return the sentence and the tables of the README by their names."""
    record, rows, groups = results.get("record", []), defaultdict(list), defaultdict(list)
    blocks, kind = dict.fromkeys(["headline", *HEADS], "Not measured yet."), ""
    for row in record:
        seconds, mirrored = row["epoch_seconds"], row.get("mirrored_accuracy")
        others, count = (row.get(f"{n}without_near_duplicates") for n in ("", "images_"))
        rows["results"].append(
            f"{row['seed']}{describe(row['settings'], ' ({})')} | {row['max_lr']:.3g} "
            f"| {row['loss']:.4f} | **{row['accuracy']:.2f} %** "
            f"| {NONE if mirrored is None else f'{mirrored:.2f} %'} "
            f"| {NONE if others is None else f'{others:.2f} % of {count:,}'} "
            f"| {f'{seconds:.1f} s' if seconds < 120 else f'{seconds / 60:.1f} min'} "
            f"| {row['machine']}"
        )
    for row in record[:1]:
        kind = "test" if "test_loss" in row["history"] else "unaugmented training"
        columns = list(row["history"].values())[:4]
        for epoch, (a, b, c, d) in enumerate(zip(*columns, strict=True), 1):
            rows["log"].append(f"{epoch} | {a:.4f} | {b:.2f} % | {c:.4f} | {d:.2f} %")
        values = [other["accuracy"] for other in record if other["settings"] == row["settings"]]
        spread = f"of {len(values)} seeds, from {min(values):.2f} to {max(values):.2f}"
        blocks["headline"] = (
            f"**{average(values)}** of the {row['test_images']:,} test images are right after "
            f"{epoch} epoch{'s' * (epoch > 1)}{describe(row['settings'], ', with {}')} "
            f"({f'mean ± standard deviation {spread}' if len(values) > 1 else 'one run'})."
        )
    for row in results.get("sweep", []):
        run, settings = divide(row)
        told = [describe(settings)] if settings else ["as it is"]
        told += ["peak of the LR finder"] * ("max_lr" not in settings)
        groups[run, ", ".join(told)].append(row.get("accuracy", 0))
    for (run, told), values in sorted(groups.items(), key=lambda g: (g[0][0], -mean(g[1]))):
        diverged = f", {values.count(0)} diverged (as 0 %)" * (0 in values)
        rows["settings"].append(f"{run} | {told} | {average(values)} | {len(values)}{diverged}")
    for row in results.get("speed", []):
        plain, ours = (f"{row[n]:,.{2 * (row['unit'] == 's')}f}" for n in ("plain", "ours"))
        machine = f"{row['cores']} cores of {row['cpu']}" if "CPU" in row["what"] else row["gpu"]
        numbers = f"{plain} {row['unit']} | {ours} {row['unit']} | **{row['ratio']:.1f} x**"
        rows["speed"].append(f"{row['what']} | {numbers} | {machine}")
    for name, lines in rows.items():
        head = HEADS[name].format(kind)
        lines = [head, " | ".join(["---"] * len(head.split(" | "))), *lines]
        blocks[name] = "\n".join(f"| {line} |" for line in lines)
    return blocks


def update_readme(check: bool) -> int:
    """Write the blocks between their marks, or only compare; return how many differ."""
    path, blocks, differ = common.ROOT / "README.md", get_blocks(common.read_results()), []

    def renew(match):
        block = f"{match[1]}{blocks[match[2]]}\n{match[3]}"
        if block != match[0]:
            differ.append(match[2])
            print(f"README.md: {match[2]} {'differs from results.json' if check else 'is new'}.")
        return block

    marks = rf"(<!-- begin: ({'|'.join(blocks)}) -->\n).*?(<!-- end: \2 -->)"
    text = re.sub(marks, renew, path.read_text(encoding="utf-8"), flags=re.DOTALL)
    if not check:
        utils.replace_file(path, lambda file: file.write(text.encode()))
    return len(differ)


@utils.plot_style()
def draw_sweep(results: dict):
    """Draw accuracy by peak and optimizer, in the run of which most was measured, by peak alone."""
    swept, alone = results.get("sweep", []), {"max_lr", "optimizer"}
    if not (rows := [row for row in swept if divide(row)[1].keys() <= alone]):
        return
    run = max((divide(row)[0] for row in rows), key=[divide(row)[0] for row in rows].count)
    figure, axis = plt.subplots(figsize=(8, 4.5))
    titles = []
    for optimizer, color, name in (("muon", utils.BLUE, "Muon"), ("sgd", utils.GREEN, "SGD")):
        given, peaks = defaultdict(list), set()
        for row in [*rows, *results.get("finder", [])]:
            told, settings = divide(row)
            if (told, settings.get("optimizer", "muon")) == (run, optimizer):
                if curve := row.get("finder", row if "lr" in row else None):
                    peaks.add(utils.choose_peak(curve["lr"], curve["loss"])[0])
                if "accuracy" in row:
                    given[row["max_lr"]].append(row["accuracy"])
        lrs = sorted(given)
        means = [mean(given[lr]) for lr in lrs]
        axis.plot(lrs, means, "o-", color=color, label=name)
        for peak in peaks:
            axis.axvline(peak, color=color, ls=":", label=f"{name}: a peak of the LR finder")
        for best in [max(means)] if means else []:
            lr = lrs[means.index(best)]
            titles.append(f"{name} is best at a peak of {lr:.3g}: {best:.1f} %")
    axis.set(xscale="log", xlabel="peak learning rate", ylabel="accuracy on validation images (%)")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # powers of ten alone are too few
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.set_title("; ".join(titles) + f"\n({run})")
    axis.legend()
    figure.savefig(common.ROOT / "images" / "lr_sweep.png")


def read_run(folder: Path, near_duplicates: set) -> dict:
    """Return the row of a finished run; ValueError if there is none on all of CIFAR-10."""
    path, defaults = folder / "checkpoint.pt", vars(utils.Config)
    if not path.exists():
        raise ValueError(f"{path} does not exist: name the folder of a finished run.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved, history = state["run"], state["history"]
        epochs, done = saved["epochs"], len(history["test_loss"])
        is_whole = (saved["profile"], saved["dataset"]) == ("full", utils.Config.dataset)
        is_whole &= (saved["train_images"] or 50_000) >= 50_000
        changed = {n: saved[n] for n in saved if n in defaults and saved[n] != defaults[n]}
        row = {"settings": changed, "seed": saved["seed"], "max_lr": max(history.pop("lr"))}
        row |= {"test_images": 10_000, "loss": history["test_loss"][-1]}
        row |= {"accuracy": history["test_accuracy"][-1], "machine": state["machine"]}
        seconds = median(history["seconds"][1:] or history["seconds"])
        row |= {"epoch_seconds": seconds, "history": history}
        model = state["model"]
    except Exception as error:  # there is no telling what a damaged file raises
        raise ValueError(f"{path} is damaged ({type(error).__name__}).") from None
    if not is_whole:
        raise ValueError(f"{path} is not of a run on all of CIFAR-10, so it is no result.")
    if done < epochs:
        raise ValueError(f"{path} is not finished: {done} of {epochs} epochs are done.")
    changed.pop("seed", None)
    with contextlib.suppress(OSError, RuntimeError), contextlib.redirect_stdout(None):
        config, network = common.get_config(changed, row["seed"], folder), ResNet18()
        network.load_state_dict(model)  # RuntimeError if it is another network
        test = datasets.CIFAR10(config.data_dir, train=False)  # or if the images are not there
        plain = utils.get_transforms(config)[1]
        loader = utils.make_loader(test.data, test.targets, plain, config)
        row = {**common.evaluate(network.to(config.device), loader, near_duplicates), **row}
    return json.loads(json.dumps(row))  # with lists for tuples, as the other rows


def take_run(folder: Path, near_duplicates: set, add: bool):
    """Put a run into the record, and its figures into images/; say what was there."""
    row, old = read_run(folder, near_duplicates), common.read_results().get("record", [])
    if add and any(other["settings"] != row["settings"] for other in old):
        raise ValueError(f"{folder} has other settings than the record: leave out --add.")
    gone = [other for other in old if not add or other["seed"] == row["seed"]]
    common.add_row("record", row, keep=lambda other: other not in gone)
    told = [f"seed {other['seed']} with {other['accuracy']:.2f} %" for other in gone]
    print(f"results.json: {row['accuracy']:.2f} % replaces {', '.join(told) or 'nothing'}.")
    for figure in [] if add else sorted(folder.glob("*.png")):
        shutil.copy(figure, common.ROOT / "images")
        print(f"images/{figure.name} is replaced.")


def main() -> int:
    """Do what the arguments ask for, and return the exit status."""
    args = common.parse(__doc__, "folder", "--add", "--check", "--near-duplicates")
    try:
        if args.folder:
            take_run(args.folder, args.near_duplicates, args.add)
        elif not args.check:
            draw_sweep(common.read_results())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return int(update_readme(args.check) > 0 and args.check)


if __name__ == "__main__":
    sys.exit(main())
