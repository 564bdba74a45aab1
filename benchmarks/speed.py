"""Measure how much faster this project trains than the plain way of most tutorials.

    python benchmarks/speed.py            # minutes; no download; with --smoke: does it run?

The plain way: torchvision's transforms of one PIL image at a time, in two workers (with the same
augmentations as ours); NCHW, float32 (TF32 as PyTorch defaults), and torch.optim.SGD as it comes.
Ours: utils.make_loader and utils.train, with bfloat16 on a CPU that has instructions for it. A step
is timed with a batch that is there already; an epoch on a CUDA GPU, without any evaluation. All are
medians, both ways in turn, after a warm-up; on Linux, both keep freed memory. In results.json, the
rows replace those of the same machine. Of our step, our loading should take at most 1 %.
"""

import io
import time
from collections import deque
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median

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
    lr = 0.01  # speed does not depend on it, as long as random labels do not make it diverge
    model, twin = (ResNet18().to(config.device) for _ in range(2))
    sgd = torch.optim.SGD(twin.parameters(), lr, momentum=0.9)

    def train_plain(loader):
        twin.train()
        for images, labels in loader:
            images, labels = images.to(config.device), labels.to(config.device)
            logits = twin(images)
            loss = torch.nn.functional.cross_entropy(logits, labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            _ = loss.item(), (logits.argmax(1) == labels).sum().item()  # shown in every step

    optimizer = utils.get_optimizer(model.to(memory_format=torch.channels_last), lr, config)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR
    scheduler = one_cycle(optimizer, lr, total_steps=10**6, cycle_momentum=False)
    rest = optimizer, scheduler, utils.get_scaler(config.device), config
    return train_plain, lambda loader: utils.train(model, loader, *rest)


def compare(calls, arguments, rounds: int) -> list[float]:
    """Return the median seconds of two calls, until the GPU has finished as well."""
    seconds = [[], []]
    for _ in range(rounds + 1):
        for call, argument, times in zip(calls, arguments, seconds, strict=True):
            start = time.perf_counter()
            call(argument)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return [median(times[1:]) for times in seconds]


def measure(smoke: bool) -> list[tuple]:
    """Return what was measured, its unit, and the numbers of plain and of ours."""
    count, size, rounds = (100, 8, 1) if smoke else (50_000, 512, 3)
    best = common.get_config({"batch_size": size}, 0, Path())
    config = common.get_config({"batch_size": size, "device": "cpu"}, 0, Path())
    seconds = compare([lambda loader: deque(loader, 0)] * 2, get_loaders(count, config), rounds)
    speeds = [count / s for s in seconds]
    rows = [(f"input pipeline on the CPU, batches of {size}", "images/s", *speeds)]
    images, labels = torch.randn(size, 3, 32, 32), torch.arange(size) % 10
    ready = images.to(memory_format=torch.channels_last)  # as our loader delivers it
    seconds = compare(get_trainers(config), ([(images, labels)], [(ready, labels)]), rounds)
    rows += [(f"training step on the CPU, {size} images", "ms", *(1e3 * s for s in seconds))]
    if smoke or best.device.type == "cuda":
        seconds = compare(get_trainers(best), get_loaders(count, best), rounds)
        name = best.device.type.upper().replace("CUDA", "GPU")
        rows += [(f"training epoch on the {name}, {count:,} images, no evaluation", "s", *seconds)]
    return rows


def main():
    """Measure, keep it in results.json, and print it."""
    args, machine = common.parse(__doc__, "--smoke"), common.get_machine()
    with redirect_stdout(io.StringIO()):
        rows = measure(args.smoke)
    for what, unit, plain, ours in rows:
        ratio = ours / plain if unit == "images/s" else plain / ours
        row = {"what": what, "unit": unit, "plain": plain, "ours": ours, "ratio": ratio, **machine}
        same = {name: row[name] for name in ("what", "cpu", "cores", "gpu")}.items()
        common.add_row("speed", row, args.smoke, lambda old, same=same: not same <= old.items())
        print(f"{what}: plain {plain:,.2f} {unit}, ours {ours:,.2f} {unit}, {ratio:.1f} x")
    size = 8 if args.smoke else 512
    share = size / rows[0][3] / (rows[1][3] / 1e3)
    print(f"Loading and augmenting {size} images takes {share:.2%} of our training step.")


if __name__ == "__main__":
    common.keep_memory()
    main()
