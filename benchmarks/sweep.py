"""Compare settings on 5,000 validation images, which are taken out of the 50,000 for training.

    python benchmarks/sweep.py max_lr=0.02,0.04 weight_decay=5e-4,5e-3 --seeds 3
    python benchmarks/sweep.py half_size=true epochs=5 optimizer=sgd    # much shorter, for a CPU
    python benchmarks/sweep.py --finder-only     # ask the LR finder, and do not train
    python benchmarks/sweep.py --smoke           # a few digits: does it run?

Every combination of the values is trained once per seed, and added to results.json; what is there
is not trained again, so a stopped sweep goes on. The test images are never looked at. A setting is
max_lr (else the LR finder's), any field of utils.Config, or a lever:

    half_size=true         the network sees 16 x 16 pixels
    bias_lr=16             BatchNorm's biases learn so many times faster
    end_cutout=1           no CutOut in so many last epochs
    anneal=linear          OneCycle rises and falls in straight lines
    alternating_flip=true  by chance, then in every second epoch (Jordan, 2024, arXiv:2404.00498)
"""

import os
import shutil
import time
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import median
from unittest import mock

import common
import torch
from torch import nn
from torch.optim import lr_scheduler
from torchvision import datasets

import utils
from models.resnet import ResNet18

NOT_IN_CONFIG = {"max_lr", "half_size", "bias_lr", "end_cutout", "anneal", "alternating_flip"}


def pull_levers(settings: dict, model: nn.Module, dataset, epochs: int):
    """Change how a model is trained; return what to call before each epoch, with its number."""
    steps, whole = dataset.transform.transforms, dataset.images
    if settings.get("half_size"):
        model.register_forward_pre_hook(lambda _, images: nn.functional.avg_pool2d(*images, 2))
    for layer in model.modules():  # SGD's steps grow with the gradient as with the learning rate
        if "bias_lr" in settings and isinstance(layer, nn.BatchNorm2d):
            layer.bias.register_hook(lambda gradient: settings["bias_lr"] * gradient)
    if is_alternating := settings.get("alternating_flip"):
        steps[:] = [step for step in steps if not isinstance(step, utils.RandomHorizontalFlip)]
        mirrored = torch.rand(len(dataset), 1, 1, 1, device=whole.device) < 0.5
        whole = dataset.images = torch.where(mirrored, whole.flip(2), whole)

    def begin(epoch: int):
        dataset.images = whole.flip(2) if is_alternating and epoch % 2 == 0 else whole
        if epoch > epochs - settings.get("end_cutout", 0):
            steps[:] = [step for step in steps if not isinstance(step, utils.CutOut)]

    return begin


def run(part: str, settings: dict, seed: int, folder: Path, args) -> dict:
    """Return a row for results.json: of a "sweep", of the "finder" alone, or of a "record"."""
    start, train = time.perf_counter(), utils.train
    anneal = partial(lr_scheduler.OneCycleLR, anneal_strategy=settings.get("anneal", "cos"))

    def train_epoch(model, loader, optimizer, scheduler, *args):
        begin(1 + scheduler.last_epoch // len(loader))  # it counts steps
        return train(model, loader, optimizer, scheduler, *args)

    with (
        mock.patch.object(utils, "train", train_epoch),
        mock.patch.object(lr_scheduler, "OneCycleLR", anneal),
        mock.patch.object(utils, "plot_lr_finder") as plot,
    ):
        fields = {name: settings[name] for name in settings.keys() - NOT_IN_CONFIG}
        config = common.get_config(fields, seed, folder, args.smoke)
        loader, test_loader = utils.get_dataloaders(config)
        rest, held_out = common.split(loader, config)
        if part != "record":  # which alone trains on all images, and looks at the test images
            loader, test_loader = rest, held_out
        model = ResNet18().to(config.device, memory_format=torch.channels_last)
        begin = pull_levers(settings, model, loader.dataset, config.epochs)
        row = {"settings": settings, "seed": seed, "max_lr": settings.get("max_lr")}
        row |= {"machine": utils.describe_machine(config.device)} | common.get_machine()
        if part == "finder" or "max_lr" not in settings:  # its curve is kept, to 4 digits
            row["max_lr"] = utils.find_lr(model, loader, config)
            lrs, losses = ([float(f"{x:.4g}") for x in xs] for xs in plot.call_args.args[:2])
            if part == "finder":
                return {**row, "lr": lrs, "loss": losses, "images": len(loader.dataset)}
            row["finder"] = {"lr": lrs, "loss": losses}
        try:
            history = utils.fit_one_cycle(model, loader, held_out, row["max_lr"], config)
        except FloatingPointError as error:
            if part == "sweep":
                return {**row, "diverged": str(error)}
            raise
        row |= common.evaluate(model, test_loader, vars(args).get("near_duplicates", ()))
    lrs = history.pop("lr")
    row |= {"epoch_seconds": median(history["seconds"][1:] or history["seconds"])}
    if part == "record":
        row |= {"test_images": len(test_loader.dataset), "max_lr": max(lrs)}
        history = {name.replace("test", "probe"): values for name, values in history.items()}
    return {**row, "seconds": time.perf_counter() - start, "history": history}


def run_missing(part: str, doc: str, option: str):
    """Run and keep what results.json does not have; a stopped run goes on from its checkpoint."""
    args = common.parse(doc, "settings", "--seeds", "--smoke", option)
    part = "finder" if vars(args).get("finder_only") else part
    pairs = [[(name, value) for value in values] for name, values in args.settings]
    done = [(row["settings"], row["seed"]) for row in common.read_results().get(part, [])]
    outputs = Path(os.environ.get("S11_OUTPUT_DIR") or common.ROOT / "outputs")
    # The seeds outside: stopped at any moment, the settings can be compared as far as they are.
    runs = product(range(args.seeds), map(dict, product(*pairs)))
    # CIFAR-10 is read once for all: on a fast GPU, this takes longer than an epoch.
    with mock.patch.object(datasets, "CIFAR10", cache(datasets.CIFAR10)):
        for seed, settings in runs:
            if (settings, seed) in done and not args.smoke:
                continue
            words = [f"{name}={value}" for name, value in settings.items()]
            folder = outputs / part / "-".join([*words, f"seed-{seed}"])
            row = run(part, settings, seed, folder, args)
            common.add_row(part, row, args.smoke)
            shutil.rmtree(folder, ignore_errors=True)  # or a run of later code would go on there
            told = {key: row[key] for key in ("max_lr", "accuracy", "diverged") if key in row}
            print(f"*** {settings}, seed {seed}: {told} ***", flush=True)


def main():
    """Train, or ask the LR finder only."""
    run_missing("sweep", __doc__, "--finder-only")


if __name__ == "__main__":
    common.keep_memory()
    main()
