"""Profiles, environment variables, devices, folders, and one clear sentence for a bad value."""

import os
import sys
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import utils


def test_full_profile_is_the_assignment(make_config, capsys):
    config = asdict(make_config("full"))
    expected = {
        **{"dataset": "CIFAR-10", "epochs": 20, "batch_size": 512, "train_images": None},
        **{"crop_padding": 4, "cutout_size": 16, "momentum": 0.9, "lr_finder_steps": 100},
        **{"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)},
    }
    assert {name: config[name] for name in expected} == expected
    assert "There is no GPU: on a CPU, 20 epochs" in capsys.readouterr().out


def test_quick_profile_says_that_it_is_not_cifar10(make_config, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    make_config("quick")
    first_line, *others = capsys.readouterr().out.splitlines()
    assert all(word in first_line for word in ("QUICK", "digits", "NOT CIFAR-10"))
    assert any("Runtime > Change runtime type" in line for line in others)


CAVEATS = {None: "", 50_000: "", 4096: "4,096 images only"}


@pytest.mark.parametrize("train_images", CAVEATS)
def test_caveat_is_what_a_figure_must_say(make_config, train_images):
    assert "not CIFAR-10" in make_config("quick", train_images=train_images).caveat
    caveat = make_config("full", train_images=train_images).caveat
    assert CAVEATS[train_images] in caveat
    assert bool(caveat) == bool(CAVEATS[train_images])


def test_environment_variables(monkeypatch):
    folders = {"S11_DATA_DIR": "some/data", "S11_OUTPUT_DIR": "some/outputs"}
    for name, value in {**folders, "S11_PROFILE": "full"}.items():
        monkeypatch.setenv(name, value)
    config = utils.get_config(device="cpu")
    assert (config.profile, str(config.data_dir)) == ("full", "some/data")
    assert str(config.output_dir) == "some/outputs"
    for name in folders:
        monkeypatch.delenv(name)
    config = utils.get_config("quick")
    assert (config.profile, str(config.data_dir)) == ("quick", "data")
    assert str(config.output_dir) == "outputs/quick"
    monkeypatch.setenv("S11_PROFILE", "fulll")
    with pytest.raises(ValueError, match=r"'fulll'.*'full' or 'quick'"):
        utils.get_config()


def test_none_leaves_the_value_of_the_profile(make_config):
    names = utils.Config.__dataclass_fields__.keys() - {"device", "data_dir", "output_dir"}
    config = make_config()
    assert make_config(**dict.fromkeys(names - {"profile"})) == config
    assert (config.epochs, config.cutout_size) == (3, 8)
    with pytest.raises(FrozenInstanceError):
        config.epochs = 5


def test_get_config_seeds_the_next_model(make_config):
    draws = []
    for seed in (1, 1, 2):
        make_config(seed=seed)
        draws.append(torch.rand(()).item())
    assert draws[0] == draws[1] != draws[2]


BAD_VALUES = {
    "profile": ["fast"], "epochs": [0, 2.5, 20.0, True, np.float64(3)], "batch_size": [-8, 512.0],
    "train_images": [0], "cutout_size": ["16", 32, 8.0], "crop_padding": [-1, 32],
    "seed": [1.5, -1, False], "warmup_fraction": [2], "label_smoothing": [1], "momentum": [np.nan],
    "weight_decay": ["5e-4", -1], "lr_finder_steps": [1], "resume": ["no"], "optimizer": ["adam"],
}  # fmt: skip


@pytest.mark.parametrize(
    "setting", [(n, bad) for n, values in BAD_VALUES.items() for bad in values]
)
def test_bad_values_get_one_clear_sentence(make_config, setting):
    name, value = setting
    with pytest.raises(ValueError, match=name) as caught:
        make_config(**{"profile": "full", name: value})
    message = str(caught.value)
    assert "\n" not in message
    assert str(value) in message


def test_misspelt_setting_is_told(make_config):
    with pytest.raises(TypeError, match=r"\bepoch\b"):
        make_config(epoch=3)


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
    used = (config.profile, config.device.type)
    assert used == (("full", "cuda") if is_used else ("quick", "cpu"))
    assert gpu[0] in printed
    assert is_used or "choose a T4" in printed
    assert ("2 GPUs" in printed) == (is_used and count == 2)


def test_quick_profile_is_chosen_without_a_gpu(monkeypatch):
    monkeypatch.delenv("S11_PROFILE")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    config = utils.get_config()
    assert (config.profile, config.device) == ("quick", torch.device("cpu"))


# Folders
ON_DRIVE = "/content/drive/MyDrive/s11"


@pytest.mark.parametrize("name", ["output_dir", "data_dir"])
def test_folder_at_home_or_on_a_drive_that_is_not_there(make_config, monkeypatch, tmp_path, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert getattr(make_config(**{name: "~/x"}), name) == tmp_path / "x"
    monkeypatch.setitem(sys.modules, "google.colab", None)
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
