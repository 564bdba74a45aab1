"""Compare settings on 5,000 validation images, which are taken out of the 50,000 for training.

    python benchmarks/sweep.py sweep.jsonl max_lr=0.2,0.4,0.8 weight_decay=5e-4,1e-3 --seeds 3
    python benchmarks/sweep.py sweep.jsonl ema=0.99 lr_floor=0.05
    python benchmarks/sweep.py sweep.jsonl                 # as it is, for comparison
    python benchmarks/sweep.py sweep.jsonl --seeds 0       # only print what is in the file
    python benchmarks/sweep.py smoke.jsonl max_lr=0.01,0.02 --seeds 1 --smoke     # does it run?

Every combination of the values is trained once per seed, and appended as one JSON line; what the
file already has is not trained again, so a stopped sweep goes on. A setting is max_lr (the LR
finder's, unless it is given), any field of utils.Config, or a lever of benchmarks/levers.py. The
test images are never looked at.
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from itertools import product
from statistics import mean

import common
import torch
from levers import LEVERS

import utils
from models.resnet import ResNet18


def run(settings: dict, seed: int, smoke: bool) -> dict:
    """Train once with some settings, and return the scores on the validation images."""
    begin = time.perf_counter()
    levers = {name: settings[name] for name in settings if name in LEVERS}
    fields = {name: settings[name] for name in settings.keys() - levers.keys() - {"max_lr"}}
    fields = {**(common.SMOKE if smoke else {"profile": "full"}), **fields}
    with ExitStack() as stack:
        stack.enter_context(common.quiet())
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        config = utils.get_config(**fields, seed=seed, output_dir=folder)
        loader, _ = utils.get_dataloaders(config)
        train_loader, validation_loader = common.split(loader, config, 0.1)
        model = ResNet18().to(config.device, memory_format=torch.channels_last)
        with ExitStack() as changes:
            for name, value in levers.items():
                changes.enter_context(LEVERS[name](value, model, train_loader, config))
            max_lr = settings.get("max_lr")
            if max_lr is None:
                max_lr = utils.find_lr(model, train_loader, config)
            history = utils.fit_one_cycle(model, train_loader, validation_loader, max_lr, config)
        scores, _ = common.evaluate(model, validation_loader)
    return {
        **{"settings": settings, "seed": seed, "smoke": smoke, "max_lr": max_lr, **scores},
        "epoch_seconds": common.get_epoch_seconds(history),
        "seconds": time.perf_counter() - begin,
        "history": {name: values for name, values in history.items() if name != "lr"},
    }


def print_table(rows: list[dict]):
    """Print a line for every combination of settings, the best first."""
    groups = defaultdict(list)
    for row in rows:
        groups[json.dumps(row["settings"], sort_keys=True)].append(row)
    if any(row["smoke"] for row in rows):
        print("*** SMOKE TEST: far too little training. The numbers are no result. ***")
    print(f"{'validation (%)':<24}{'mirrored views':<24}{'s/epoch':>8}  settings")
    for settings, group in sorted(groups.items(), key=lambda item: rank(item[1]), reverse=True):
        done = [row for row in group if "diverged" not in row]
        scores = ([row[name] for row in done] for name in ("accuracy", "mirrored_accuracy"))
        columns = "".join(f"{common.describe(values) if values else '-':<24}" for values in scores)
        seconds = f"{mean(row['epoch_seconds'] for row in done):.2f}" if done else "-"
        lost = f", diverged {len(group) - len(done)} times" * (len(done) < len(group))
        print(f"{columns}{seconds:>8}  {settings}{lost}")


def rank(group: list[dict]) -> tuple[bool, float]:
    """Return what is higher for better rows; those of which one diverged are the worst."""
    done = [row["accuracy"] for row in group if "diverged" not in row]
    return len(done) == len(group), mean(done) if done else 0


@common.read_once()
def main():
    """Train what the file does not have yet, and print its table."""
    parser = common.get_parser(__doc__, 3, "NAME=VALUE,VALUE")
    args = parser.parse_args()
    known = {"max_lr", *common.SETTINGS, *LEVERS}
    try:
        settings = common.parse_settings(args.settings, known)
    except ValueError as error:
        parser.error(str(error))
    combinations = [
        dict(zip(settings, chosen, strict=True)) for chosen in product(*settings.values())
    ]
    args.file.touch()  # a bad path must fail now, not after the first run
    # The seeds outside: stopped at any moment, the settings can be compared as far as they are.
    for seed, settings in product(range(args.seeds), combinations):
        if common.is_done(args.file, settings, seed, args.smoke):
            continue
        begin = time.perf_counter()
        try:
            row = run(settings, seed, args.smoke)
        except FloatingPointError as error:
            row = {"settings": settings, "seed": seed, "smoke": args.smoke, "diverged": str(error)}
        common.append_row(args.file, row)
        result = "diverged" if "diverged" in row else f"{row['accuracy']:.2f} %"
        print(f"{result} in {time.perf_counter() - begin:.0f} s: {settings}, seed {seed}")
        sys.stdout.flush()
    print_table([row for row in common.read_rows(args.file) if row["smoke"] == args.smoke])


if __name__ == "__main__":
    main()
