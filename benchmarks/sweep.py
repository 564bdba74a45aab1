"""Compare settings on 5,000 validation images, which are taken out of the 50,000 for training.

    python benchmarks/sweep.py max_lr=0.02,0.04 weight_decay=5e-4,5e-3 --seeds 3
    python benchmarks/sweep.py half_size=true epochs=5 optimizer=sgd    # much shorter, for a CPU

Every combination is trained once per seed and added to results.json, if it is not there; a stopped
run goes on from outputs/. The test images are never looked at. A setting is max_lr (else the LR
finder's), any field of utils.Config, or a lever:

    half_size=true         the network sees 16 x 16 pixels
    bias_lr=16             BatchNorm's biases learn so many times faster
    end_cutout=1           no CutOut in so many last epochs
    anneal=linear          OneCycle rises and falls in straight lines
    alternating_flip=true  by chance, then in every second epoch (Jordan, 2024, arXiv:2404.00498)
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
from torch import nn
from torch.optim import lr_scheduler

import utils
from models.resnet import ResNet18

NOT_IN_CONFIG = {"max_lr", "half_size", "bias_lr", "end_cutout", "anneal", "alternating_flip"}


def parse_setting(argument: str) -> tuple[str, list]:
    """Turn "name=1,true,word" into ("name", [1, True, "word"])."""
    name, values = argument.split("=")
    quoted = re.sub(r"\b(?!true\b|false\b)[a-z]\w*", r'"\g<0>"', values)
    return name, json.loads(f"[{quoted}]")


def split(loader, config: utils.Config) -> tuple:
    """Split training images by class, always alike: nine tenths, and the rest not augmented."""
    data, (_, plain) = loader.dataset, utils.get_transforms(config)
    options = {"test_size": 0.1, "stratify": data.labels.cpu(), "random_state": 0}
    kept, others = train_test_split(torch.arange(len(data)), **options)
    rest = utils.make_loader(data.images[kept], data.labels[kept], data.transform, config, True)
    return rest, utils.make_loader(data.images[others], data.labels[others], plain, config)


def pull_levers(settings: dict, model: nn.Module, dataset, epochs: int):
    """Change how a model is trained; return what replaces utils.train."""
    train, steps, whole = utils.train, dataset.transform.transforms, dataset.images
    if settings.get("half_size"):
        model.register_forward_pre_hook(lambda _, images: nn.functional.avg_pool2d(*images, 2))
    for layer in model.modules():  # SGD's steps grow with the gradient as with the learning rate
        if "bias_lr" in settings and isinstance(layer, nn.BatchNorm2d):
            layer.bias.register_hook(lambda gradient: settings["bias_lr"] * gradient)
    if is_alternating := settings.get("alternating_flip"):
        steps[:] = [step for step in steps if not isinstance(step, utils.RandomHorizontalFlip)]
        mirrored = torch.rand(len(dataset), 1, 1, 1, device=whole.device) < 0.5
        whole = dataset.images = torch.where(mirrored, whole.flip(2), whole)

    def train_epoch(model, loader, optimizer, scheduler, *args):
        epoch = 1 + scheduler.last_epoch // len(loader)  # it counts steps
        dataset.images = whole.flip(2) if is_alternating and epoch % 2 == 0 else whole
        if epoch > epochs - settings.get("end_cutout", 0):
            steps[:] = [step for step in steps if not isinstance(step, utils.CutOut)]
        return train(model, loader, optimizer, scheduler, *args)

    return train_epoch


def train(settings: dict, seed: int, folder: Path, test=None) -> dict:
    """Train on nine tenths, or on all images if test is to see the model; return the row."""
    fields = {name: settings[name] for name in settings.keys() - NOT_IN_CONFIG}
    config = utils.get_config(**{"profile": "full", **fields}, seed=seed, output_dir=folder)
    loader, test_loader = utils.get_dataloaders(config)
    nine_tenths, held_out = split(loader, config)
    loader = loader if test else nine_tenths
    model = ResNet18().to(config.device, memory_format=torch.channels_last)
    train_epoch = pull_levers(settings, model, loader.dataset, config.epochs)
    anneal = partial(lr_scheduler.OneCycleLR, anneal_strategy=settings.get("anneal", "cos"))
    row = {"settings": settings, "seed": seed, "max_lr": settings.get("max_lr")}
    row["machine"] = utils.describe_machine(config.device)
    with (
        mock.patch.object(utils, "train", train_epoch),
        mock.patch.object(lr_scheduler, "OneCycleLR", anneal),
        mock.patch.object(utils, "plot_lr_finder") as plot,
    ):
        if "max_lr" not in settings:
            row["max_lr"] = utils.find_lr(model, loader, config)
            row["finder"] = dict(zip(("lr", "loss"), plot.call_args.args, strict=False))
        try:
            history = utils.fit_one_cycle(model, loader, held_out, row["max_lr"], config)
        except FloatingPointError as error:
            if test:
                raise
            return {**row, "diverged": str(error), "accuracy": 0}
    if not test:
        return {**row, "accuracy": history["test_accuracy"][-1]}
    del history["lr"]  # and the images held out were trained on, so that they are no test
    row["history"] = {name.replace("test", "probe"): history[name] for name in history}
    return row | test(model, test_loader)


def main(part: str = "sweep", doc: str = __doc__, test=None):
    """Train with all settings and seeds of which results.json has no row, and add it."""
    parser = ArgumentParser(description=doc, formatter_class=RawTextHelpFormatter)
    parser.add_argument("settings", type=parse_setting, nargs="*", metavar="NAME=VALUE,VALUE")
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 0 on; default 3")
    parser.add_argument("--near-duplicates", type=Path, metavar="CSV", help="for record.py only")
    args = parser.parse_args()
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
    common.keep_memory()
    main()
