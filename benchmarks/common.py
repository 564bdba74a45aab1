"""What the scripts share: results.json, the settings in a call, and the training of one run."""

import argparse
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from io import StringIO
from itertools import product
from pathlib import Path

import torch
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

import utils
from models.resnet import ResNet18

ROOT = Path(__file__).resolve().parents[1]
LOCK_TIMEOUT = 30  # seconds; a writer needs milliseconds


# --- results.json: a list of rows for each kind of measurement ------------------------------------
def read_results() -> dict[str, list[dict]]:
    """Return the rows of results.json by what they measure; stop if the file is damaged."""
    path = ROOT / "results.json"
    if not path.exists():
        return {}

    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # a merge conflict, half of a file, another encoding
        sys.exit(
            f"{path} is not valid JSON ({error}): "
            f"settle the merge conflict in it, if there is one; if you have deleted the last line "
            f"of a part, delete the comma before it, too; or take the file from git again."
        )


def say_seconds(seconds: float) -> str:
    """Return a time to three digits, or to the second: "1.05 s", "1,855 s"."""
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


def add_row(part: str, row: dict, gone=()):
    """Add a row in place of those that are gone; it gets today's date, unless it has one."""
    path = ROOT / "results.json"
    row = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **row}

    with lock(path):
        results = read_results()
        kept = [old for old in results.get(part, []) if old not in gone]
        results[part] = [*kept, row]

        text = to_lines(results)
        utils.replace_file(path, text.encode())
        if read_results() != json.loads(text):
            sys.exit(f"The row is not in {path}, which could not be written.")


def to_lines(results: dict[str, list[dict]]) -> str:
    """Return JSON with a line for each row, and one for the head of each part."""
    parts = []
    for part, rows in results.items():
        lines = ",\n".join(json.dumps(row) for row in rows)
        parts.append(f"{json.dumps(part)}: [\n{lines}\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


@contextmanager
def lock(path: Path):
    """Keep other writers out: only one can create the lock beside a file, on any system."""
    own = path.with_name(f"{path.name}.lock")
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            own.touch(exist_ok=False)
            break
        except OSError as error:  # it is there; or, on Windows, is just being deleted
            if time.monotonic() > deadline:
                sys.exit(
                    f"{own} could not be created in {LOCK_TIMEOUT} seconds ({error}): "
                    f"if no other script is writing, delete it, and run this one again."
                )
            time.sleep(0.02)

    try:
        yield
    finally:
        own.unlink()


# --- The settings in a call -----------------------------------------------------------------------
def get_parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser of settings and of the number of seeds."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", type=parse_setting, nargs="*", metavar="NAME=VALUE,VALUE")
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 0 on; default 3")
    return parser


def parse_setting(argument: str) -> tuple[str, list]:
    """Turn "name=1,true,word" into ("name", [1, True, "word"])."""
    name, equals, text = argument.partition("=")
    words = text.split(",")
    is_whole = name and equals and all(words)
    if not is_whole or re.search(r"[\s=]", name + text):
        raise argparse.ArgumentTypeError(
            f"{argument!r} is no setting: write NAME=VALUE or NAME=VALUE,VALUE, without blanks."
        )

    known = {field.name for field in fields(utils.Config)} | {"max_lr", "half_size"}
    if name == "seed":
        raise argparse.ArgumentTypeError("choose the seeds with --seeds: --seeds 3 is 0, 1 and 2.")
    if name in ("data_dir", "output_dir", "resume"):
        raise argparse.ArgumentTypeError(f"{name} is no setting to compare: the script chooses it.")
    if name not in known:
        raise argparse.ArgumentTypeError(
            f"there is no setting {name!r}: choose max_lr, half_size, or one of utils.Config."
        )

    values = [parse_value(word) for word in words]
    for value in values:
        check_value(name, value)
        if values.count(value) > 1:
            raise argparse.ArgumentTypeError(f"{name} has the value {value} twice: once is enough.")
    return name, values


def parse_value(word: str) -> bool | int | float | str:
    """Turn a word into True, False, or a number, if it is one of them."""
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            pass
    return word


def check_value(name: str, value):
    """Refuse a bad value of the two settings that utils.Config does not know."""
    if name == "half_size" and type(value) is not bool:
        raise argparse.ArgumentTypeError(f"half_size is {value!r}, but must be true or false.")
    is_rate = type(value) in (int, float) and 0 < value < math.inf
    if name == "max_lr" and not is_rate:
        raise argparse.ArgumentTypeError(f"max_lr is {value!r}, but must be a number above 0.")


def parse_runs(parser: argparse.ArgumentParser, part: str) -> tuple[argparse.Namespace, list]:
    """Return the arguments, and settings, seed and folder of each run that results.json lacks.

    What utils.Config refuses is refused here, before anything is trained.
    """
    args = parser.parse_intermixed_args()
    if args.seeds < 1:
        parser.error(f"--seeds is {args.seeds}, but must be 1 or more.")

    names = [name for name, _ in args.settings]
    for name in names:
        if names.count(name) > 1:
            parser.error(f"{name} is given twice: join its values, as in {name}=VALUE,VALUE.")

    pairs = [[(name, value) for value in values] for name, values in args.settings]
    combinations = [dict(combination) for combination in product(*pairs)]
    done = [(row["settings"], row["seed"]) for row in read_results().get(part, [])]

    # The seeds outside: stopped at any moment, the settings can be compared as far as they are.
    runs = []
    for seed, settings in product(range(args.seeds), combinations):
        words = [f"{name}={value}" for name, value in sorted(settings.items())]
        folder = ROOT / "outputs" / part / "-".join([*words, f"seed-{seed}"])
        if (settings, seed) in done:
            continue
        try:
            with redirect_stdout(StringIO()):
                make_config(settings, seed, folder)
        except utils.OtherRunError:  # the settings are in the folder's name, so it is the code
            parser.error(f"{folder} holds a run of other code, which cannot go on: delete it.")
        except ValueError as error:
            parser.error(str(error))
        runs.append((settings, seed, folder))
    return args, runs


# --- One run, and the loop over all of them -------------------------------------------------------
def make_config(settings: dict, seed: int, folder: Path) -> utils.Config:
    """Return the configuration of a run: the full profile, unless the settings say otherwise."""
    own = {"profile": "full", **settings}
    own.pop("max_lr", None)
    own.pop("half_size", None)
    return utils.get_config(**own, seed=seed, output_dir=folder)


def split(loader, config: utils.Config) -> tuple:
    """Split training images by class, always alike: nine tenths, and one that is not augmented."""
    data = loader.dataset
    numbers = torch.arange(len(data))
    nine, one = train_test_split(numbers, test_size=0.1, stratify=data.labels.cpu(), random_state=0)

    _, plain = utils.get_transforms(config)
    nine_tenths = utils.make_loader(
        data.images[nine], data.labels[nine], data.transform, config, shuffle=True
    )
    held_out = utils.make_loader(data.images[one], data.labels[one], plain, config)
    return nine_tenths, held_out


def train(settings: dict, loader, held_out, config: utils.Config, row: dict) -> tuple:
    """Train a ResNet18; return it and its history, and note peak and machine in its row.

    Raises FloatingPointError if the loss of the LR finder only rises, or that of the training
    became infinite or NaN.
    """
    model = ResNet18().to(config.device)
    if settings.get("half_size"):
        model.register_forward_pre_hook(halve_images)

    row["machine"] = utils.describe_machine(config)
    if "max_lr" in settings:
        row["max_lr"] = settings["max_lr"]
    else:
        curve = find_curve(model, loader, config)
        row["finder"] = curve
        try:
            row["max_lr"] = utils.choose_peak(curve["lr"], curve["loss"], config.optimizer)
        except ValueError as error:  # even the smallest steps were too large
            raise FloatingPointError(str(error)) from None
    history = utils.fit_one_cycle(model, loader, held_out, row["max_lr"], config)
    saved = utils.read_run(config.output_dir)
    if saved:  # a run that went on keeps its first peak, and names all its machines
        row["max_lr"] = saved["max_lr"]
        row["machine"] = saved["machine"]
    return model, history


def halve_images(model: nn.Module, inputs: tuple) -> torch.Tensor:
    """Let the network see 16 x 16 pixels."""
    (images,) = inputs
    return F.avg_pool2d(images, 2)


def find_curve(model: nn.Module, loader, config: utils.Config) -> dict[str, list[float]]:
    """Return the curve of the LR finder; a run that goes on has it in its folder."""
    path = config.output_dir / "finder.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))

    lrs, losses = utils.range_test(model, loader, config)
    curve = {"lr": lrs, "loss": losses}
    utils.replace_file(path, json.dumps(curve).encode())
    return curve


def run_all(part: str, runs: list, train_one: Callable):
    """Train the runs one after another, and add the row of each to results.json.

    train_one: takes settings, seed and folder, and returns the rest of the row.
    """
    commit = utils.get_commit()  # now, since files may change while a run takes its hours
    if not runs:
        print("results.json has all these rows: there is nothing to do.")
    for settings, seed, folder in runs:
        print(f"*** {settings}, seed {seed} ***", flush=True)
        row = {"commit": commit, "settings": settings, "seed": seed}
        row |= train_one(settings, seed, folder)
        add_row(part, row)
        shutil.rmtree(folder, ignore_errors=True)  # or a run of later code would go on there
