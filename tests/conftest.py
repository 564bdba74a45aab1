"""Offer short runs, a small model, and stand-ins. The conftest.py above chose the profile."""

import pickle
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader
from torchvision.datasets.utils import calculate_md5

import utils


@pytest.fixture
def make_config(tmp_path):
    """Return get_config for the CPU, with its folders below the test's own."""
    own = {"device": "cpu", "output_dir": tmp_path / "outputs", "data_dir": tmp_path / "data"}
    return lambda profile="quick", **overrides: utils.get_config(profile, **{**own, **overrides})


@pytest.fixture
def config(make_config):
    """A short run on few images, for the small model; each call trains afresh."""
    return make_config(epochs=2, batch_size=32, train_images=80, lr_finder_steps=40, resume=False)


@pytest.fixture
def loaders(config):
    """80 training images in batches of 32, 32 and 16, and 360 test images."""
    return utils.get_dataloaders(config)


@pytest.fixture
def make_loader():
    """Return a loader of images and labels, as torch's own collation gives it."""
    return lambda images, labels, size: DataLoader(list(zip(images, labels, strict=True)), size)


@pytest.fixture(autouse=True)
def native_bfloat16(monkeypatch):
    """Take a GPU and native bfloat16 from the machine, and return how to give the latter."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return lambda: monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


def make_small_model(num_classes=10):
    """Return a network with BatchNorm and maps of 16 x 16, which trains in milliseconds."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
    second = nn.Conv2d(8, 16, 3, stride=4, padding=1), nn.Flatten(), nn.Linear(256, num_classes)
    return nn.Sequential(*first, *second)


@pytest.fixture
def model():
    return make_small_model()


def take_snapshot(model):
    """Return all of a model that a look must not change, and the random state, to be compared."""
    values = model.state_dict()
    return {
        "values": {name: value.numpy().tobytes() for name, value in values.items()},
        "memory formats": {name: value.stride() for name, value in values.items()},
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "gradients": [(p.requires_grad, p.grad) for p in model.parameters()],
        "random state": torch.get_rng_state().tolist(),
    }


@pytest.fixture
def steps():
    """Collect (learning rate, momentum) of every step that an optimizer makes."""
    made = []

    def note(optimizer, *_):
        made.append(tuple(optimizer.param_groups[0][name] for name in ("lr", "momentum")))

    with register_optimizer_step_pre_hook(note):
        yield made


def interrupt_step(number):
    """Return a context in which Ctrl-C is pressed at the step of this number, counted from 1."""
    results = [None] * (number - 1) + [KeyboardInterrupt]
    return register_optimizer_step_pre_hook(Mock(side_effect=results))


@pytest.fixture
def shown(monkeypatch):
    """Collect the figures as they are saved: a list of (figure, title)."""
    figures, show = [], utils.show_figure

    def note(figure, *others):
        show(figure, *others)
        figures.append((figure, figure.get_suptitle()))

    monkeypatch.setattr(utils, "show_figure", note)
    return figures


@pytest.fixture
def tiny_cifar10(tmp_path, monkeypatch):
    """Write a CIFAR-10 of 100 training images, all of value 1, and 20 test images, all of 2."""
    folder, cifar10 = tmp_path / "data" / "cifar-10-batches-py", torchvision.datasets.CIFAR10
    folder.mkdir(parents=True)

    def write(name, value):
        batch = {"data": np.full((20, 3072), value, np.uint8), "labels": [*range(10)] * 2}
        content = batch | {"label_names": list(utils.Config.classes)}  # what batches.meta holds
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, calculate_md5(folder / name)]

    monkeypatch.setattr(cifar10, "train_list", [write(f"data_batch_{i}", 1) for i in range(1, 6)])
    monkeypatch.setattr(cifar10, "test_list", [write("test_batch", 2)])
    monkeypatch.setattr(cifar10, "meta", {**cifar10.meta, "md5": write("batches.meta", 0)[1]})
    return folder
