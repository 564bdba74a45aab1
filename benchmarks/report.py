"""Write the README's tables from results.json, and take a finished run of the notebook into it.

python -m benchmarks.report                       # write the tables, and draw the LR sweep
python -m benchmarks.report --check               # only compare: status 1 if a table differs
python -m benchmarks.report outputs/full          # this run replaces the record, with its weights
python -m benchmarks.report outputs/full --add    # or joins them, as one more seed
"""

import hashlib
import math
import re
import shutil
import sys
from argparse import ArgumentParser, RawTextHelpFormatter
from contextlib import redirect_stdout, suppress
from dataclasses import fields
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from statistics import mean, median, stdev
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import LogLocator
from torch import nn

import utils
from benchmarks import common
from models.resnet import ResNet18

NEEDED_BLOCKS = ("headline", "results", "log")  # the README may do without the others
DRAWN_BEFORE_TRAINING = ("samples.png", "lr_finder.png")
DRAWN_AFTER_TRAINING = ("history.png", "confusion_matrix.png", "misclassified.png", "gradcam.png")


# --- The tables of the two READMEs ----------------------------------------------------------------
def describe(settings: dict) -> str:
    """Name settings for a reader: "epochs 5, half size"."""
    words = [to_words(name, value) for name, value in sorted(settings.items())]
    return ", ".join(words) or "default settings"


def to_words(name: str, value) -> str:
    """Name one setting: "epochs 5", "half size" if it is only on, or "peak 0.04"."""
    if name == "max_lr":
        return f"peak {value:.3g}"
    words = name.replace("_", " ")
    return words if value is True else f"{words} {value}"


# What a reader calls a setting, where to_words would name a field and its value.
WORDS = {
    "optimizer muon": "Muon",
    "optimizer sgd": "SGD",
    "optimizer adamw": "AdamW",
    "anneal strategy cos": "cosine",
    "cutout free fraction 0": "CutOut to the end",
}


def say(settings: dict) -> str:
    """Name settings in a reader's words, the optimizer first: "SGD, cosine"."""
    names = sorted(settings, key=lambda name: (name != "optimizer", name))
    words = [to_words(name, settings[name]) for name in names]
    return ", ".join(WORDS.get(word, word) for word in words) or "default settings"


def leave_out_peak(settings: dict) -> dict:
    """Return settings without the peak, which is told beside them."""
    return {name: value for name, value in settings.items() if name != "max_lr"}


def average(values: list[float]) -> str:
    """Return mean and standard deviation of percentages: "95.01 ± 0.12 %"."""
    if len(values) == 1:
        return f"{values[0]:.2f} %"
    return f"{mean(values):.2f} ± {stdev(values):.2f} %"


def make_table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def get_record(results: dict) -> list[dict]:
    """Return the rows of the record, those of the plainest settings first."""
    return sorted(results.get("record", []), key=lambda row: (len(row["settings"]), row["seed"]))


def get_plainest(record: list[dict]) -> list[dict]:
    """Return the rows with the settings of the first one, which headline and log are about."""
    return [row for row in record if row["settings"] == record[0]["settings"]]


def make_headline(results: dict) -> str:
    """Say the record in one sentence."""
    record = get_record(results)
    if not record:
        return "Not measured yet."

    rows = get_plainest(record)
    accuracy = average([row["accuracy"] for row in rows])
    epochs = len(rows[0]["history"]["seconds"])
    images = f"{rows[0]['test_images']:,} images"
    seeds = f"mean ± standard deviation of {len(rows)} seeds" if len(rows) > 1 else "one run"
    return (
        f"**{accuracy}** test accuracy after {epochs} epochs "
        f"with {describe(rows[0]['settings'])} ({images}, {seeds})."
    )


def make_comparison(results: dict) -> str:
    """Return the table of the same network here and elsewhere."""
    zoo = "[cifar10-zoo](https://github.com/KellerJordan/cifar10-zoo/blob/"
    zoo += "d5a9ca595b26d7f10186ae7146f606a99fd548ec/airbench/baselines/train_resnet18_{}.py), SGD"
    rows = [
        [zoo.format(94), "26", "93.44 %", "94.00 %", "3 (mirrored: 200)"],
        [zoo.format(96), "80", "95.45 %", "95.88 %", "3 (mirrored: 100)"],
    ]
    record = get_record(results)
    own_rows = []
    if record:
        own = get_plainest(record)
        own_rows.append(compare(f"ours, {describe(own[0]['settings'])}", own))
    for settings in find_other_optimizers(record):
        own = [row for row in record if row["settings"] == settings]
        peaks = ", ".join(f"{row['max_lr']:.2g}" for row in own)
        name = f"ours, {say(leave_out_peak(settings))}, peak {peaks}"
        own_rows.append(compare(name, own))
    is_same = not any("network" in row["settings"] for row in record)
    title = "the same network" if is_same else "network"
    head = [title, "epochs", "one view", "mirrored views", "runs"]
    return make_table(head, own_rows + rows)


def find_other_optimizers(record: list[dict]) -> list[dict]:
    """Return the settings in the record, each once, that have another optimizer than the first."""
    names = [row["settings"].get("optimizer", utils.Config.optimizer) for row in record]
    found = []
    for row, name in zip(record, names, strict=True):
        if name != names[0] and row["settings"] not in found:
            found.append(row["settings"])
    return found


def compare(title: str, rows: list[dict]) -> list[str]:
    """Return a line of the comparison: the means of runs with the same settings."""
    cells = [title, str(len(rows[0]["history"]["seconds"]))]
    for name in ("accuracy", "mirrored_accuracy"):
        is_known = all(name in row for row in rows)
        cells.append(f"{mean(row[name] for row in rows):.2f} %" if is_known else "\u2013")
    return [*cells, str(len(rows))]


def make_check(results: dict) -> str:
    """Say how anyone can check the number, or how, once the weights are there."""
    record = get_record(results)
    for row in record:
        if "weights" in row:
            return (
                "**Check it yourself:** `.venv/bin/python -m benchmarks.verify` (on Colab, in "
                "a new cell, `!python -m benchmarks.verify`) measures "
                f"[our weights](models/resnet18.pt) (seed {row['seed']}) on the 10,000 test "
                "images, in three minutes on two CPU cores. "
                'In the notebook, with `profile="full"`, the line '
                "`history = utils.load_result(model, config)` in place of the LR finder and the "
                "training shows our mistakes and GradCAM, without a GPU, too."
            )
    if record and "network" in record[0]["settings"]:
        return (
            "**Check it yourself:** run the notebook. (This network is not ResNet18, so its "
            "weights are not in `models/`.)"
        )
    last = max((row["seed"] for row in record if not row["settings"]), default=-1)
    command = f"`.venv/bin/python -m benchmarks.record --seeds {last + 2}`"  # from 0 on
    return (
        "**Check it yourself:** the weights follow with the next full run; from then on, "
        "`.venv/bin/python -m benchmarks.verify` measures them in three minutes, without a GPU. "
        f"Until then, {command} trains seed {last + 1}."
    )


def make_results(results: dict) -> str:
    """Return the table of the record, a row for each seed."""
    head = ["seed", "settings", "peak learning rate", "test loss", "accuracy, one view"]
    head += ["mirrored views", "without near duplicates", "median epoch, training", "machine"]
    rows = []
    for row in get_record(results):
        cells = [str(row["seed"]), say(row["settings"])]
        cells += [f"{row['max_lr']:.3g}", f"{row['loss']:.4f}"]
        for name in ("accuracy", "mirrored_accuracy", "without_near_duplicates"):
            cells.append(f"{row[name]:.2f} %" if name in row else "\u2013")
        machine = re.sub(r"\+\w+\)", ")", row["machine"])  # without the build of PyTorch
        cells += [common.say_seconds(median(row["history"]["seconds"])), machine]
        rows.append(cells)
    return make_table(head, rows)


def make_log(results: dict) -> str:
    """Return the training log of one run, its second half beside the first."""
    history = {}
    for row in get_plainest(get_record(results)):
        if "test_loss" in row["history"]:  # record.py does not test every epoch
            history = row["history"]
            break

    names = ("train_accuracy", "test_loss", "test_accuracy")
    columns = [history.get(name, []) for name in names]
    epochs = []
    for epoch, values in enumerate(zip(*columns, strict=True), 1):
        epochs.append([str(epoch), *(f"{value:#.4g}" for value in values)])

    head = ["epoch", "train accuracy", "test loss", "test accuracy"]
    half = (len(epochs) + 1) // 2
    pairs = zip_longest(epochs[:half], epochs[half:], fillvalue=[""] * len(head))
    return make_table(head + head, [first + second for first, second in pairs])


def group_sweep(results: dict) -> dict[str, dict[float, list]]:
    """Return the accuracies of the sweep by settings, and by peak to two digits.

    A peak with which any seed diverged is left out: the others would flatter it.
    """
    groups = {}
    diverged = []
    for row in results.get("sweep", []):
        max_lr = row.get("max_lr", row["settings"].get("max_lr"))
        if max_lr is None:  # it diverged before there was a peak
            continue
        setting = describe(leave_out_peak(row["settings"]))
        peak = float(f"{max_lr:.2g}")
        if row.get("diverged"):
            diverged.append((setting, peak))
        else:
            groups.setdefault(setting, {}).setdefault(peak, []).append(row["accuracy"])
    for setting, peak in diverged:
        groups.get(setting, {}).pop(peak, None)
    return {setting: peaks for setting, peaks in groups.items() if peaks}


def make_settings(results: dict) -> str:
    """Return the table of the sweep: all settings, each with its best peak."""
    rows = []
    for setting, peaks in sorted(group_sweep(results).items()):
        best = max(peaks, key=lambda peak: mean(peaks[peak]))
        values = peaks[best]
        rows.append([setting, f"{best} (best of {len(peaks)})", average(values), str(len(values))])
    head = ["setting", "peak learning rate", "accuracy on validation images", "runs"]
    return make_table(head, rows)


def make_speed(results: dict) -> str:
    """Return the table of what was timed."""
    rows = []
    for row in results.get("speed", []):
        ratio = row["plain"] / row["ours"]
        seconds = [common.say_seconds(row["plain"]), common.say_seconds(row["ours"])]
        rows.append([row["what"], *seconds, f"**{ratio:.1f} x**", row["machine"]])
    return make_table(["what", "plain", "ours", "ratio", "machine"], rows)


def get_blocks(results: dict) -> dict[str, str]:
    """Return the sentence and the tables of the README by the names in their marks; stop if a row
    of results.json cannot be read."""
    make = {
        "headline": make_headline,
        "comparison": make_comparison,
        "check": make_check,
        "results": make_results,
        "log": make_log,
        "settings": make_settings,
        "speed": make_speed,
    }
    blocks = {}
    for mark, make_block in make.items():
        try:
            blocks[mark] = make_block(results)
        except Exception as error:  # there is no telling what a row edited by hand raises
            sys.exit(
                f"A row of results.json lacks something, or has something else in its place, so "
                f"{mark} cannot be written ({error!r}): take results.json from git again."
            )
    return blocks


def update_readmes(check: bool) -> bool:
    """Write the blocks of both READMEs, or only compare; return whether all is as it should."""
    blocks = get_blocks(common.read_results())
    is_right = update_page("README.md", blocks, NEEDED_BLOCKS, check)
    if (common.ROOT / "benchmarks" / "README.md").exists():
        is_right &= update_page("benchmarks/README.md", blocks, (), check)
    return is_right


def update_page(name: str, blocks: dict, needed: tuple, check: bool) -> bool:
    """Write the blocks of a page between their marks, or only compare; those that are not needed
    may be absent. Return whether all is as it should."""
    path = common.ROOT / name
    old = path.read_text(encoding="utf-8")
    new = old
    has_all_marks = True
    for mark, block in blocks.items():
        begin = f"<!-- begin: {mark} -->\n"
        end = f"<!-- end: {mark} -->"
        if begin not in old and end not in old and mark not in needed:
            continue

        before, _, rest = new.partition(begin)
        inside, found_end, after = rest.partition(end)
        is_clear = found_end and "<!-- begin" not in inside
        if not is_clear or old.count(begin) != 1 or old.count(end) != 1:
            print(f"{name}: {mark} needs one line {begin.strip()}, and below it one {end}.")
            has_all_marks = False
        elif inside != f"{block}\n":
            print(f"{name}: {mark} {'differs from results.json' if check else 'is new'}.")
            new = f"{before}{begin}{block}\n{end}{after}"

    if check:
        return has_all_marks and new == old
    utils.replace_file(path, new.encode())
    return has_all_marks


# --- The figure of the sweep ----------------------------------------------------------------------
@utils.plot_style()
def draw_sweep(results: dict):
    """Draw accuracy by peak in the short runs, for both optimizers, and where the finder leads."""
    short = {"half_size": True, "epochs": 5, "cutout_free_fraction": 0, "anneal_strategy": "cos"}
    groups = group_sweep(results)

    figure, axis = plt.subplots(figsize=(8, 4.5))
    titles = []
    for own, name, color in (({}, "Muon", utils.BLUE), ({"optimizer": "sgd"}, "SGD", utils.GREEN)):
        setting = describe(short | own)
        peaks = sorted(groups.get(setting, {}).items())
        points = {peak: mean(values) for peak, values in peaks}
        # From the least to the most of several seeds.
        below = [points[peak] - min(values) for peak, values in peaks]
        above = [max(values) - points[peak] for peak, values in peaks]
        axis.errorbar(
            points.keys(),
            points.values(),
            [below, above],
            fmt="o-",
            color=color,
            capsize=4,
            label=f"{name} (bars: from seed to seed)",
        )
        if points:
            best = max(points, key=points.get)
            titles.append(f"{name} is best with a peak of {best} ({points[best]:.1f} %)")
        for peak in find_peaks(results, setting):
            axis.axvline(peak, color=color, ls=":", label=f"where the LR finder leads with {name}")

    axis.set(xscale="log", xlabel="peak learning rate", ylabel="accuracy on validation images (%)")
    axis.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
    told = "5 epochs of CIFAR-10 in half the size, with CutOut to the end and a cosine"
    axis.set_title(f"{', '.join(titles)}\n({told})")
    axis.legend()
    figure.savefig(common.ROOT / "images" / "lr_sweep.png")
    plt.close(figure)


def find_peaks(results: dict, setting: str) -> set[float]:
    """Return the peaks to which today's rule leads on the curves that were kept of a setting."""
    curves = [(row["settings"], row) for row in results.get("finder", [])]
    curves += [(row["settings"], row["finder"]) for row in results["sweep"] if "finder" in row]
    peaks = set()
    for settings, curve in curves:
        if describe(settings) != setting:
            continue
        optimizer = settings.get("optimizer", utils.Config.optimizer)
        with suppress(ValueError):  # the loss only rose, so there was no peak
            peaks.add(utils.choose_peak(curve["lr"], curve["loss"], optimizer))
    return peaks


def draw_ladder(results: dict):
    """Draw the first run with each of the record's settings, epoch by epoch, in one figure."""
    ladder = common.ROOT / "images" / "ladder.png"
    known = {field.name for field in fields(utils.Config)}
    runs = {}
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        for row in get_record(results):
            name = say({"optimizer": utils.Config.optimizer, **row["settings"]})
            if name in runs or "test_loss" not in row["history"]:
                continue
            settings = {key: value for key, value in row["settings"].items() if key in known}
            config = common.make_config(settings, row["seed"], Path(folder))
            runs[name] = row | {"run": utils.get_settings(config)}
        if len(runs) > 1:
            utils.draw_comparison(runs, config)
            shutil.copy(config.output_dir / "comparison.png", ladder)
    if len(runs) < 2 and ladder.exists():
        print(f"Not replaced: {ladder}, since one run is no comparison.")


# --- A run of the notebook ------------------------------------------------------------------------
def read_run(folder: Path) -> dict:
    """Return the row of a finished run; stop if it is no result."""
    path = folder / "checkpoint.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        run = state["run"]
        history = state["history"]
        done = len(history["test_loss"])
        train_images = min(run["train_images"] or 50_000, 50_000)
        is_cifar10 = (run["profile"], run["dataset"]) == ("full", "CIFAR-10")
        row = {
            "commit": state.get("commit"),
            "settings": get_own_settings(state),
            "network": run.get("network"),  # older code did not note it
            "seed": run["seed"],
            "machine": state["machine"],
            "max_lr": state.get("max_lr") or max(history["lr"]),
            "test_images": 10_000,
            "history": {**history, "lr": [float(f"{lr:.4g}") for lr in history["lr"]]},
            "loss": history["test_loss"][-1],
            "accuracy": history["test_accuracy"][-1],
        }
    except Exception as error:  # there is no telling what a damaged file raises
        sys.exit(f"{path} is missing or damaged ({type(error).__name__}).")

    if done < run["epochs"]:
        sys.exit(f"{path} has {run['epochs'] - done} of {run['epochs']} epochs to go.")
    if not is_cifar10 or train_images < 50_000:
        sys.exit(f"{path} is not of a run on all of CIFAR-10, so it is no result.")
    if state.get("trained_before"):
        sys.exit(
            f"{path} is of a model that had been trained before, so it is no seed of its own: "
            f"train a new model, with another output_dir or resume=False."
        )
    return row


def get_own_settings(state: dict) -> dict:
    """Return what a checkpoint's run did otherwise than the defaults, as JSON has it."""
    run = state["run"]
    optimizer = utils.OPTIMIZERS.get(run["optimizer"], {})
    defaults = vars(utils.Config) | {"weight_decay": optimizer.get("weight_decay")}
    defaults["transforms"] = "ours"
    # A loader of your own may have a part of the images, or other batches of them.
    defaults["number of steps"] = run["epochs"] * math.ceil(50_000 / run["batch_size"])
    settings = {}
    for name, value in run.items():
        if name != "seed" and value != defaults.get(name, value):
            settings[name] = list(value) if isinstance(value, tuple) else value
    if not is_resnet18(state):
        settings["network"] = "not ResNet18"
    return settings


def is_resnet18(state: dict) -> bool:
    """Return whether the weights of a checkpoint are those of our ResNet18, and answer in it as
    they did in their run."""
    model = ResNet18()
    if utils.get_shapes(state["model"]) != utils.get_shapes(model.state_dict()):
        return False
    model.load_state_dict(state["model"])
    config = utils.Config("full", torch.device("cpu"), Path(), Path(), precision="float32")
    return "probe" not in state or utils.answers_alike(model, state["probe"], config)


def take_run(folder: Path, add: bool):
    """Put a run into the record: in place of all others, with its weights, or as one more seed."""
    row = read_run(folder)
    results = common.read_results()
    old = results.get("record", [])
    alike = [other for other in old if is_alike(other, row)]
    if add and old and not alike:
        sys.exit(
            f"{folder} has other settings or another network than the record, so it is no further "
            "seed. Without --add, it replaces all rows of the record, and models/resnet18.pt."
        )

    gone = old
    if add:
        gone = [other for other in alike if other["seed"] == row["seed"]]

    kept = [other for other in old if other not in gone]
    get_blocks({**results, "record": [*kept, row]})  # stops here, before anything has changed
    if not any("weights" in other for other in kept):  # the file belongs to this run now
        weights = None if "network" in row["settings"] else pack_weights(folder)
        replace_weights(weights)
        if weights:
            row["weights"] = hashlib.sha256(weights).hexdigest()
    common.add_row("record", row, gone)
    told = [f"seed {other['seed']} with {other['accuracy']:.2f} %" for other in gone]
    print(f"results.json: {row['accuracy']:.2f} % replaces {', '.join(told) or 'nothing'}.")


def is_alike(old: dict, new: dict) -> bool:
    """Return whether two rows have the same settings and, as far as is known, network."""
    networks = {old.get("network"), new.get("network")} - {None}
    return old["settings"] == new["settings"] and len(networks) < 2


def pack_weights(folder: Path) -> bytes:
    """Return the weights of a run as a plain state_dict of half the size.

    Convolutions and the linear layer are float16, which load_state_dict turns back.
    """
    state = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    model = ResNet18()
    model.load_state_dict(state["model"])
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.half()
    return utils.to_bytes(model.state_dict())


def replace_weights(weights: bytes | None):
    """Write models/resnet18.pt; without new weights, remove old ones, whose row is gone."""
    path = common.ROOT / "models" / "resnet18.pt"
    if weights:
        if not utils.replace_file(path, weights):
            sys.exit(f"{path} could not be written, so nothing has changed.")
        print("Replaced:", path)
    elif path.exists():
        path.unlink()
        print(f"Removed: {path}, of another network than this run. Delete it in your fork, too.")


def copy_figures(folder: Path):
    """Copy the figures of a run to images/, and name each one there that it did not replace."""
    images = common.ROOT / "images"
    drawn = {*DRAWN_BEFORE_TRAINING, *DRAWN_AFTER_TRAINING}  # no photo of your own
    own = {path.name for path in folder.glob("*.png")} & drawn
    stale = {name for name in own if is_stale(folder / name)}
    for name in sorted(own - stale):
        print("Replaced:", shutil.copy(folder / name, images))

    shown = {path.name for path in images.glob("*.png")} & drawn
    for name in sorted(shown - own):
        print(f"Not replaced: {images / name}, since {folder / name} is missing.")
    for name in sorted(stale):
        print(f"Not replaced: {images / name}, since {folder / name} is of an earlier run.")


def is_stale(figure: Path) -> bool:
    """Tell whether a figure is older than the run in its folder."""
    others = []
    if figure.name in DRAWN_AFTER_TRAINING:
        others = [figure.parent / "checkpoint.pt"]
    if figure.name in DRAWN_BEFORE_TRAINING:  # the run before had ended when they were drawn
        others = figure.parent.glob("checkpoint-previous-*.pt")
    drawn = figure.stat().st_mtime
    return any(drawn < other.stat().st_mtime for other in others)


def main() -> int:
    """Do what the arguments ask for; return 1 if a table differs, or has nowhere to stand."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of a finished run of the notebook")
    parser.add_argument("--add", action="store_true", help="the run is one more seed of the record")
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    if args.add and not args.folder:
        parser.error("--add needs the folder of a run.")

    if args.check:
        return 0 if update_readmes(check=True) else 1

    if args.folder:
        take_run(args.folder, args.add)
    if args.folder and not args.add:
        copy_figures(args.folder)
    is_right = update_readmes(check=False)
    results = common.read_results()
    if results.get("sweep"):
        draw_sweep(results)
    draw_ladder(results)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
