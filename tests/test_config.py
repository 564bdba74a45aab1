"""Profiles, environment variables, devices, folders, and one clear sentence for a bad value."""

import os
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import utils


def test_profiles_are_the_assignment_and_what_is_not_cifar10(make_config, monkeypatch, capsys):
    full = make_config("full")
    assert (full.dataset, full.epochs, full.batch_size) == ("CIFAR-10", 20, 512)
    assert (full.crop_padding, full.cutout_size, full.lr_finder_steps) == (4, 16, 100)
    assert full.mean == (0.4914, 0.4822, 0.4465)
    assert full.std == (0.2470, 0.2435, 0.2616)
    assert "There is no GPU: on a CPU, 20 epochs" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    quick = make_config("quick")
    first_line, *others = capsys.readouterr().out.splitlines()
    assert all(word in first_line for word in ("QUICK", "digits", "NOT CIFAR-10"))
    assert any("Runtime > Change runtime type" in line for line in others)
    assert "not CIFAR-10" in quick.caveat
    assert full.caveat == make_config("full", train_images=50_000).caveat == ""
    assert "4,096 images only" in make_config("full", train_images=4096).caveat
    with pytest.raises(FrozenInstanceError):
        full.epochs = 5


def test_environment_variables(monkeypatch):
    for name, value in {"PROFILE": "full", "DATA_DIR": "my/data", "OUTPUT_DIR": "my/out"}.items():
        monkeypatch.setenv(f"S11_{name}", value)
    config = utils.get_config(device="cpu")
    assert config.profile == "full"
    assert (config.data_dir, config.output_dir) == (Path("my/data"), Path("my/out"))
    monkeypatch.delenv("S11_OUTPUT_DIR")
    monkeypatch.setenv("S11_DATA_DIR", "")
    config = utils.get_config("quick")
    assert (config.data_dir, config.output_dir) == (Path("data"), Path("outputs/quick"))


def test_none_leaves_the_value_of_the_profile_and_the_seed_is_set(make_config):
    names = utils.Config.__dataclass_fields__.keys() - {"profile", "device", "data_dir"}
    config = make_config()
    given = make_config(**dict.fromkeys(names - {"output_dir"}))
    assert given == config
    assert (given.epochs, given.cutout_size) == (3, 8)
    draws = [(make_config(seed=seed), torch.rand(()).item())[1] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


BAD_VALUES = {
    "profile": ["fast"], "epoch": [3], "epochs": [0, 2.5, 20.0, True, np.float64(3)],
    "batch_size": [-8, 512.0], "train_images": [0], "crop_padding": [-1], "cutout_size": ["16", 32],
    "seed": [1.5, -1, False], "warmup_fraction": [2], "label_smoothing": [1], "momentum": [np.nan],
    "weight_decay": ["5e-4", -1], "lr_finder_steps": [1], "resume": ["no"], "optimizer": ["adam"],
}  # fmt: skip


@pytest.mark.parametrize("setting", [(n, v) for n, bad in BAD_VALUES.items() for v in bad])
def test_bad_values_get_one_clear_sentence(make_config, setting):
    name, value = setting
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b") as caught:
        make_config(**{"profile": "full", name: value})
    message = str(caught.value)
    assert "\n" not in message
    assert str(value) in message or name == "epoch", "a misspelt name"


# Devices: what a GPU says of itself
P100, T4, H100, NEWER = ("P100", (6, 0)), ("T4", (7, 5)), ("H100", (9, 0)), ("B200", (12, 0))
BUILT_FOR = ["sm_70", "sm_75", "sm_80", "sm_90", "compute_90"]
GPUS = [
    (P100, BUILT_FOR, False), (P100, ["sm_50", "sm_60"], True), (T4, BUILT_FOR, True),
    (T4, ["sm_80", "sm_90"], False), (H100, BUILT_FOR, True), (NEWER, BUILT_FOR, True),
    (NEWER, ["sm_75", "sm_90"], False), (NEWER, ["sm_90", "sm_120"], True),
]  # fmt: skip


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("gpu", "built_for", "is_used"), GPUS)
def test_gpu_is_used_if_this_pytorch_can(monkeypatch, capsys, gpu, built_for, is_used, count):
    monkeypatch.delenv("S11_PROFILE")
    answers = {"get_device_name": gpu[0], "get_device_capability": gpu[1]}
    answers |= {"get_arch_list": built_for, "device_count": count}
    accelerator = {"is_available": True, "current_accelerator": torch.device("cuda")}
    for place, values in ((torch.accelerator, accelerator), (torch.cuda, answers)):
        for name, answer in values.items():
            monkeypatch.setattr(place, name, lambda *_, answer=answer: answer)
    config, printed = utils.get_config(), capsys.readouterr().out
    assert config.device.type == ("cuda" if is_used else "cpu")
    assert config.profile == ("full" if is_used else "quick")
    assert gpu[0] in printed
    assert is_used or "choose a T4" in printed
    assert ("2 GPUs" in printed) == (is_used and count == 2)


# Folders
ON_DRIVE = "/content/drive/MyDrive/s11"


@pytest.mark.parametrize("name", ["output_dir", "data_dir"])
def test_folder_at_home_or_on_a_drive_that_is_not_there(make_config, monkeypatch, tmp_path, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert getattr(make_config(**{name: "~/x"}), name) == tmp_path / "x"
    monkeypatch.setitem(sys.modules, "google.colab", None)
    monkeypatch.setattr(os.path, "ismount", lambda _: False)
    monkeypatch.setattr(os, "mkdir", lambda *_, **__: pytest.fail("a folder was made"))
    with pytest.raises(FileNotFoundError, match=r"not mounted.*another folder") as caught:
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
    assert mounted == ([] if is_mounted else ["/content/drive"])
