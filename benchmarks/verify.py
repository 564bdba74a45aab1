"""Measure the weights in models/resnet18.pt on the 10,000 test images, as anyone can.

    python -m benchmarks.verify                             # status 1 if a number is not right
    python -m benchmarks.verify --near-duplicates CSV       # without near duplicates, too
    python -m benchmarks.verify --write                     # results.json and README get it

It needs no GPU, and takes about three minutes on two CPU cores. CIFAR-10 is downloaded if need be.
All is computed in float32, so that every machine gets the same.
"""

import argparse
import sys
from contextlib import redirect_stdout
from io import StringIO

import torch
from torch import nn
from torch.utils.data import DataLoader

import utils
from benchmarks import common, record, report
from models.resnet import ResNet18

TOLERANCE = 0.05  # points; 5 of 10,000 images
FAR = 0.5  # points, by which no other precision or machine changes the accuracy of these weights
SCORES = {
    "accuracy": "one view",
    "mirrored_accuracy": "mirrored views averaged",
    "without_near_duplicates": "one view, without near duplicates",
}


def prepare(row: dict, weights: dict) -> tuple[nn.Module, DataLoader]:
    """Return the network with these weights, and the test images, normalised as in its run."""
    settings = {name: row["settings"][name] for name in ("mean", "std") if name in row["settings"]}
    settings |= {"precision": "float32", "batch_size": 50}  # so few stay in a CPU's cache
    with redirect_stdout(StringIO()):  # nothing is trained
        config = common.make_config(settings, 0, common.ROOT / "outputs" / "verify")
    _, test_data = utils.load_cifar10(config)
    _, normalize = utils.get_transforms(config)
    test_loader = utils.make_loader(*test_data, normalize, config)

    torch.backends.cudnn.allow_tf32 = False  # or a GPU would round what convolutions take in
    model = ResNet18()
    utils.load_weights(model, weights)
    model.to(config.device, memory_format=torch.channels_last)  # faster on a CPU, too
    return model.eval(), test_loader


def measure(row: dict, weights: dict, near_duplicates: set[int]) -> dict:
    """Return the scores of weights with the normalisation of their row's run."""
    model, test_loader = prepare(row, weights)
    n = len(test_loader.dataset)
    print(f"Each of {n:,} test images is seen twice, as it is and mirrored ...", flush=True)
    return record.score(model, test_loader, near_duplicates, "float32")


def compare(scores: dict, row: dict) -> bool:
    """Print measured beside known numbers; return whether they agree."""
    is_right = True
    print(f"{'':35}measured     results.json, seed {row['seed']}")
    for name, title in SCORES.items():
        if name not in scores:
            continue
        measured = scores[name]
        known = row.get(name)
        if known is None:
            verdict = "not measured yet"
        elif abs(measured - known) <= TOLERANCE + 1e-9:
            verdict = f"{known:6.2f} %   right"
        else:
            verdict = f"{known:6.2f} %   WRONG by {measured - known:+.2f} points"
            is_right = False
        print(f"{title:35}{measured:6.2f} %     {verdict}")
    return is_right


def main() -> int:
    """Measure and compare; return 1 if a number differs by more than 0.05 points. With --write,
    return 1 only if the accuracy differs by more than 0.5 points, or a table has nowhere to
    stand."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    record.add_near_duplicates(parser)
    parser.add_argument("--write", action="store_true", help="these are the numbers from now on")
    args = parser.parse_args()

    try:
        row, weights = utils.read_result(common.ROOT)
        scores = measure(row, weights, args.near_duplicates)
    except (OSError, ValueError) as error:  # no weights, no row, or no CIFAR-10
        sys.exit(str(error))

    is_right = compare(scores, row)
    if args.write and abs(scores["accuracy"] - row["accuracy"]) > FAR:
        print("Nothing was written: these weights do not answer as in their run. Did it have")
        print("another network, or did its own loader normalise otherwise than its config says?")
        return 1
    if args.write:
        common.add_row("record", row | scores, gone=[row])
        if not report.update_readmes(check=False):
            print("results.json has the measured numbers now, but the README has not: see above.")
            return 1
        print("results.json and the README have the measured numbers now.")
        return 0
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
