"""Switch everything to the quick profile, the notebook's kernel included; offer stand-ins."""

import itertools
import os
import pickle
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ["S11_PROFILE"] = "quick"
os.environ["S11_OUTPUT_DIR"] = tempfile.mkdtemp(prefix="s11-tests-")  # never outputs/ or images/
matplotlib.use("agg")

import torch  # noqa: E402
import torchvision  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision.datasets.utils import calculate_md5  # noqa: E402

import utils  # noqa: E402


@pytest.fixture
def make_config(tmp_path):
    """Return get_config for the CPU, with its folders below the test's own."""

    def make(profile="quick", **overrides):
        folders = {"output_dir": tmp_path / "outputs", "data_dir": tmp_path / "data"}
        return utils.get_config(profile, **{"device": "cpu", **folders, **overrides})

    return make


@pytest.fixture
def config(make_config):
    """A short run on few images, for the small model; each call trains afresh."""
    return make_config(epochs=2, batch_size=32, train_images=80, lr_finder_steps=40, resume=False)


@pytest.fixture
def loaders(config):
    """80 training images in batches of 32, 32 and 16, and 360 test images."""
    return utils.get_dataloaders(config)


@pytest.fixture(autouse=True)
def native_bfloat16(monkeypatch):
    """Return a function that gives the CPU native bfloat16 or takes it away; at first, it has none.

    Else, what the tests see would depend on the machine.
    """

    def switch(on):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: on)

    switch(False)
    return switch


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


@pytest.fixture
def model():
    return make_small_model()


@pytest.fixture
def before_steps(monkeypatch):
    """Return a function that has something called with the optimizer before each step of Muon.

    It may raise. Called again, it replaces what it had called until then.
    """
    utils.Muon([{"params": [torch.zeros(1)]}], 0.1, 0.9)  # the first one wraps step, for its hooks
    step = utils.Muon.step

    def watch(call):
        def watched_step(self, *args, **kwargs):
            call(self)
            return step(self, *args, **kwargs)

        watched_step.hooked = True  # or torch would wrap it, and run the hooks twice
        monkeypatch.setattr(utils.Muon, "step", watched_step)

    return watch


@pytest.fixture
def interrupt_step(before_steps):
    """Return a function that interrupts the step of this number, counted from 1; 0: none."""

    def interrupt(number):
        steps = itertools.count(1)

        def check(_):
            if next(steps) == number:
                raise KeyboardInterrupt

        before_steps(check)

    return interrupt


@pytest.fixture
def make_loader():
    """Return a loader of images and labels, as torch's own collation gives it."""

    def make(images, labels, batch_size):
        return DataLoader(list(zip(images, labels, strict=True)), batch_size)

    return make


@pytest.fixture
def shown(monkeypatch):
    """Collect the figures before they are saved: a list of (figure, title)."""
    figures, show = [], utils._show

    def note(figure, title, name, config):
        show(figure, title, name, config)
        figures.append((figure, figure.get_suptitle()))

    monkeypatch.setattr(utils, "_show", note)
    return figures


@pytest.fixture
def tiny_cifar10(tmp_path, monkeypatch):
    """Write a CIFAR-10 of 100 training images, all of value 1, and 20 test images, all of 2."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, calculate_md5(folder / name)]

    def write_batch(name, count, value):
        data = np.full((count, 3072), value, dtype=np.uint8)
        return write(name, {"data": data, "labels": [i % 10 for i in range(count)]})

    cifar10 = torchvision.datasets.CIFAR10
    names = list(utils.Config.__dataclass_fields__["classes"].default)
    train_list = [write_batch(f"data_batch_{i}", 20, 1) for i in range(1, 6)]
    monkeypatch.setattr(cifar10, "train_list", train_list)
    monkeypatch.setattr(cifar10, "test_list", [write_batch("test_batch", 20, 2)])
    name, md5 = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(cifar10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return folder
