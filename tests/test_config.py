"""Profiles, environment variables, devices, and one clear sentence for every bad value."""

import os
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import utils


def test_full_profile_is_the_assignment(make_config):
    config = make_config("full")
    assert (config.dataset, config.epochs, config.batch_size) == ("CIFAR-10", 20, 512)
    assert (config.crop_padding, config.cutout_size, config.train_images) == (4, 16, None)
    assert config.mean == (0.4914, 0.4822, 0.4465)
    assert config.std == (0.2470, 0.2435, 0.2616)


@pytest.mark.parametrize(
    ("settings", "caveat"),
    [
        ({"profile": "full"}, ""),
        ({"profile": "full", "train_images": 50_000}, ""),
        ({"profile": "full", "train_images": 4096}, "4,096 images only"),
        ({"profile": "quick"}, "not CIFAR-10"),
    ],
)
def test_caveat_is_what_a_figure_must_say(make_config, settings, caveat):
    found = make_config(**settings).caveat
    assert caveat in found
    assert bool(found) == bool(caveat)


def test_what_is_printed_warns_of_digits_and_of_hours(make_config, monkeypatch, capsys):
    make_config("quick")
    first_line, *others = capsys.readouterr().out.splitlines()
    assert all(word in first_line for word in ("QUICK", "digits", "NOT CIFAR-10"))
    assert not any("no GPU" in line for line in others)
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    make_config("full")
    printed = capsys.readouterr().out
    assert "There is no GPU: on a CPU, 20 epochs" in printed
    assert "Runtime > Change runtime type" in printed


def test_environment_variables(monkeypatch):
    monkeypatch.setenv("S11_PROFILE", "full")
    monkeypatch.setenv("S11_DATA_DIR", "some/data")
    monkeypatch.setenv("S11_OUTPUT_DIR", "some/outputs")
    config = utils.get_config(device="cpu")
    assert config.profile == "full"
    assert (config.data_dir, config.output_dir) == (Path("some/data"), Path("some/outputs"))
    assert utils.get_config("quick").profile == "quick", "an argument beats the environment"
    monkeypatch.delenv("S11_OUTPUT_DIR")
    monkeypatch.delenv("S11_DATA_DIR")
    config = utils.get_config("quick")
    assert (config.data_dir, config.output_dir) == (Path("data"), Path("outputs/quick"))
    monkeypatch.setenv("S11_PROFILE", "fulll")
    with pytest.raises(ValueError, match="'fulll'"):
        utils.get_config()


def test_none_leaves_the_value_of_the_profile(make_config):
    names = utils.Config.__dataclass_fields__.keys() - {"device", "data_dir", "output_dir"}
    plain = make_config()
    assert make_config(**dict.fromkeys(names - {"profile"})) == plain
    assert (plain.epochs, plain.cutout_size) == (3, 8)
    with pytest.raises(FrozenInstanceError):
        plain.epochs = 5


def test_get_config_seeds_the_next_model(make_config):
    draws = []
    for seed in (1, 1, 2, np.int64(1)):
        make_config(seed=seed)
        draws.append(torch.rand(()).item())
    assert draws[0] == draws[1] == draws[3] != draws[2]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"profile": "fast"}, ["'fast'", "'full'", "'quick'"]),
        ({"epochs": 0}, ["epochs is 0", "at least 1"]),
        ({"epochs": 2.5}, ["epochs is 2.5", "whole number"]),
        ({"epochs": True}, ["epochs is True", "whole number"]),
        ({"epochs": np.float64(3)}, ["epochs is 3.0", "whole number"]),
        ({"batch_size": -8}, ["batch_size is -8", "at least 1"]),
        ({"train_images": 0}, ["train_images is 0", "at least 1"]),
        ({"cutout_size": "16"}, ["cutout_size is '16'", "0 to 31"]),
        ({"cutout_size": 32}, ["cutout_size is 32", "0 to 31"]),
        ({"crop_padding": -1}, ["crop_padding is -1", "0 to 31"]),
        ({"crop_padding": 32}, ["crop_padding is 32", "0 to 31"]),
        ({"seed": 1.5}, ["seed is 1.5", "whole number"]),
        ({"warmup_fraction": 2}, ["warmup_fraction is 2", "below 1"]),
        ({"label_smoothing": 1}, ["label_smoothing is 1", "below 1"]),
        ({"weight_decay": "5e-4"}, ["weight_decay is '5e-4'", "below 1"]),
        ({"momentum": float("nan")}, ["momentum is nan", "below 1"]),
        ({"lr_finder_steps": 1}, ["lr_finder_steps is 1", "at least 10"]),
        ({"resume": "no"}, ["resume is 'no'", "True", "False"]),
        ({"optimizer": "adam"}, ["optimizer is 'adam'", "'muon'", "'sgd'"]),
        ({"mean": 0.5}, ["mean is (0.5,)", "three numbers"]),
        ({"mean": ("0.5",) * 3}, ["mean is ('0.5',", "three numbers"]),
        ({"std": (1, 0, 1)}, ["std is (1, 0, 1)", "above 0"]),
        ({"epoch": 3}, ["no epoch", "epochs, batch_size"]),
    ],
)
def test_bad_values_get_one_clear_sentence(make_config, overrides, words):
    with pytest.raises(TypeError if "epoch" in overrides else ValueError) as caught:
        make_config(**overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


# Devices: what a GPU says of itself


P100 = {"name": "Tesla P100", "capability": (6, 0)}
T4 = {"name": "Tesla T4", "capability": (7, 5)}
H100 = {"name": "H100", "capability": (9, 0)}
NEWER = {"name": "a newer GPU", "capability": (12, 0)}
BUILT_FOR = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "compute_90"]


@pytest.mark.parametrize(
    ("gpu", "built_for", "count", "is_used"),
    [
        (P100, BUILT_FOR, 1, False),
        (P100, ["sm_50", "sm_60", "sm_70"], 1, True),
        (T4, BUILT_FOR, 1, True),
        (T4, BUILT_FOR, 2, True),
        (T4, ["sm_80", "sm_90"], 1, False),
        (H100, BUILT_FOR, 1, True),
        (NEWER, BUILT_FOR, 1, True),
        (NEWER, ["sm_75", "sm_90"], 1, False),
        (NEWER, ["sm_90", "sm_100", "sm_120"], 1, True),
    ],
)
def test_gpu_is_used_if_this_pytorch_can(monkeypatch, capsys, gpu, built_for, count, is_used):
    monkeypatch.delenv("S11_PROFILE")
    for place, answers in (
        (torch.accelerator, {"is_available": True, "current_accelerator": torch.device("cuda")}),
        (torch.cuda, {f"get_device_{name}": value for name, value in gpu.items()}),
        (torch.cuda, {"get_arch_list": built_for, "device_count": count}),
    ):
        for name, answer in answers.items():
            monkeypatch.setattr(place, name, lambda *_, answer=answer: answer)
    config = utils.get_config()
    printed = capsys.readouterr().out
    expected = ("full", "cuda") if is_used else ("quick", "cpu")
    assert (config.profile, config.device.type) == expected
    assert ("T4" in printed.replace(T4["name"], "")) != is_used, "what to choose instead"
    assert gpu["name"] in printed
    assert ("2 GPUs" in printed) == (count == 2)


def test_quick_profile_is_chosen_without_a_gpu(monkeypatch):
    monkeypatch.delenv("S11_PROFILE")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    config = utils.get_config()
    assert (config.profile, config.device) == ("quick", torch.device("cpu"))


# Folders


def test_home_is_filled_in(make_config, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = make_config(output_dir="~/x", data_dir="~/data")
    assert (config.output_dir, config.data_dir) == (tmp_path / "x", tmp_path / "data")


ON_DRIVE = "/content/drive/MyDrive/s11"


@pytest.mark.parametrize("name", ["output_dir", "data_dir"])
def test_folder_on_a_drive_that_is_not_mounted_is_told(make_config, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "google.colab", None)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("a folder was made"))
    with pytest.raises(FileNotFoundError, match="not mounted.*another folder") as caught:
        make_config(**{name: ON_DRIVE})
    assert "\n" not in str(caught.value)
    assert make_config(**{name: "/content/drivers"}), "no drive"


@pytest.mark.parametrize("is_mounted", [False, True])
def test_drive_is_mounted_on_colab_if_need_be(make_config, monkeypatch, is_mounted):
    mounted = []
    drive = SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(drive=drive))
    monkeypatch.setattr(os.path, "ismount", lambda _: is_mounted)
    assert make_config(output_dir=ON_DRIVE).output_dir == Path(ON_DRIVE)
    assert mounted == [] if is_mounted else ["/content/drive"]
