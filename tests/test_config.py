"""Profiles, environment variables, devices, folders, and one clear sentence for a bad value."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import utils


def test_profiles_are_the_assignment_and_what_is_not_cifar10(make_config, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    assert "not CIFAR-10" in make_config("quick").caveat
    first_line = capsys.readouterr().out.splitlines()[0]
    assert all(word in first_line for word in ("QUICK", "digits", "NOT CIFAR-10"))
    full = make_config("full")
    printed = capsys.readouterr().out
    assert "There is no GPU: on a CPU, 20 epochs" in printed
    assert "Runtime > Change runtime type" in printed
    assert (full.dataset, full.epochs, full.batch_size) == ("CIFAR-10", 20, 512)
    assert (full.crop_padding, full.cutout_size, full.lr_finder_steps) == (4, 16, 100)
    assert full.cutout_free_fraction == 0.2
    assert full.mean + full.std == (0.4914, 0.4822, 0.4465, 0.2470, 0.2435, 0.2616)
    assert full.caveat == make_config("full", train_images=50_000).caveat == ""
    assert "4,096 images only" in make_config("full", train_images=4096).caveat


def test_environment_variables(monkeypatch):
    for profile, folder in (("full", "my/out"), ("quick", "")):
        values = {"PROFILE": profile, "DATA_DIR": "my/data", "OUTPUT_DIR": folder}
        for name, value in values.items():
            monkeypatch.setenv(f"S11_{name}", value)
        config = utils.get_config()
        found = config.profile, config.data_dir, config.output_dir
        assert found == (profile, Path("my/data"), Path(folder or "outputs/quick"))


def test_none_leaves_the_value_of_the_profile_and_the_seed_is_set(make_config):
    names = utils.Config.__dataclass_fields__.keys() - {"profile", "device"}
    assert utils.get_config("quick", **dict.fromkeys(names)) == utils.get_config("quick")
    draws = [(make_config(seed=seed), torch.rand(()).item())[1] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


BAD_VALUES = {
    "profile": ["fast"], "epoch": [3], "anneal_strategy": [1], "epochs": [0, 2.5, 20.0, True],
    "batch_size": [-8, np.float64(3)], "train_images": [0], "cutout_size": ["16", 32], "seed": [-1],
    "mean": [(0.5,)], "warmup_fraction": [2], "label_smoothing": [1], "momentum": [np.nan],
    "weight_decay": ["5e-4", -1], "lr_finder_steps": [19], "resume": ["no"], "optimizer": ["adam"],
    "std": [(0.2, 0.2), (0.2, 0.0, 0.2)], "cutout_free_fraction": [1], "crop_padding": [-1],
}  # fmt: skip


@pytest.mark.parametrize("setting", [(n, v) for n, bad in BAD_VALUES.items() for v in bad])
def test_bad_values_get_one_clear_sentence(make_config, setting):
    name, value = setting
    with pytest.raises((ValueError, TypeError), match=rf"^.*\b{name}\b.*$") as caught:
        make_config(**{"profile": "full", name: value})
    assert str(value) in str(caught.value) or name == "epoch", "a misspelt name"


BUILT_FOR = ["sm_70", "sm_75", "sm_80", "sm_90", "compute_90"]
GPUS = [
    ((6, 0), BUILT_FOR, False), ((7, 5), BUILT_FOR, True), ((7, 5), ["sm_80", "sm_90"], False),
    ((12, 0), BUILT_FOR, True), ((12, 0), ["sm_90"], False), ((12, 0), ["sm_90", "sm_120"], True),
]  # fmt: skip


@pytest.mark.parametrize(("capability", "built_for", "is_used"), GPUS)
def test_gpu_is_used_if_this_pytorch_can(monkeypatch, capsys, capability, built_for, is_used):
    monkeypatch.delenv("S11_PROFILE")
    answers = {"cuda.get_device_name": "NVIDIA X", "cuda.get_device_capability": capability}
    answers |= {"cuda.get_arch_list": built_for, "cuda.device_count": 2}
    answers["accelerator.current_accelerator"] = torch.device("cuda")
    for name, answer in {**answers, "accelerator.is_available": True}.items():
        monkeypatch.setattr(f"torch.{name}", lambda *_, answer=answer: answer)
    config, printed = utils.get_config(), capsys.readouterr().out
    used, unused = ("cuda", "full"), ("cpu", "quick")
    assert (config.device.type, config.profile) == (used if is_used else unused)
    assert ("2 GPUs" if is_used else "choose a T4") in printed


@pytest.mark.parametrize("name", ["output_dir", "data_dir"])
def test_folder_at_home_or_on_a_drive_that_is_mounted_if_need_be(make_config, monkeypatch, name):
    def choose(path):
        return str(getattr(make_config(**{name: path}), name))

    monkeypatch.setenv("HOME", "/home/ada")
    assert choose("~/x") == "/home/ada/x"
    monkeypatch.setitem(sys.modules, "google.colab", None)
    monkeypatch.setattr(os.path, "ismount", lambda path: path in mounted)
    path, mounted = "/content/drive/MyDrive/s11", []
    with pytest.raises(FileNotFoundError, match=r"^.*not mounted.*another folder.*$"):
        choose(path)
    assert choose("/content/drivers") == "/content/drivers", "no drive"
    drive = SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(drive=drive))
    assert [choose(path), choose(path)] == [path, path]
    assert mounted == ["/content/drive"], "once"
