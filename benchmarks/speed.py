"""Measure how much faster this project trains than the plain way of most tutorials.

    python -m benchmarks.speed      # takes minutes; without a download

Plain: torchvision's transforms of one PIL image at a time, in two workers, and a float32 step of
torch.optim.SGD. Ours: utils.make_loader and utils.train. A step is that of a batch that is there.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

import utils
from benchmarks import common
from models.resnet import ResNet18


def make_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return so many random images, uint8 (N, 32, 32, 3), and labels (N,)."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(0, 10, count)
    return images, labels


class PlainDataset(Dataset):
    """Random images as most tutorials have them: transformed one by one, from PIL."""

    def __init__(self, count: int, transform: Callable):
        self.images, self.labels = make_images(count)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        image = Image.fromarray(self.images[index])
        return self.transform(image), self.labels[index]


def make_plain_loader(count: int, config: utils.Config) -> DataLoader:
    """Return a loader of random images as most tutorials have it, with our augmentation."""
    transform = T.Compose(
        [
            T.RandomCrop(32, padding=4, padding_mode="reflect"),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(config.mean, config.std),
            T.RandomErasing(1, scale=(0.25, 0.25), ratio=(1, 1)),  # CutOut's 16 x 16 pixels
        ]
    )
    return DataLoader(
        PlainDataset(count, transform),
        config.batch_size,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
    )


def make_our_loader(count: int, config: utils.Config) -> DataLoader:
    """Return this project's loader of the same images."""
    images, labels = make_images(count)
    transform, _ = utils.get_transforms(config)
    return utils.make_loader(images, labels, transform, config, shuffle=True)


def make_plain_trainer(config: utils.Config) -> Callable:
    """Return a function that trains a ResNet18 on a loader for an epoch, as most tutorials do."""
    model = ResNet18().to(config.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def train(loader):
        for images, labels in loader:
            images = images.to(config.device)
            labels = labels.to(config.device)
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # both are shown in every step, and make a GPU wait
            (logits.argmax(1) == labels).sum().item()

    return train


def make_our_trainer(config: utils.Config) -> Callable:
    """Return a function that trains a ResNet18 on a loader for an epoch with utils.train."""
    model = ResNet18().to(config.device)
    optimizer = utils.get_optimizer(model, 0.01, config)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
    scaler = utils.get_scaler(config)
    return lambda loader: utils.train(model, loader, optimizer, scheduler, scaler, config)


def read_all(loader):
    """Read a loader to its end, and keep nothing."""
    for _ in loader:
        pass


def measure(call: Callable) -> float:
    """Return the median of three times in seconds, after a call that warms up."""
    call()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        call()  # it waits for the GPU
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def compare(what: str, plain_call: Callable, our_call: Callable, config: utils.Config) -> float:
    """Time both ways, print and keep the medians in results.json; return ours in seconds."""
    commit = utils.get_commit()
    plain = measure(plain_call)
    ours = measure(our_call)
    times = f"plain {common.say_seconds(plain)}, ours {common.say_seconds(ours)}"
    print(f"{what}: {times}, {plain / ours:.1f} x")

    machine = f"{utils.describe_machine(config)}, {os.cpu_count()} cores"
    same = {"what": what, "machine": machine}
    rows = common.read_results().get("speed", [])
    gone = [row for row in rows if same.items() <= row.items()]
    common.add_row("speed", {"commit": commit, **same, "plain": plain, "ours": ours}, gone)
    return ours


def main():
    """Compare the input, a training step and, on a GPU, an epoch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=50_000, help="in an epoch; default 50000")
    parser.add_argument("--batch-size", type=int, default=512, help="default 512")
    args = parser.parse_args()
    if not 1 <= args.batch_size <= args.images:
        parser.error("--batch-size must be 1 or more, and not above --images.")

    # A folder of its own, so that nothing but the speed of a run in outputs/full matters here.
    options = {"batch_size": args.batch_size, "output_dir": common.ROOT / "outputs" / "speed"}
    cpu = utils.get_config("full", device="cpu", **options)
    plain_loader = make_plain_loader(args.images, cpu)
    our_loader = make_our_loader(args.images, cpu)
    loading = compare(
        f"loading {args.images:,} images on the CPU",
        partial(read_all, plain_loader),
        partial(read_all, our_loader),
        cpu,
    )

    plain_batch = [next(iter(plain_loader))]
    our_batch = [next(iter(our_loader))]
    step = compare(
        f"a step with {args.batch_size} images on the CPU",
        partial(make_plain_trainer(cpu), plain_batch),
        partial(make_our_trainer(cpu), our_batch),
        cpu,
    )
    share = loading / args.images * args.batch_size / step
    print(f"Our loading takes {share:.2%} of our training step.")

    best = utils.get_config("full", **options)
    if best.device.type == "cuda":
        compare(
            f"an epoch of {args.images:,} images on the GPU",
            partial(make_plain_trainer(best), make_plain_loader(args.images, best)),
            partial(make_our_trainer(best), make_our_loader(args.images, best)),
            best,
        )


if __name__ == "__main__":
    main()
