"""The architecture: the golden summary, and what a summary does not show."""

import io
import sys

import pytest
import torch
import torchvision
from torch import nn

import models
import utils
from helpers import ROOT, make_small_model, take_snapshot
from models.resnet import BasicBlock, ResNet18, ResNet34

GOLDEN = ROOT / "tests" / "golden" / "resnet18_summary.txt"


@pytest.mark.parametrize("device", ["cpu", "meta"])  # the latter stands for a GPU
def test_summary_is_the_golden_one_line_for_line(capsys, device):
    utils.show_summary(ResNet18().to(device))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [line.rstrip() for line in GOLDEN.read_text(encoding="utf-8").splitlines()]


def test_resnet34_has_the_parameters_of_the_paper():
    assert sum(p.numel() for p in ResNet34().parameters()) == 21_282_122


@pytest.mark.parametrize("size", [32, 64])
def test_as_many_classes_as_asked_for_images_of_any_size(size):
    model = ResNet18(num_classes=7)
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_models_of_another_project_on_the_path_do_not_come_first():
    assert models.__file__, "a namespace package, which has no file of its own, would lose to any"


def test_answers_are_those_of_torchvisions_resnet_with_our_stem():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=10).eval()  # nothing is downloaded
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    ours = ResNet18().eval()
    weights = zip(ours.state_dict(), theirs.state_dict().values(), strict=True)  # in one order
    ours.load_state_dict(dict(weights))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-3, atol=1e-3)


def test_block_adds_its_shortcut():
    block = BasicBlock(4, 4).eval()
    nn.init.zeros_(block.conv2.weight)  # BatchNorm of zeros is zero: only the shortcut is left
    x = torch.rand(2, 4, 8, 8)
    assert torch.allclose(block(x), x)


def test_summary_is_printed_on_any_console(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", console)
    utils.show_summary(make_small_model())
    assert b"Total params" in console.buffer.getvalue()


def test_summary_is_of_images_of_any_size(capsys):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 46 * 46, 10))
    utils.show_summary(model, image_size=48)
    assert "[1, 3, 48, 48]" in capsys.readouterr().out


def test_summary_leaves_the_model_as_it_was():
    model = make_small_model()
    model[1].eval()
    before = take_snapshot(model)
    utils.show_summary(model)
    assert take_snapshot(model) == before
