"""What the other scripts share: their arguments, rows of JSON, the machine, images and scores."""

import argparse
import contextlib
import io
import json
import os
import platform
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median, stdev
from unittest import mock

import torch
import torchvision
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # from whatever working directory

import utils  # noqa: E402

SPLIT_SEED = 0  # of the validation images: the same for all seeds of training
SETTINGS = utils.Config.__dataclass_fields__.keys() - {"seed", "output_dir"}  # open to the user
SMOKE = {"profile": "quick", "train_images": 200, "epochs": 1, "lr_finder_steps": 30}


def describe_machine() -> dict[str, str | int | None]:
    """Return names and numbers of the hardware, and the versions."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):  # Linux names the CPU only here, ARM nowhere
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line for line in lines if line.startswith("model name")).split(": ", 1)[1]
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def quiet() -> contextlib.AbstractContextManager:
    """Keep what the project prints from the screen."""
    return contextlib.redirect_stdout(io.StringIO())


@contextlib.contextmanager
def read_once():
    """Read CIFAR-10 once for all runs: on a fast GPU, this takes longer than an epoch."""
    read, kept = utils._load_cifar10, {}

    def load(config):
        if config.data_dir not in kept:
            kept[config.data_dir] = read(config)
        return kept[config.data_dir]

    with mock.patch.object(utils, "_load_cifar10", load):
        yield


def read_rows(path: Path) -> list[dict]:
    """Return the JSON lines of a file, none if it does not exist; skip a line cut by a kill."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def append_row(path: Path, row: dict):
    """Append a row with date and machine as one JSON line."""
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    cut = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a") as file:
        file.write("\n" * cut + json.dumps({"date": date, **row, **describe_machine()}) + "\n")


def split(
    train_loader: DataLoader, config: utils.Config, part: float | int
) -> tuple[DataLoader, DataLoader]:
    """Return a loader without a part of the training images, and one of them, not augmented.

    part: a share of the images or their number. It is stratified by class, and always the same.
    """
    whole, size = train_loader.dataset, config.batch_size
    kept, taken = train_test_split(
        torch.arange(len(whole)),
        test_size=part,
        stratify=whole.labels.cpu(),
        random_state=SPLIT_SEED,
    )

    def select(index, transform):
        index = index.to(config.device)
        images, labels = whole.images[index], whole.labels[index]
        return utils.DeviceDataset(images, labels, transform, device=config.device)

    _, plain = utils.get_transforms(config)
    return (
        DataLoader(select(kept, whole.transform), size, shuffle=True, collate_fn=tuple),
        DataLoader(select(taken, plain), size, collate_fn=tuple),
    )


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader) -> tuple[dict[str, float], torch.Tensor]:
    """Return the scores of one pass, and which images (N,) were classified rightly.

    The scores: loss and accuracy in %, and the accuracy of logits averaged over both mirror images.
    """
    logits, labels = utils.predict(model, loader)
    mirrored, _ = utils.predict(model, ((images.flip(3), labels) for images, labels in loader))
    right = logits.argmax(1) == labels
    scores = {
        "loss": nn.functional.cross_entropy(logits, labels).item(),
        "accuracy": get_percentage(right),
        "mirrored_accuracy": get_percentage((logits + mirrored).argmax(1) == labels),
    }
    return scores, right.cpu()


def get_percentage(right: torch.Tensor) -> float:
    """Return the percentage of what is true, exactly 95 for 95 of 100."""
    return 100 * right.sum().item() / len(right)


def get_epoch_seconds(history: dict) -> float:
    """Return the median seconds of training an epoch; the first is left out, if there are more."""
    return median(history["seconds"][1:] or history["seconds"])


def describe(values: list[float]) -> str:
    """Return mean and standard deviation of a few values, as '95.01 ± 0.12 (n=5)'."""
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread} (n={len(values)})"


def get_parser(description: str, seeds: int, form: str) -> argparse.ArgumentParser:
    """Return the parser of a script that trains settings, in this form, with several seeds."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=raw)
    parser.add_argument("file", type=Path, help="append JSON lines to it")
    parser.add_argument("settings", nargs="*", metavar=form, help="see above")
    seeds_help = f"so many, from 0 on; default {seeds}"
    parser.add_argument("--seeds", type=int, default=seeds, help=seeds_help)
    parser.add_argument("--smoke", action="store_true", help="a few digits; the scores are void")
    return parser


def is_done(path: Path, settings: dict, seed: int, smoke: bool) -> bool:
    """Say whether the file has the row of these settings and this seed."""
    wanted = settings, seed, smoke
    return wanted in [(row["settings"], row["seed"], row["smoke"]) for row in read_rows(path)]


def parse_settings(arguments: list[str], known: Iterable[str]) -> dict[str, list]:
    """Return the values of every NAME=VALUE,VALUE; ValueError for another form or name."""
    settings = {}
    for argument in arguments:
        name, equals, values = argument.partition("=")
        if not (name and equals and values):
            raise ValueError(f"{argument!r} is not of the form NAME=VALUE or NAME=VALUE,VALUE.")
        if name not in known:
            raise ValueError(f"There is no setting {name}: there are {', '.join(sorted(known))}.")
        settings[name] = [parse_value(value) for value in values.split(",")]
    return settings


def parse_value(value: str):
    """Turn a number, true, false or null into what it means; leave anything else as it is."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
