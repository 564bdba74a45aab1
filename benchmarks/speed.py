"""Measure how much faster this project trains than the plain way of most tutorials.

    python benchmarks/speed.py      # takes minutes; without a download

Plain: torchvision's transforms of one PIL image at a time, in two workers, and a float32 step of
torch.optim.SGD. Ours: utils.make_loader and utils.train. A step is that of a batch that is there.
"""

import os
from collections import deque
from functools import partial
from statistics import median
from timeit import repeat

import common
import numpy as np
import torch
from torchvision import datasets
from torchvision import transforms as T

import utils
from models.resnet import ResNet18


def get_loaders(count: int, config: utils.Config) -> tuple:
    """Return two loaders of so many random images: the plain one, and ours."""
    plain, random = datasets.CIFAR10.__new__(datasets.CIFAR10), np.random.default_rng(0)
    plain.data = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    plain.targets, plain.target_transform = random.integers(0, 10, count), None
    crop, flip = T.RandomCrop(32, padding=4, padding_mode="reflect"), T.RandomHorizontalFlip()
    cut_out = T.RandomErasing(1, scale=(0.25, 0.25), ratio=(1, 1))  # 16 x 16, too
    normalize, (transform, _) = T.Normalize(config.mean, config.std), utils.get_transforms(config)
    plain.transform = T.Compose([crop, flip, T.ToTensor(), normalize, cut_out])
    ours = utils.make_loader(plain.data, plain.targets, transform, config, shuffle=True)
    workers = {"num_workers": 2, "persistent_workers": True}
    return torch.utils.data.DataLoader(plain, config.batch_size, shuffle=True, **workers), ours


def get_trainers(config: utils.Config) -> tuple:
    """Return two functions of a loader, which train a ResNet18 for an epoch: plain, and ours."""
    twin, model = ResNet18().to(config.device), ResNet18().to(config.device)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.01, momentum=0.9)
    optimizer = utils.get_optimizer(model.to(memory_format=torch.channels_last), 0.01, config)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
    rest = optimizer, scheduler, utils.get_scaler(config.device), config

    def train_plain(loader):
        for images, labels in loader:
            images, labels = images.to(config.device), labels.to(config.device)
            logits = twin(images)
            loss = torch.nn.functional.cross_entropy(logits, labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            _ = loss.item(), (logits.argmax(1) == labels).sum().item()  # shown in every step

    return train_plain, lambda loader: utils.train(model, loader, *rest)


def compare(what: str, calls, arguments, config: utils.Config) -> float:
    """Time two calls; print their medians, keep them in results.json; return ours."""
    timers = map(partial, calls, arguments)  # a call waits for the GPU; the first is a warm-up
    plain, ours = (median(repeat(timer, number=1, repeat=4)[1:]) for timer in timers)
    machine = f"{utils.describe_machine(config.device)}, {os.cpu_count()} cores"
    print(f"{what}: plain {plain:.3g} s, ours {ours:.3g} s, {plain / ours:.1f} x")
    same = {"what": what, "machine": machine}
    old = [row for row in common.read_results().get("speed", []) if same.items() <= row.items()]
    common.add_row("speed", {**same, "plain": plain, "ours": ours}, old)
    return ours


def main(count=50_000, size=512):
    """Compare the input, a training step and, on a GPU, an epoch."""
    cpu, best = (utils.get_config("full", batch_size=size, device=d) for d in ("cpu", None))
    loaders = get_loaders(count, cpu)
    batches = [[next(iter(loader))] for loader in loaders]
    read_all = [lambda loader: deque(loader, maxlen=0)] * 2
    loading = compare(f"loading {count:,} images on the CPU", read_all, loaders, cpu)
    step = compare(f"a step with {size} images on the CPU", get_trainers(cpu), batches, cpu)
    print(f"Our loading takes {loading / count * size / step:.2%} of our training step.")
    if best.device.type == "cuda":
        what = f"an epoch of {count:,} images on the GPU"
        compare(what, get_trainers(best), get_loaders(count, best), best)


if __name__ == "__main__":
    main()
