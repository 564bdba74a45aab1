"""Train with several seeds on all training images, and test each of them once, after its end.

    python benchmarks/record.py --seeds 5
    python benchmarks/record.py --seeds 5 cutout_size=8     # another setting, as in sweep.py

A stopped run goes on, as in sweep.py. --near-duplicates names a CSV file whose column TestID has
the numbers of test images with nearly the same picture among the training images (from ciFAIR).
"""

import csv
from functools import partial

import common
import sweep
import torch

import utils


def test(model, loader, near_duplicates) -> dict:
    """Return the loss and, in %, the accuracies: one view, mirrored views, no near duplicates."""
    logits, labels = utils.predict(model, loader)
    mirrored, _ = utils.predict(model, ((images.flip(3), labels) for images, labels in loader))
    right, both = ((x.argmax(1) == labels).tolist() for x in (logits, logits + mirrored))
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    row = {"test_images": len(right), "loss": loss, "accuracy": 100 * sum(right) / len(right)}
    row["mirrored_accuracy"] = 100 * sum(both) / len(both)
    if near_duplicates:
        lines = csv.DictReader(near_duplicates.read_text().split())
        numbers = {int(line["TestID"]) for line in lines}
        others = [right[i] for i in range(len(right)) if i not in numbers]
        row["without_near_duplicates"] = 100 * sum(others) / len(others)
    return row


main = partial(sweep.main, "record", __doc__, test)

if __name__ == "__main__":
    common.keep_memory()
    main()
