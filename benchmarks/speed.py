"""Measure how much faster this project trains than the plain way of most tutorials.

    python benchmarks/speed.py            # minutes; no download, the images are random
    python benchmarks/speed.py --smoke    # everything tiny: does it run at all?

1. Input pipeline on the CPU: utils.DeviceDataset, against torchvision's transforms of one PIL image
   at a time, in two workers; the augmentations are the same.
2. Training step of ResNet18 on the CPU: utils.train on a batch that is already there, against NCHW
   with torch.optim.SGD as it comes, in float32. Ours is bfloat16 on a CPU that has instructions for
   it (AVX512-BF16, AMX), else float32 as well. Ours of 1 should be at most 1 % of it.
3. Training epoch on a CUDA GPU, where there is one: loader and step of both (float32 with TF32 as
   PyTorch defaults). Evaluation is not counted.

All are medians, both in turn, after a warm-up with the start of the workers. On Linux, both ways
keep freed memory. In results.json, the rows replace those of the same machine.
"""

import io
import time
from collections import deque
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from statistics import median

import common
import numpy as np
import torch
from torchvision import datasets, transforms

import utils
from models.resnet import ResNet18

PLAIN_STEPS = (
    transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
    transforms.RandomHorizontalFlip(),
    transforms.ToTensor(),
    transforms.Normalize(utils.Config.mean, utils.Config.std),
    transforms.RandomErasing(1, scale=(0.25, 0.25), ratio=(1, 1)),  # CutOut of 16 x 16
)


def get_loaders(count: int, config: utils.Config):
    """Return two loaders of so many random images: the plain one, and ours."""
    plain, random = datasets.CIFAR10.__new__(datasets.CIFAR10), np.random.default_rng(0)
    plain.data = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    plain.targets = random.integers(0, 10, count)
    plain.transform, plain.target_transform = transforms.Compose(PLAIN_STEPS), None
    options = {"shuffle": True, "num_workers": 2, "persistent_workers": True}
    transform, _ = utils.get_transforms(config)
    return (
        torch.utils.data.DataLoader(plain, config.batch_size, **options),
        utils.make_loader(plain.data, plain.targets, transform, config, shuffle=True),
    )


def get_trainers(config: utils.Config):
    """Return two functions of a loader, which train a ResNet18 for an epoch: plain, and ours."""
    lr = 0.01  # speed does not depend on it, as long as random labels do not make it diverge
    model, twin = (ResNet18().to(config.device) for _ in range(2))
    sgd = torch.optim.SGD(twin.parameters(), lr, momentum=0.9)
    optimizer = utils.get_optimizer(model.to(memory_format=torch.channels_last), lr, config)
    one_cycle = partial(torch.optim.lr_scheduler.OneCycleLR, total_steps=10**6)
    ours = (optimizer, one_cycle(optimizer, lr, cycle_momentum=False))

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

    def train_ours(loader):
        with redirect_stdout(io.StringIO()):
            utils.train(model, loader, *ours, utils.get_scaler(config.device), config)

    return train_plain, train_ours


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


def measure(smoke: bool):
    """Yield what was measured, its unit, and the numbers of plain and of ours."""
    count, size, rounds = (100, 8, 1) if smoke else (50_000, 512, 3)
    with redirect_stdout(io.StringIO()):
        best = common.get_config({"batch_size": size}, 0, Path())
        config = common.get_config({"batch_size": size, "device": "cpu"}, 0, Path())
    plain, ours = compare([partial(deque, maxlen=0)] * 2, get_loaders(count, config), rounds)
    yield f"input pipeline on the CPU, batches of {size}", "images/s", count / plain, count / ours

    share, images, labels = ours / count * size, torch.randn(size, 3, 32, 32), torch.arange(size)
    ready = images.to(memory_format=torch.channels_last)  # as our loader delivers it
    batches = [(images, labels % 10)], [(ready, labels % 10)]
    plain, ours = compare(get_trainers(config), batches, rounds)
    yield f"training step on the CPU, {size} images", "ms", 1e3 * plain, 1e3 * ours
    print(f"Loading and augmenting {size} images takes {share / ours:.2%} of our training step.")

    if smoke or best.device.type == "cuda":
        plain, ours = compare(get_trainers(best), get_loaders(count, best), rounds)
        what = f"training epoch on the {best.device.type.upper()}, {count:,} images, no evaluation"
        yield what.replace("CUDA", "GPU"), "s", plain, ours


def main():
    """Measure, print, and keep it in results.json."""
    smoke, machine = common.get_parser(__doc__).parse_args().smoke, common.get_machine()
    for what, unit, plain, ours in measure(smoke):
        ratio = ours / plain if unit == "images/s" else plain / ours
        print(f"{what}: plain {plain:,.2f} {unit}, ours {ours:,.2f} {unit}, {ratio:.1f} x")
        row = {"what": what, "unit": unit, "plain": plain, "ours": ours, "ratio": ratio, **machine}
        same = {name: row[name] for name in ("what", "cpu", "cores", "gpu")}.items()
        common.add_row("speed", row, smoke, lambda old, same=same: not same <= old.items())


if __name__ == "__main__":
    common.keep_memory()
    main()
