"""Profiles, environment variables, and one clear sentence for every bad value."""

import sys
import types
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

import utils


def test_full_profile_is_the_assignment(make_config):
    config = make_config("full")
    assert (config.dataset, config.epochs, config.batch_size) == ("CIFAR-10", 20, 512)
    assert (config.crop_padding, config.cutout_size, config.train_images) == (4, 16, None)
    assert config.mean == (0.4914, 0.4822, 0.4465)
    assert config.std == (0.2470, 0.2435, 0.2616)
    assert config.caveat == ""


def test_quick_profile_says_loudly_that_it_is_not_cifar10(make_config, capsys):
    config = make_config("quick")
    first_line, *_ = capsys.readouterr().out.splitlines()
    assert "QUICK" in first_line
    assert "digits" in first_line
    assert "NOT CIFAR-10" in first_line
    assert "not CIFAR-10" in config.caveat


def test_quick_profile_is_chosen_without_an_accelerator(monkeypatch):
    monkeypatch.delenv("S11_PROFILE")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert utils.get_config().profile == "quick"
    assert utils.get_config().device == torch.device("cpu")


def test_full_profile_is_chosen_with_an_accelerator(monkeypatch):
    monkeypatch.delenv("S11_PROFILE")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert utils.get_config(device="cpu").profile == "full"


def test_environment_variables(monkeypatch):
    monkeypatch.setenv("S11_PROFILE", "full")
    monkeypatch.setenv("S11_DATA_DIR", "some/data")
    monkeypatch.setenv("S11_OUTPUT_DIR", "some/outputs")
    config = utils.get_config(device="cpu")
    assert config.profile == "full"
    assert (config.data_dir, config.output_dir) == (Path("some/data"), Path("some/outputs"))
    assert utils.get_config("quick").profile == "quick", "an argument beats the environment"


def test_default_folders(monkeypatch):
    monkeypatch.delenv("S11_OUTPUT_DIR")
    monkeypatch.delenv("S11_DATA_DIR", raising=False)
    config = utils.get_config("quick")
    assert (config.data_dir, config.output_dir) == (Path("data"), Path("outputs/quick"))


def test_config_is_frozen(config):
    with pytest.raises(FrozenInstanceError):
        config.epochs = 3


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        ({"profile": "fast"}, ValueError, ["'fast'", "'full'", "'quick'"]),
        ({"epochs": 0}, ValueError, ["epochs is 0", "at least 1"]),
        ({"epochs": 2.5}, ValueError, ["epochs is 2.5", "whole number"]),
        ({"batch_size": 0}, ValueError, ["batch_size is 0", "at least 1"]),
        ({"batch_size": -8}, ValueError, ["batch_size is -8", "at least 1"]),
        ({"train_images": 0}, ValueError, ["train_images is 0", "at least 1"]),
        ({"batch_size": None}, ValueError, ["batch_size is None", "whole number"]),
        ({"epochs": True}, ValueError, ["epochs is True", "whole number"]),
        ({"cutout_size": "16"}, ValueError, ["cutout_size is '16'", "0 to 31"]),
        ({"warmup_fraction": 2}, ValueError, ["warmup_fraction is 2", "below 1"]),
        ({"label_smoothing": 3.0}, ValueError, ["label_smoothing is 3.0", "below 1"]),
        ({"cutout_size": 33}, ValueError, ["cutout_size is 33", "0 to 31"]),
        ({"crop_padding": -1}, ValueError, ["crop_padding is -1", "0 to 31"]),
        ({"seed": 1.5}, ValueError, ["seed is 1.5", "whole number"]),
        ({"weight_decay": -1}, ValueError, ["weight_decay is -1", "below 1"]),
        ({"resume": "no"}, ValueError, ["resume is 'no'", "True or False"]),
        ({"lr_finder_steps": 1}, ValueError, ["lr_finder_steps is 1", "at least 10"]),
        ({"weight_decay": "5e-4"}, ValueError, ["weight_decay is '5e-4'", "below 1"]),
        ({"momentum": None}, ValueError, ["momentum is None", "below 1"]),
        ({"cutout_size": 8.0}, ValueError, ["cutout_size is 8.0", "0 to 31"]),
        ({"mean": 0.5}, ValueError, ["mean is 0.5", "three numbers"]),
        ({"mean": ("0.5",) * 3}, ValueError, ["mean is ('0.5',", "three numbers"]),
        ({"std": (1, 1)}, ValueError, ["std is (1, 1)", "three numbers"]),
        ({"std": (1, 0, 1)}, ValueError, ["std is (1, 0, 1)", "above 0"]),
        ({"epoch": 3}, TypeError, ["no epoch", "epochs, batch_size"]),
    ],
)
def test_bad_values_get_one_clear_sentence(make_config, overrides, error, words):
    with pytest.raises(error) as caught:
        make_config(**overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_unknown_profile_from_the_environment(monkeypatch):
    monkeypatch.setenv("S11_PROFILE", "fulll")
    with pytest.raises(ValueError, match="'fulll'"):
        utils.get_config()


def test_full_profile_without_a_gpu_warns_of_hours(make_config, capsys):
    make_config("full")
    assert "There is no GPU: on a CPU, 20 epochs" in capsys.readouterr().out
    make_config("quick")
    assert "There is no GPU" not in capsys.readouterr().out


def test_colab_without_a_gpu_is_told_which_menu_to_open(monkeypatch, make_config, capsys):
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    make_config("quick")
    assert "Runtime > Change runtime type" in capsys.readouterr().out


def test_get_config_seeds_the_next_model(make_config):
    draws = []
    for seed in (1, 1, 2):
        make_config(seed=seed)
        draws.append(torch.rand(()).item())
    assert draws[0] == draws[1] != draws[2]
