"""Train with several seeds on all training images, and test each of them once, after its end.

    python benchmarks/record.py --seeds 5
    python benchmarks/record.py --seeds 5 cutout_size=8     # another setting, as in sweep.py
    python benchmarks/record.py --smoke                     # a few digits: does it run?

Every seed is added to results.json, and not trained again; a run that was stopped goes on from its
checkpoint in outputs/. After each epoch, 5,000 of the training images, not augmented, show how it
goes. In the end, the test images are read as they are, for the result; with their mirror images;
and without near duplicates of training images, if --near-duplicates names a CSV file with their
numbers in a column TestID, as ciFAIR has it (Barz & Denzler, 2020, doi:10.3390/jimaging6060041).
"""

import common
from sweep import run_missing


def main():
    """Train, and test."""
    run_missing("record", __doc__, "--near-duplicates")


if __name__ == "__main__":
    common.keep_memory()
    main()
