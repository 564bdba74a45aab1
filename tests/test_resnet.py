"""The architecture: the golden summary, and what must not be in it."""

import io
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch
from torch import nn

import utils
from conftest import make_small_model
from models import resnet
from models.resnet import BasicBlock, ResNet18, ResNet34

ROOT = Path(__file__).parent.parent
GOLDEN = (ROOT / "tests" / "golden" / "resnet18_summary.txt").read_text(encoding="utf-8")


def test_summary_is_the_golden_one_line_for_line(capsys):
    utils.show_summary(ResNet18())
    lines, golden = ([line.rstrip() for line in text.rstrip().splitlines()] for text in
                     (capsys.readouterr().out, GOLDEN))  # fmt: skip
    assert lines == golden
    assert "Total mult-adds (M): 555.43" in lines


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_summary_and_bars_are_printed_on_any_console(monkeypatch, encoding):
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", console)
    utils.show_summary(make_small_model())
    assert len(list(utils.progress_bar(range(3)))) == 3
    assert b"Total params" in console.buffer.getvalue()


def test_module_holds_the_two_networks_and_their_parts_only():
    modules = {name: getattr(value, "__module__", "") for name, value in vars(resnet).items()}
    public = {name for name, module in modules.items() if module == resnet.__name__}
    assert public == {"BasicBlock", "ResNet", "ResNet18", "ResNet34"}
    with torch.device("meta"):
        counts = [sum(p.numel() for p in make().parameters()) for make in (ResNet18, ResNet34)]
    assert counts == [11_173_962, 21_282_122]


def test_models_of_another_project_do_not_come_first(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    found = PathFinder.find_spec("models", [str(ROOT), str(tmp_path)])
    assert found.origin == str(ROOT / "models" / "__init__.py")


def test_stages_have_the_known_sizes_and_a_block_adds_its_shortcut():
    model = ResNet18(num_classes=7)
    stages = model.layer1, model.layer2, model.layer3, model.layer4
    sizes = [utils.get_map_size(model, stage) for stage in stages]
    assert sizes == [(32, 32), (16, 16), (8, 8), (4, 4)]
    assert not any(isinstance(module, nn.MaxPool2d) for module in model.modules())
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    block, x = BasicBlock(4, 4).eval(), torch.rand(2, 4, 8, 8)
    nn.init.zeros_(block.conv2.weight)
    assert torch.allclose(block(x), x)  # BatchNorm of zeros is zero: only the shortcut is left
