"""Stand-ins that several test files share."""

import json
from collections import OrderedDict
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import utils
from models.resnet import ResNet18

ROOT = Path(__file__).parent.parent


def make_images(classes, root, train=True, **options):
    """Stand in for CIFAR-10 or CIFAR-100: 100 training or 30 test images, brighter by class."""
    targets = np.arange(100 if train else 30, dtype=np.uint8) % classes
    data = np.tile(targets[:, None, None, None] * np.uint8(250 // classes), (1, 32, 32, 3))
    return SimpleNamespace(data=data, targets=targets.tolist(), classes=[*map(str, range(classes))])


def make_network(num_classes=10):
    """Return a network with the names of ResNet18, for images of 32 x 32 or 16 x 16."""
    layers = {f"layer{i}": nn.Sequential(nn.Conv2d(8, 8, 1)) for i in (1, 2, 3)}
    layers = {"conv1": nn.Conv2d(3, 8, 3, 4), **layers, "pool": nn.AdaptiveAvgPool2d(4)}
    layers |= {"flatten": nn.Flatten(), "linear": nn.Linear(128, num_classes)}
    return nn.Sequential(OrderedDict(layers))


def make_small_model(num_classes=10):
    """Return a network with BatchNorm and maps of 16 x 16, which trains in milliseconds."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=4, padding=1),
        nn.Flatten(),
        nn.Linear(256, num_classes),
    )


def save_run(folder, **changes):
    """Write what a finished run of some settings leaves behind; 20 epochs, each a bit higher."""
    settings = {f.name: f.default for f in fields(utils.Config) if f.default is not MISSING}
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds", "lr")
    record = {
        "run": {**settings, "profile": "full", **changes},
        "max_lr": 0.03,
        "trained_before": False,
        "history": {name: [1 + epoch / 7 for epoch in range(20)] for name in names},
        "stamp": "one of a kind",
        "machine": "M",
        "commit": "abc1234",
    }
    folder.mkdir(parents=True)
    (folder / "history.json").write_text(json.dumps(record))
    torch.save({**record, "model": ResNet18().state_dict()}, folder / "checkpoint.pt")
    (folder / "history.png").write_text(folder.name)


def make_data(count):
    """Return random images, as they are after normalisation, and random labels."""
    return torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,))


def take_snapshot(model):
    """Return all of a model that a look must not change, and the random state, to be compared."""
    values = {**model.state_dict(), **dict(model.named_buffers())}  # also what is not persistent
    return {
        "values": {name: value.numpy().tobytes() for name, value in values.items()},
        "strides": {name: value.stride() for name, value in values.items()},
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "gradients": [(p.requires_grad, p.grad) for p in model.parameters()],
        "random state": torch.get_rng_state().tolist(),
    }


def interrupt_step(number):
    """Return a context in which Ctrl-C is pressed at the step of this number, counted from 1."""
    results = [None] * (number - 1) + [KeyboardInterrupt]
    return register_optimizer_step_pre_hook(Mock(side_effect=results))
