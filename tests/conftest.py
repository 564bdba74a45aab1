"""Offer short runs, a small model, and stand-ins. The conftest.py above chose the profile."""

import pickle

import numpy as np
import pytest
import torch
import torchvision
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader
from torchvision.datasets.utils import calculate_md5

import utils
from helpers import make_small_model


@pytest.fixture(autouse=True)
def away_from_your_runs(tmp_path, monkeypatch):
    """Start in an empty folder: outputs/ of the repository may hold a run of yours."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make_config(tmp_path):
    """Return get_config for the CPU, with its folders below the test's own."""
    own = {
        "device": "cpu",
        "output_dir": tmp_path / "outputs",
        "data_dir": tmp_path / "data",
    }
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


@pytest.fixture
def model():
    return make_small_model()


@pytest.fixture
def steps():
    """Collect (learning rate, momentum) of every step that an optimizer makes."""
    made = []

    def note(optimizer, *_):
        group = optimizer.param_groups[0]
        momentum = group["betas"][0] if "betas" in group else group["momentum"]
        made.append((group["lr"], momentum))

    with register_optimizer_step_pre_hook(note):
        yield made


@pytest.fixture
def shown(monkeypatch):
    """Collect the figures as they are saved: a list of (figure, title)."""
    figures = []
    show = utils.show_figure

    def note(figure, *others):
        show(figure, *others)
        figures.append((figure, figure.get_suptitle()))

    monkeypatch.setattr(utils, "show_figure", note)
    return figures


@pytest.fixture
def tiny_cifar10(tmp_path, monkeypatch):
    """Write a CIFAR-10 of 100 training images, all of value 1, and 20 test images, all of 2."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name, value):
        content = {
            "data": np.full((20, 3072), value, np.uint8),
            "labels": [*range(10)] * 2,
            "label_names": list(utils.Config.classes),  # what batches.meta holds
        }
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, calculate_md5(folder / name)]

    cifar10 = torchvision.datasets.CIFAR10
    train_list = [write(f"data_batch_{i}", 1) for i in range(1, 6)]
    test_list = [write("test_batch", 2)]
    meta = {**cifar10.meta, "md5": write("batches.meta", 0)[1]}
    monkeypatch.setattr(cifar10, "train_list", train_list)
    monkeypatch.setattr(cifar10, "test_list", test_list)
    monkeypatch.setattr(cifar10, "meta", meta)
    return folder


@pytest.fixture
def pretend_gpu(monkeypatch):
    """Return a function that gives the CPU the precision of a GPU of some capability."""

    def pretend(capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        get_autocast = utils.get_autocast

        def answer(device, precision=None):
            on_gpu = get_autocast(torch.device("cuda"), precision)
            return {**on_gpu, "device_type": device.type}

        monkeypatch.setattr(utils, "get_autocast", answer)

    return pretend
