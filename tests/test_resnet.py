"""The architecture: the golden summary, and what must not be in it."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

import utils
from models import resnet
from models.resnet import BasicBlock, ResNet18, ResNet34

GOLDEN = Path(__file__).parent / "golden" / "resnet18_summary.txt"


def test_summary_is_the_golden_one_line_for_line(capsys):
    utils.show_summary(ResNet18())
    printed = capsys.readouterr().out.rstrip("\n").splitlines()
    assert [line.rstrip() for line in printed] == [
        line.rstrip() for line in GOLDEN.read_text(encoding="utf-8").splitlines()
    ]
    assert "Total mult-adds (M): 555.43" in printed


def test_summary_leaves_the_model_as_it_is():
    model = ResNet18()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    utils.show_summary(model)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(("make", "count"), [(ResNet18, 11_173_962), (ResNet34, 21_282_122)])
def test_number_of_parameters(make, count):
    assert sum(p.numel() for p in make().parameters()) == count


def test_module_holds_the_architecture_and_nothing_else():
    public = {
        name
        for name, value in vars(resnet).items()
        if getattr(value, "__module__", "") == resnet.__name__
    }
    assert public == {"BasicBlock", "ResNet", "ResNet18", "ResNet34"}
    assert "Bottleneck" not in inspect.getsource(resnet)


def test_stages_have_the_known_sizes():
    model = ResNet18()
    stages = model.layer1, model.layer2, model.layer3, model.layer4
    sizes = [utils.get_map_size(model, stage) for stage in stages]
    assert sizes == [(32, 32), (16, 16), (8, 8), (4, 4)]
    assert not any(isinstance(module, nn.MaxPool2d) for module in model.modules())


def test_num_classes():
    assert ResNet18(num_classes=7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_block_adds_its_shortcut():
    block = BasicBlock(4, 4).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 4, 8, 8)
    assert torch.allclose(block(x), x)  # BatchNorm of zeros is zero: only the shortcut is left
