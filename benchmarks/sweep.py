"""Compare settings on 5,000 validation images, which are taken out of the 50,000 for training.

    python benchmarks/sweep.py max_lr=0.02,0.04 weight_decay=5e-4,5e-3 --seeds 3
    python benchmarks/sweep.py half_size=true epochs=5 optimizer=sgd    # much shorter, for a CPU

Every combination is trained once per seed and added to results.json, if it is not there; a stopped
run goes on from outputs/. The test images are never looked at. A setting is a number or a word of
utils.Config, max_lr (else the LR finder's), or half_size=true: the network sees 16 x 16 pixels.
"""

import json
import re
import shutil
from argparse import ArgumentParser, RawTextHelpFormatter
from functools import partial
from itertools import product
from pathlib import Path
from unittest import mock

import common
import torch
from sklearn.model_selection import train_test_split
from torch.nn import functional as F

import utils
from models.resnet import ResNet18


def parse_setting(argument: str) -> tuple[str, list]:
    """Turn "name=1,true,word" into ("name", [1, True, "word"])."""
    name, values = argument.split("=")
    quoted = re.sub(r"\b(?!true\b|false\b)[a-z]\w*", r'"\g<0>"', values)
    return name, json.loads(f"[{quoted}]")


def split(loader, config: utils.Config) -> tuple:
    """Split training images by class, always alike: nine tenths, and one that is not augmented."""
    data, (_, plain) = loader.dataset, utils.get_transforms(config)
    options = {"test_size": 0.1, "stratify": data.labels.cpu(), "random_state": 0}
    nine, one = train_test_split(torch.arange(len(data)), **options)
    first = utils.make_loader(data.images[nine], data.labels[nine], data.transform, config, True)
    return first, utils.make_loader(data.images[one], data.labels[one], plain, config)


def train(settings: dict, seed: int, folder: Path, test=None) -> dict:
    """Train on nine tenths, or on all images if test is to see the model; return the row."""
    fields = {name: settings[name] for name in settings.keys() - {"max_lr", "half_size"}}
    config = utils.get_config(**{"profile": "full", **fields}, seed=seed, output_dir=folder)
    whole, test_loader = utils.get_dataloaders(config)
    nine_tenths, held_out = split(whole, config)
    loader, model = (whole if test else nine_tenths), ResNet18().to(config.device)
    if settings.get("half_size"):
        model.register_forward_pre_hook(lambda _, images: F.avg_pool2d(*images, 2))
    row = {"settings": settings, "seed": seed, "machine": utils.describe_machine(config.device)}
    if (max_lr := settings.get("max_lr")) is None:
        with mock.patch.object(utils, "plot_lr_finder") as plot:
            max_lr = utils.find_lr(model, loader, config)
        row["finder"] = dict(zip(("lr", "loss"), plot.call_args.args, strict=False))
    history = utils.fit_one_cycle(model, loader, held_out, max_lr, config)
    row |= {"max_lr": max_lr, "accuracy": history["test_accuracy"][-1]}
    if test:
        del history["lr"]  # and the images held out were trained on, so that they are no test
        row["history"] = {name.replace("test", "probe"): history[name] for name in history}
        row |= test(model, test_loader)
    return row


def main(part: str = "sweep", doc: str = __doc__, test=None):
    """Train with all settings and seeds of which results.json has no row, and add it."""
    parser = ArgumentParser(description=doc, formatter_class=RawTextHelpFormatter)
    parser.add_argument("settings", type=parse_setting, nargs="*", metavar="NAME=VALUE,VALUE")
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 0 on; default 3")
    parser.add_argument("--near-duplicates", metavar="CSV", type=lambda p: Path(p).read_text())
    args = parser.parse_intermixed_args()
    test = test and partial(test, near_duplicates=args.near_duplicates)
    pairs = [[(name, value) for value in values] for name, values in args.settings]
    done = [(row["settings"], row["seed"]) for row in common.read_results().get(part, [])]
    # The seeds outside: stopped at any moment, the settings can be compared as far as they are.
    for seed, settings in product(range(args.seeds), map(dict, product(*pairs))):
        if (settings, seed) not in done:
            words = [f"{name}={value}" for name, value in settings.items()]
            folder = Path("outputs", part, "-".join([*words, f"seed-{seed}"]))
            print(f"*** {settings}, seed {seed} ***", flush=True)
            common.add_row(part, train(settings, seed, folder, test))
            shutil.rmtree(folder, ignore_errors=True)  # or a run of later code would go on there


if __name__ == "__main__":
    main()
