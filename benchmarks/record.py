"""Train with several seeds on all training images, and test each of them once, after its end.

    python -m benchmarks.record --seeds 5        # or with settings, as in sweep.py

Each seed is added to results.json, if it is not there; a stopped run goes on from outputs/.
"""

import argparse
import csv
from functools import partial
from pathlib import Path

from torch import nn
from torch.nn import functional as F

import utils
from benchmarks import common


def read_near_duplicates(path: str) -> set[int]:
    """Return the numbers of the test images that a CSV file has in its column TestID."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        return {int(line["TestID"]) for line in csv.DictReader(lines)}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"{path} is no CSV file with numbers in its column TestID ({error!r})."
        ) from None


def add_near_duplicates(parser: argparse.ArgumentParser):
    """Add the option that names the test images to leave out."""
    parser.add_argument(
        "--near-duplicates",
        metavar="CSV",
        type=read_near_duplicates,
        default=set(),
        help="whose column TestID numbers the test images to leave out (ciFAIR's)",
    )


def score(model: nn.Module, loader, near_duplicates: set[int], precision=None) -> dict:
    """Return the loss and, in %, the accuracies: one view, mirrored views, no near duplicates."""
    logits, labels = utils.predict(model, loader, precision)
    mirrored_batches = ((images.flip(3), labels) for images, labels in loader)
    mirrored_logits, _ = utils.predict(model, mirrored_batches, precision)

    right = (logits.argmax(1) == labels).tolist()
    both_right = ((logits + mirrored_logits).argmax(1) == labels).tolist()
    row = {
        "test_images": len(right),
        "loss": F.cross_entropy(logits, labels).item(),
        "accuracy": 100 * sum(right) / len(right),
        "mirrored_accuracy": 100 * sum(both_right) / len(right),
    }
    if near_duplicates:
        kept = [is_right for i, is_right in enumerate(right) if i not in near_duplicates]
        row["without_near_duplicates"] = 100 * sum(kept) / len(kept)
    return row


def train(settings: dict, seed: int, folder: Path, near_duplicates: set[int]) -> dict:
    """Train on all training images; return the scores on the test images, and the history."""
    config = common.make_config(settings, seed, folder)
    loader, test_loader = utils.get_dataloaders(config)

    # A tenth of the training images shows how far the run is, without a look at the test images.
    _, probes = common.split(loader, config)
    row = {}
    model, history = common.train(settings, loader, probes, config, row)

    del history["lr"]
    row["history"] = {name.replace("test", "probe"): values for name, values in history.items()}
    return row | score(model, test_loader, near_duplicates, config.precision)


def main():
    """Train with all settings and seeds of which results.json has no row."""
    parser = common.get_parser(__doc__)
    add_near_duplicates(parser)
    args, runs = common.parse_runs(parser, "record")
    common.run_all("record", runs, partial(train, near_duplicates=args.near_duplicates))


if __name__ == "__main__":
    main()
