"""Compare settings on 5,000 validation images, which are taken out of the 50,000 for training.

    python -m benchmarks.sweep max_lr=0.02,0.04 weight_decay=5e-4,5e-3 --seeds 3
    python -m benchmarks.sweep half_size=true epochs=5 optimizer=sgd    # much shorter, for a CPU

Every combination is trained once per seed and added to results.json, if it is not there; a stopped
run goes on from outputs/. The test images are never looked at. A setting is a number or a word of
utils.Config, max_lr (else the LR finder's), or half_size=true: the network sees 16 x 16 pixels.
"""

from pathlib import Path

import utils
from benchmarks import common


def train(settings: dict, seed: int, folder: Path) -> dict:
    """Train on nine tenths, and return the accuracy on the tenth that was held out."""
    config = common.make_config(settings, seed, folder)
    loader, _ = utils.get_dataloaders(config)
    nine_tenths, held_out = common.split(loader, config)

    row = {}
    try:
        _, history = common.train(settings, nine_tenths, held_out, config, row)
    except FloatingPointError as error:
        print(f"This run diverged, and the sweep goes on: {error}")
        return {**row, "diverged": True}  # with its peak, if it had one
    return {**row, "accuracy": history["test_accuracy"][-1]}


def main():
    """Train with all settings and seeds of which results.json has no row."""
    _, runs = common.parse_runs(common.get_parser(__doc__), "sweep")
    common.run_all("sweep", runs, train)


if __name__ == "__main__":
    main()
