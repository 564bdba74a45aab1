"""Train with several seeds on all training images, and test each of them once, after its end.

    python benchmarks/record.py --seeds 5
    python benchmarks/record.py --seeds 5 cutout_size=8     # another setting, as in sweep.py
    python benchmarks/record.py --seeds 1 --smoke           # a few digits: does it run?

The LR finder's answer is used, as in the notebook. Every seed is added to results.json; what is
there is not trained again, and a run that was stopped goes on from its checkpoint in outputs/.
After every epoch, the accuracy on 5,000 of the training images, not augmented, shows how it goes.

In the end, the test images are read as they are, for the result; with their mirror images, for a
column of its own; and without near duplicates of training images, if --near-duplicates names a CSV
file with their numbers, as ciFAIR has it (Barz & Denzler, 2020, doi:10.3390/jimaging6060041).
"""

import common
from sweep import run_missing


@common.read_once
def main():
    """Train, and test."""
    args = common.add_near_duplicates(common.get_parser(__doc__, seeds=5)).parse_args()
    run_missing("record", args, args.near_duplicates)


if __name__ == "__main__":
    common.keep_memory()
    main()
