"""Measure how much faster this project trains than the plain way of most tutorials.

    python benchmarks/speed.py                        # minutes; no download, the images are random
    python benchmarks/speed.py --smoke                # everything tiny: does it run at all?
    python benchmarks/speed.py --output speed.jsonl   # also append one JSON line per measurement

1. Input pipeline on the CPU: images per second of utils.DeviceDataset, against torchvision's
   transforms of one PIL image at a time, in two workers; the augmentations are the same.
2. Training step of ResNet18 on the CPU, batch 512: utils.train on a batch that is already there,
   against NCHW with torch.optim.SGD as it comes, in float32. Ours is bfloat16 on a CPU that has
   instructions for it (AVX512-BF16, AMX), else float32 as well.
3. Training epoch on a CUDA GPU, where there is one: utils.train with our loader (median of 5 epochs
   after one of warm-up), against the plain loader and step (one whole epoch after 10 steps of
   warm-up, nothing extrapolated; float32, TF32 as PyTorch defaults). Evaluation is not counted.

For 1 and 2, every way runs in a process of its own, since utils.get_config changes how memory is
allocated there; they are medians after a warm-up. No time includes the start of the workers, which
a tutorial pays in every epoch. A ratio above 1: ours is faster.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import common
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import utils
from models.resnet import ResNet18

CPU = torch.device("cpu")
LEARNING_RATE = 0.01  # speed does not depend on it, as long as random labels do not make it diverge

# --------------------------------------------------------------------------------------------------
# The plain way
# --------------------------------------------------------------------------------------------------


class PlainCutOut:
    """Set a random 16 x 16 square of one image (C, 32, 32) to 0, in place."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        y, x = random.randint(0, 16), random.randint(0, 16)
        image[:, y : y + 16, x : x + 16] = 0
        return image


class PlainDataset(Dataset):
    """Hand out one image at a time by way of PIL, as torchvision.datasets.CIFAR10 does."""

    def __init__(self, images: np.ndarray, labels: list[int], transform: Callable):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def get_plain_loader(images: np.ndarray, labels: list[int], batch_size: int) -> DataLoader:
    """Return the loader of a tutorial, with the three augmentations of utils.get_transforms."""
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(utils.Config.mean, utils.Config.std),
            PlainCutOut(),
        ]
    )
    dataset = PlainDataset(images, labels, transform)
    # Persistent, so that a timed epoch does not include the start of the workers.
    return DataLoader(dataset, batch_size, shuffle=True, num_workers=2, persistent_workers=True)


def train_plain(model, loader: Iterable, optimizer: torch.optim.Optimizer, device: torch.device):
    """Train for one epoch, reading loss and accuracy in every step."""
    loss_sum = correct = 0
    model.train()
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item()
        correct += (logits.argmax(1) == labels).sum().item()


def get_plain_trainer(device: torch.device) -> Callable[[Iterable], None]:
    """Return train_plain with a new ResNet18: a function of the loader."""
    model = ResNet18().to(device)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9)
    return lambda loader: train_plain(model, loader, optimizer, device)


# --------------------------------------------------------------------------------------------------
# Ours: only put together here, as in utils.get_dataloaders and utils.fit_one_cycle
# --------------------------------------------------------------------------------------------------


def get_config(device: torch.device, batch_size: int) -> utils.Config:
    """Return the settings of the real run, but for this device and batch size."""
    with common.quiet():
        return utils.get_config("full", device=device, batch_size=batch_size)


def get_our_loader(images: np.ndarray, labels: list[int], config: utils.Config) -> DataLoader:
    """Return the training loader that utils.get_dataloaders would make of these images."""
    transform, _ = utils.get_transforms(config)
    dataset = utils.DeviceDataset(images, labels, transform, device=config.device)
    return DataLoader(dataset, config.batch_size, shuffle=True, collate_fn=tuple)


def get_our_trainer(config: utils.Config) -> Callable[[Iterable], None]:
    """Return utils.train with a new ResNet18, its progress bar hidden: a function of the loader."""
    model = ResNet18().to(config.device, memory_format=torch.channels_last)
    optimizer = utils._get_optimizer(model, LEARNING_RATE, config)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=1_000_000, cycle_momentum=False
    )
    scaler = utils._get_scaler(config.device)

    def train(loader: Iterable):
        with common.quiet():
            utils.train(model, loader, optimizer, scheduler, scaler, config)

    return train


# --------------------------------------------------------------------------------------------------
# The three measurements: each returns the seconds of plain and of ours
# --------------------------------------------------------------------------------------------------


def get_images(count: int) -> tuple[np.ndarray, list[int]]:
    """Return random images, uint8 (count, 32, 32, 3), and labels, in the form CIFAR10 has them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return images, rng.integers(0, 10, count).tolist()


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, until the device has finished its work."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def time_rounds(call: Callable, device: torch.device, rounds: int) -> float:
    """Return the median seconds of some calls, after one for warm-up."""
    return median([time_call(call, device) for _ in range(rounds + 1)][1:])


def time_pipeline(ours: bool, count: int, batch_size: int, rounds: int) -> float:
    """Return the seconds of an epoch of loading and augmenting on the CPU, without any training."""
    images, labels = get_images(count)
    if ours:
        loader = get_our_loader(images, labels, get_config(CPU, batch_size))
    else:
        loader = get_plain_loader(images, labels, batch_size)
    return time_rounds(lambda: [None for _ in loader], CPU, rounds)


def time_step(ours: bool, batch_size: int, rounds: int) -> float:
    """Return the seconds of a training step on the CPU, on a random batch."""
    images, labels = torch.randn(batch_size, 3, 32, 32), torch.arange(batch_size) % 10
    if ours:
        images = images.contiguous(memory_format=torch.channels_last)  # as our loader delivers it
        train = get_our_trainer(get_config(CPU, batch_size))
    else:
        train = get_plain_trainer(CPU)
    return time_rounds(partial(train, [(images, labels)]), CPU, rounds)


def compare(turns: int, measure: Callable, *args) -> tuple[float, float]:
    """Call measure for plain and for ours, in turn, each in a new process; return medians."""
    seconds = {False: [], True: []}
    for ours in (False, True) * turns:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            seconds[ours].append(pool.submit(measure, ours, *args).result())
    return median(seconds[False]), median(seconds[True])


def measure_epoch(
    device: torch.device, count: int, batch_size: int, rounds: int, warmup_steps: int
) -> tuple[float, float]:
    """Measure a training epoch of both on the device: plain once, ours the median of the rounds."""
    images, labels = get_images(count)
    config = get_config(device, batch_size)
    plain_loader = get_plain_loader(images, labels, batch_size)
    our_loader = get_our_loader(images, labels, config)
    plain, ours = get_plain_trainer(device), get_our_trainer(config)
    # In this order, the workers finish what they have prefetched before anything is timed.
    plain(islice(plain_loader, warmup_steps))
    ours(our_loader)
    plain_seconds = time_call(partial(plain, plain_loader), device)
    return plain_seconds, median(
        time_call(partial(ours, our_loader), device) for _ in range(rounds)
    )


def measure_all(smoke: bool) -> Iterator[tuple[str, str, float, float, float]]:
    """Yield what was measured, the unit, plain, ours, and how many times faster ours is."""
    turns, rounds = (1, 1) if smoke else (2, 2)
    count, batch_size = (200, 50) if smoke else (50_000, 512)
    plain, ours = compare(turns, time_pipeline, count, batch_size, rounds)
    what = f"input pipeline on the CPU, batches of {batch_size}"
    yield what, "images/s", count / plain, count / ours, plain / ours

    step_size = 8 if smoke else 512
    plain, ours = compare(turns, time_step, step_size, rounds)
    what = f"training step on the CPU, {step_size} images"
    yield what, "ms", 1e3 * plain, 1e3 * ours, plain / ours

    gpu = torch.cuda.is_available()
    if gpu or smoke:
        device = torch.device("cuda" if gpu else "cpu")
        rounds, warmup_steps = (1, 1) if smoke else (5, 10)
        plain, ours = measure_epoch(device, count, batch_size, rounds, warmup_steps)
        what = f"training epoch on the {'GPU' if gpu else 'CPU'}, {count:,} images"
        yield what, "s", plain, ours, plain / ours


# --------------------------------------------------------------------------------------------------
# Report
# --------------------------------------------------------------------------------------------------


def main():
    """Measure, print a table, and append to the output file."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--smoke", action="store_true", help="everything tiny; the ratios are void")
    parser.add_argument("--output", type=Path, metavar="FILE", help="append JSON lines to FILE")
    args = parser.parse_args()
    if args.output:
        args.output.touch()  # a bad path must fail now, not after minutes

    machine = common.describe_machine()
    print(f"CPU: {machine['cpu']}, {machine['cores']} cores")
    print(f"GPU: {machine['gpu'] or 'none'}")
    print(f"torch {machine['torch']}, torchvision {machine['torchvision']}")
    if args.smoke:
        print("*** SMOKE TEST: far too small to measure anything. The numbers are no result. ***")
    print(f"\n{'what':<46}{'unit':>8}{'plain':>11}{'ours':>11}{'ratio':>9}")
    for what, unit, plain, ours, ratio in measure_all(args.smoke):
        digits = 0 if unit == "images/s" else 2
        row = f"{what:<46}{unit:>8}{plain:>11,.{digits}f}{ours:>11,.{digits}f}{ratio:>8.2f}x"
        print(row, flush=True)
        if args.output:
            measured = {"what": what, "unit": unit, "plain": plain, "ours": ours, "ratio": ratio}
            common.append_row(args.output, {"smoke": args.smoke, **measured})


if __name__ == "__main__":
    main()
