"""The architecture: the golden summary, and what a summary does not show."""

import io
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import models
import utils
from conftest import make_small_model
from models.resnet import BasicBlock, ResNet18, ResNet34

GOLDEN = Path(__file__).parent / "golden" / "resnet18_summary.txt"


@pytest.mark.parametrize("device", ["cpu", "meta"])  # the latter stands for a GPU
def test_summary_is_the_golden_one_line_for_line(capsys, device):
    utils.show_summary(ResNet18().to(device))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [line.rstrip() for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
    assert sum(p.numel() for p in ResNet34().parameters()) == 21_282_122
    assert ResNet18(num_classes=7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert models.__file__, "without a file of its own, models of another project come first"


def test_summary_is_printed_on_any_console(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", console)
    utils.show_summary(make_small_model())
    assert b"Total params" in console.buffer.getvalue()


def test_block_adds_its_shortcut():
    block, x = BasicBlock(4, 4).eval(), torch.rand(2, 4, 8, 8)
    nn.init.zeros_(block.conv2.weight)
    assert torch.allclose(block(x), x)  # BatchNorm of zeros is zero: only the shortcut is left
