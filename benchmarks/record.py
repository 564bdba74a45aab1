"""Train with several seeds on all training images, and test each of them once, after its end.

    python benchmarks/record.py --seeds 5        # or with settings, as in sweep.py

--near-duplicates: a CSV file whose column TestID numbers the test images to leave out (ciFAIR's).
"""

import csv
from functools import partial

import sweep
from torch.nn import functional as F

import utils


def test(model, loader, near_duplicates) -> dict:
    """Return the loss and, in %, the accuracies: one view, mirrored views, no near duplicates."""
    logits, labels = utils.predict(model, loader)
    mirrored, _ = utils.predict(model, ((images.flip(3), labels) for images, labels in loader))
    right, both = ((x.argmax(1) == labels).tolist() for x in (logits, logits + mirrored))
    row = {"test_images": len(right), "loss": F.cross_entropy(logits, labels).item()}
    row["accuracy"], row["mirrored_accuracy"] = (100 * sum(x) / len(x) for x in (right, both))
    if near_duplicates:
        lines = csv.DictReader(near_duplicates.splitlines())
        kept = set(range(len(right))) - {int(line["TestID"]) for line in lines}
        row["without_near_duplicates"] = 100 * sum(right[i] for i in kept) / len(kept)
    return row


main = partial(sweep.main, "record", __doc__, test)

if __name__ == "__main__":
    main()
