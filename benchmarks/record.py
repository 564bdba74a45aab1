"""Train with several seeds on all training images, and test each of them once, after its end.

    python benchmarks/record.py record.jsonl --seeds 5
    python benchmarks/record.py record.jsonl --seeds 5 cutout_size=8
    python benchmarks/record.py record.jsonl --finished outputs/full            # the notebook's
    python benchmarks/record.py smoke.jsonl --seeds 2 --smoke                     # does it run?

The settings are those of utils.Config, and the LR finder's answer is used, as in the notebook; any
field can be given another value. Every seed is appended as one JSON line; what the file already has
is not trained again, and a run that was stopped goes on from its checkpoint.

After every epoch, the accuracy on 1,000 of the training images, not augmented, shows how it goes.
--finished adds a run that the notebook has made on this machine, with what it tested per epoch.

The test images are read in the end, as they are, for the result; again with their mirror images,
for a column of its own; and without those that have a near duplicate among the training images, if
--near-duplicates names a CSV file with their numbers in a column TestID (as ciFAIR has it; Barz &
Denzler, 2020, doi:10.3390/jimaging6060041).
"""

import argparse
import csv
import os
import shutil
import time
from pathlib import Path

import common
import torch
from torch import nn
from torch.utils.data import DataLoader

import utils
from models.resnet import ResNet18

PER_EPOCH = utils.HISTORY[:-1]  # without the learning rates, which are per step


def run(settings: dict, seed: int, smoke: bool, near_duplicates: list[int], folder: Path) -> dict:
    """Train with one seed, test once, and return what was measured; folder has the checkpoint."""
    begin = time.perf_counter()
    fields = {**(common.SMOKE if smoke else {"profile": "full"}), **settings}
    with common.quiet():
        config = utils.get_config(**fields, seed=seed, output_dir=folder)
        train_loader, test_loader = utils.get_dataloaders(config)
        _, probe_loader = common.split(train_loader, config, 20 if smoke else 1000)
        model = ResNet18().to(config.device)
        max_lr = utils.find_lr(model, train_loader, config)
        history = utils.fit_one_cycle(model, train_loader, probe_loader, max_lr, config)
        scores = measure(model, test_loader, near_duplicates)
    probe = {name.replace("test", "probe"): history[name] for name in PER_EPOCH}
    seconds = time.perf_counter() - begin
    return {**get_row(settings, seed, smoke, history, scores), "seconds": seconds, "history": probe}


def read_finished(folder: Path, near_duplicates: list[int]) -> dict:
    """Return the same of a run that utils.fit_one_cycle has finished in a folder.

    Raises ValueError when it is not finished, or of the quick profile.
    """
    with common.quiet():
        state = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
        fields, history = state["settings"], state["rest"]["history"]
        del fields["network"]
        config = utils.get_config(**fields, output_dir=folder)
        if config.caveat or len(history["seconds"]) < config.epochs:
            raise ValueError(f"{folder} has no finished run on all training images of CIFAR-10.")
        _, test_loader = utils.get_dataloaders(config)
        model = ResNet18().to(config.device, memory_format=torch.channels_last)
        model.load_state_dict(state["model"])
        scores = measure(model, test_loader, near_duplicates)
    changed = {
        name: value
        for name, value in fields.items()
        if name in common.SETTINGS - {"profile"} and value != getattr(utils.Config, name)
    }
    tested = {name: history[name] for name in PER_EPOCH}
    return {**get_row(changed, config.seed, False, history, scores), "history": tested}


def get_row(settings: dict, seed: int, smoke: bool, history: dict, scores: dict) -> dict:
    """Return what every row has, whoever has trained."""
    return {
        **{"settings": settings, "seed": seed, "smoke": smoke, "max_lr": max(history["lr"])},
        **{**scores, "epoch_seconds": common.get_epoch_seconds(history)},
    }


def measure(model: nn.Module, test_loader: DataLoader, near_duplicates: list[int]) -> dict:
    """Return what the test images say of a model."""
    scores, right = common.evaluate(model, test_loader)
    row = {"test_images": len(right), **scores}
    if near_duplicates:
        others = leave_out(right, near_duplicates)
        row["without_near_duplicates"] = common.get_percentage(others)
        row["images_without_near_duplicates"] = len(others)
    return row


def leave_out(right: torch.Tensor, numbers: list[int]) -> torch.Tensor:
    """Return the values of all images but those with these numbers."""
    kept = torch.ones(len(right), dtype=torch.bool)
    kept[numbers] = False
    return right[kept]


def read_numbers(name: str) -> list[int]:
    """Return the numbers of the test images in a CSV file's column TestID, each once."""
    try:
        with open(name, newline="") as file:
            return sorted({int(row["TestID"]) for row in csv.DictReader(file)})
    except (OSError, KeyError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{name} has no column TestID: {error!r}") from error


@common.read_once()
def main():
    """Train the seeds that the file does not have yet, and print what it has."""
    parser = common.get_parser(__doc__, 5, "NAME=VALUE")
    near = "file with a column TestID"
    parser.add_argument(
        "--near-duplicates", type=read_numbers, default=[], metavar="CSV", help=near
    )
    finished = "do not train, but add the run that has finished there"
    parser.add_argument("--finished", type=Path, metavar="FOLDER", help=finished)
    args = parser.parse_args()
    try:
        settings = common.parse_settings(args.settings, common.SETTINGS)
    except ValueError as error:
        parser.error(str(error))
    settings = {name: values[0] for name, values in settings.items()}
    args.file.touch()  # a bad path must fail now, not after the first run
    if args.finished:
        try:
            row = read_finished(args.finished, args.near_duplicates)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        settings, args.seeds = row["settings"], 0
        if not common.is_done(args.file, settings, row["seed"], args.smoke):
            common.append_row(args.file, row)
    outputs = Path(os.environ.get("S11_OUTPUT_DIR") or common.ROOT / "outputs")
    name = "-".join(["record", *args.settings, *["smoke"] * args.smoke])
    for seed in range(args.seeds):
        if common.is_done(args.file, settings, seed, args.smoke):
            continue
        folder = outputs / name / f"seed-{seed}"
        row = run(settings, seed, args.smoke, args.near_duplicates, folder)
        common.append_row(args.file, row)
        shutil.rmtree(folder)  # or another file would take this run for its own
        print(f"{row['accuracy']:.2f} % in {row['seconds']:.0f} s: seed {seed}", flush=True)
    rows = [
        row
        for row in common.read_rows(args.file)
        if (row["settings"], row["smoke"]) == (settings, args.smoke)
    ]
    if args.smoke:
        print("*** SMOKE TEST: far too little training. The numbers are no result. ***")
    for score in ("accuracy", "mirrored_accuracy", "without_near_duplicates", "epoch_seconds"):
        if values := [row[score] for row in rows if score in row]:
            low, high = min(values), max(values)
            print(f"{score:<24}{common.describe(values)}, from {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    main()
