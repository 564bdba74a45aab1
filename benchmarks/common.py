"""What the other scripts share: their arguments, results.json, the machine, images and scores."""

import argparse
import csv
import json
import os
import platform
import re
import sys
import time
from pathlib import Path

import torch
import torchvision
from sklearn.model_selection import train_test_split

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # from whatever working directory

import utils  # noqa: E402


def keep_memory():
    """Start Python again so that Linux's C library keeps freed memory: a fifth faster on a CPU."""
    variables = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}  # read at the start only
    if sys.platform == "linux" and not variables.keys() <= os.environ.keys():
        arguments = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, arguments, os.environ | variables)


def parse_setting(argument: str) -> tuple[str, list]:
    """Turn "name=1,true,word" into ("name", [1, True, "word"])."""
    name, values = argument.split("=")
    quoted = re.sub(r"\b(?!true\b|false\b|null\b)[a-zA-Z][\w:]*", r'"\g<0>"', values)
    return name, json.loads(f"[{quoted}]")


def read_numbers(path: str) -> set[int]:
    """Return the numbers of test images in a CSV file's column TestID."""
    with open(path, newline="", encoding="utf-8") as file:
        return {int(row["TestID"]) for row in csv.DictReader(file)}


OPTIONS = {
    "settings": {"type": parse_setting, "nargs": "*", "metavar": "NAME=VALUE"},
    "folder": {"type": Path, "nargs": "?", "help": "of a finished run of the notebook"},
    "--seeds": {"type": int, "default": 3, "help": "so many, from 0 on; default 3"},
    "--near-duplicates": {"type": read_numbers, "default": (), "metavar": "CSV"},
}


def parse(doc: str, *names: str) -> argparse.Namespace:
    """Return the arguments of a script, some of these and flags."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=raw)
    for name in names:
        parser.add_argument(name, **OPTIONS.get(name, {"action": "store_true"}))
    return parser.parse_args()


def get_config(settings: dict, seed: int, folder: Path, smoke: bool = False) -> utils.Config:
    """Return the full profile with some settings; CIFAR-10 lies where the notebook has it."""
    if smoke:
        digits = {"profile": "quick", "train_images": 200, "epochs": 1, "lr_finder_steps": 30}
        settings = {**digits, "resume": False, **settings}
    data_dir = os.environ.get("S11_DATA_DIR") or ROOT / "data"
    settings = {"profile": "full", "data_dir": data_dir, **settings}
    return utils.get_config(**settings, seed=seed, output_dir=folder)


def read_results() -> dict[str, list[dict]]:
    """Return the rows of results.json by what they measure."""
    path = ROOT / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def add_row(part: str, row: dict, smoke: bool = False, keep=lambda old: True):
    """Add a row to those that are kept, each a line of results.json; print that of a smoke test."""
    row = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **row}
    if smoke:
        print(f"*** SMOKE TEST: too small to mean anything, not kept. ***\n{json.dumps(row)}")
        return
    results = read_results()  # now: another script may have added to it
    results[part] = [*filter(keep, results.get(part, [])), row]
    text = json.dumps(results).replace('{"date"', '\n{"date"') + "\n"
    utils.replace_file(ROOT / "results.json", lambda file: file.write(text.encode()))
    if read_results() != results:
        sys.exit("The row is not in results.json, which could not be written.")


def get_machine() -> dict[str, str | int | None]:
    """Return names and numbers of the hardware, and the versions."""
    info = Path("/proc/cpuinfo")  # where Linux names the CPU
    names = re.findall("model name\t: (.+)", info.read_text()) if info.exists() else []
    names += [platform.processor() or platform.machine()]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    return {"cpu": names[0], "cores": os.cpu_count(), "gpu": gpu, **versions}


def split(loader, config: utils.Config) -> tuple:
    """Split training images by class, always alike: nine tenths, and the rest not augmented."""
    data, (_, plain) = loader.dataset, utils.get_transforms(config)
    options = {"test_size": 0.1, "stratify": data.labels.cpu(), "random_state": 0}
    kept, others = train_test_split(torch.arange(len(data)), **options)
    return (
        utils.make_loader(data.images[kept], data.labels[kept], data.transform, config, True),
        utils.make_loader(data.images[others], data.labels[others], plain, config),
    )


def evaluate(model, loader, near_duplicates=()) -> dict[str, float]:
    """Return the loss and, in %, the accuracies: one view, mirrored views, no near duplicates."""
    logits, labels = utils.predict(model, loader)
    mirrored, _ = utils.predict(model, ((images.flip(3), labels) for images, labels in loader))
    right, both = ((x.argmax(1) == labels).tolist() for x in (logits, logits + mirrored))
    row = {"loss": torch.nn.functional.cross_entropy(logits, labels).item()}
    row["accuracy"] = 100 * sum(right) / len(right)  # exactly 95 for 95 of 100
    row["mirrored_accuracy"] = 100 * sum(both) / len(both)
    if near_duplicates:
        others = [right[i] for i in range(len(right)) if i not in near_duplicates]
        row["without_near_duplicates"] = 100 * sum(others) / len(others)
        row["images_without_near_duplicates"] = len(others)
    return row
