"""Profiles, environment variables, devices, folders, and one clear sentence for a bad value."""

import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import utils

DIGITS = tuple("0123456789")


# --- Profiles and datasets ------------------------------------------------------------------------
def test_quick_profile_says_first_thing_that_it_is_not_cifar10(make_config, capsys):
    caveat = make_config("quick").caveat
    first_line = capsys.readouterr().out.splitlines()[0]
    for word in ("QUICK", "digits", "NOT CIFAR-10"):
        assert word in first_line
    assert "quick" in caveat
    assert "digits, not CIFAR-10" in caveat


def test_full_profile_is_the_assignment(make_config):
    full = make_config("full")
    assert full.dataset == "CIFAR-10"
    assert full.epochs == 20
    assert full.crop_padding == 4
    assert full.cutout_size == 16
    assert full.mean == (0.4914, 0.4822, 0.4465)
    assert full.std == (0.2470, 0.2435, 0.2616)


def test_figures_say_what_is_not_the_whole_of_cifar10(make_config):
    assert make_config("full").caveat == ""
    assert make_config("full", train_images=50_000).caveat == ""
    assert "4,096 images only" in make_config("full", train_images=4096).caveat
    assert "digits, not CIFAR-10" in make_config("full", dataset="handwritten digits").caveat
    quick = make_config("quick", dataset="CIFAR-10").caveat
    assert "1,024 images only" in quick
    assert "not CIFAR-10" not in quick


def test_full_run_without_a_gpu_is_told_to_be_long(make_config, capsys):
    make_config("full")
    assert "20 epochs may take many hours" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folder", "is_told"),
    [("outputs/full", True), ("MyDrive/S11", True), ("/content/drive/MyDrive/of-a-test", False)],
)
def test_colab_tells_before_a_real_run_that_it_forgets_its_folder(
    make_config, monkeypatch, capsys, folder, is_told
):
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    make_config("full", output_dir=folder)
    assert ("will forget" in capsys.readouterr().out) == is_told
    make_config("quick", output_dir=folder)
    assert "will forget" not in capsys.readouterr().out


def test_colab_without_a_gpu_is_told_the_way_to_one(make_config, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    make_config()
    assert "Runtime > Change runtime type > T4" in capsys.readouterr().out


@pytest.mark.parametrize("profile", ["full", "quick"])
def test_a_dataset_brings_its_classes_mean_and_std(make_config, profile):
    cifar10 = make_config(profile, dataset="CIFAR-10")
    assert cifar10.classes[:2] == ("airplane", "automobile")
    assert cifar10.mean == (0.4914, 0.4822, 0.4465)
    assert cifar10.std == (0.2470, 0.2435, 0.2616)
    digits = make_config(profile, dataset="handwritten digits")
    assert digits.classes == DIGITS
    assert digits.mean == (0.304, 0.304, 0.304)
    assert digits.std == (0.3232, 0.3232, 0.3232)


def test_what_you_give_wins_over_what_a_dataset_brings(make_config):
    config = make_config(mean=(0.1, 0.2, 0.3), classes=[f"digit {i}" for i in range(10)])
    assert config.mean == (0.1, 0.2, 0.3)
    assert config.classes[9] == "digit 9"
    assert config.std == (0.3232, 0.3232, 0.3232)


OWN = {"classes": ["cat", "dog"], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}


@pytest.mark.parametrize("missing", OWN)
@pytest.mark.parametrize("profile", ["full", "quick"])
def test_own_dataset_needs_classes_mean_and_std(make_config, profile, missing):
    given = {name: value for name, value in OWN.items() if name != missing}
    with pytest.raises(ValueError, match=r"'pets' is none of .* your own .*classes, mean and std"):
        make_config(profile, dataset="pets", **given)


def test_own_dataset_may_have_images_of_any_size(make_config):
    config = make_config(dataset="pets", image_size=64, cutout_size=40, **OWN)
    assert config.classes == ("cat", "dog")
    assert config.image_size == 64


@pytest.mark.parametrize("dataset", ["CIFAR-10", "handwritten digits"])
def test_images_of_a_known_dataset_have_32_pixels(make_config, dataset):
    with pytest.raises(ValueError, match=r"image_size is 64.* 32 x 32"):
        make_config(dataset=dataset, image_size=64)


# --- One value of each setting --------------------------------------------------------------------
def test_none_leaves_the_value_of_the_profile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = utils.Config.__dataclass_fields__.keys() - {"profile", "device"}
    assert utils.get_config("quick", **dict.fromkeys(names)) == utils.get_config("quick")


def test_seed_decides_the_random_numbers(make_config):
    draws = []
    for seed in (1, 1, 2):
        make_config(seed=seed)
        draws.append(torch.rand(()).item())
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


BAD_VALUES = {
    "profile": ["fast", "Full"],
    "image_size": [0, 32.0, "32", True],
    "seed": [-1, 1.5, 2**63, "0"],
    "epochs": [0, -3, 2.5, 20.0, True, "20", np.float64(3), np.nan],
    "batch_size": [0, -8, np.float64(3), np.True_],
    "train_images": [0, -1, 100.0, "all"],
    "crop_padding": [-1, 32, 2.0],
    "cutout_size": [-1, 32, "16"],
    "cutout_free_fraction": [1, -0.1, np.float32(1.5), True],
    "label_smoothing": [1, 1.5, "0.1"],
    "momentum": [np.nan, 1, -0.9],
    "weight_decay": ["5e-4", -1, np.inf],
    "warmup_fraction": [2, -0.5, [0.2]],
    "lr_finder_steps": [19, 30.0],
    "optimizer": ["adamax", 1, ["sgd"]],
    "anneal_strategy": [1, "linearly"],
    "precision": ["bfloat16", 32, True],
    "resume": ["no", 2],
    "mean": [(0.5,), 0.5, (125.3, 123.0, 113.9), (np.nan, 0.5, 0.5), ("0.5", "0.5", "0.5"), (-1,)],
    "std": [(0.2, 0.2), (0.2, 0.0, 0.2), (63.0, 62.1, 66.7), (0.2, np.nan, 0.2), "0.2", (0.2,) * 4],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in BAD_VALUES for v in BAD_VALUES[n]])
def test_a_bad_value_gets_one_sentence_with_its_name(make_config, name, value):
    with pytest.raises(ValueError, match=rf"^.*\b{name}\b.*$") as caught:
        make_config(**{"profile": "full", name: value})
    shown = np.ravel(value)[0]
    assert str(shown) in str(caught.value)


def test_an_optimizer_brings_its_weight_decay_and_yours_wins(make_config):
    assert make_config().weight_decay == make_config(optimizer="sgd").weight_decay == 5e-4
    assert make_config(optimizer="adamw").weight_decay == 0.05
    assert make_config(optimizer="adamw", weight_decay=0.0).weight_decay == 0


def test_a_misspelt_setting_is_told(make_config):
    with pytest.raises(TypeError, match="epoch"):
        make_config(epoch=3)


@pytest.mark.parametrize(("name", "value"), [("epochs", -3), ("momentum", 2), ("train_images", 0)])
def test_limits_hold_when_annotations_are_mere_text(make_config, monkeypatch, name, value):
    source = Path(utils.__file__).read_text(encoding="utf-8")
    module = ModuleType("annotated")
    monkeypatch.setitem(sys.modules, "annotated", module)
    exec("from __future__ import annotations\n" + source, vars(module))
    settings = vars(make_config("full"))
    module.Config(**settings)
    with pytest.raises(ValueError, match=name):
        module.Config(**{**settings, name: value})


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("std", (0, 1, 1)), ("precision", "")])
def test_a_changed_copy_is_checked_like_the_first(make_config, name, value):
    with pytest.raises(ValueError, match=name):
        replace(make_config(), **{name: value})


def test_numbers_of_numpy_are_taken_as_those_of_python(make_config):
    config = make_config(
        epochs=np.int64(5),
        momentum=np.float32(0.5),
        mean=np.full(3, 0.25),
        std=torch.full((3,), 0.5),
    )
    assert type(config.epochs) is int
    assert type(config.momentum) is float
    assert config.mean == (0.25, 0.25, 0.25)
    assert config.std == (0.5, 0.5, 0.5)


GOOD_EDGES = {
    "crop_padding": [0, 31],
    "cutout_size": [0, 31],
    "cutout_free_fraction": [0, 0.99],
    "momentum": [0],
    "warmup_fraction": [0, 0.999],
    "lr_finder_steps": [20],
    "precision": ["float32"],
    "seed": [0, 2**63 - 1],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in GOOD_EDGES for v in GOOD_EDGES[n]])
def test_the_edges_of_each_range_can_be_chosen(make_config, name, value):
    assert getattr(make_config(**{name: value}), name) == value


# --- Folders and environment variables ------------------------------------------------------------
def test_environment_variables_choose_profile_and_folders(monkeypatch):
    monkeypatch.setenv("S11_PROFILE", "full")
    monkeypatch.setenv("S11_DATA_DIR", "my/data")
    monkeypatch.setenv("S11_OUTPUT_DIR", "my/out")
    config = utils.get_config()
    assert config.profile == "full"
    assert config.data_dir == Path.cwd() / "my" / "data"
    assert config.output_dir == Path.cwd() / "my" / "out"


def test_an_empty_variable_counts_as_none(monkeypatch):
    monkeypatch.setenv("S11_OUTPUT_DIR", "")
    assert utils.get_config("quick").output_dir == Path.cwd() / "outputs" / "quick"


@pytest.mark.parametrize("written", ['"{}"', "'{}'", " {}", "{} ", "\t{}\n", ' "{}" '])
def test_quotes_and_blanks_around_a_variable_do_not_count(tmp_path, monkeypatch, written):
    monkeypatch.setenv("S11_PROFILE", written.format("full"))
    monkeypatch.setenv("S11_DATA_DIR", written.format(tmp_path / "my data"))
    monkeypatch.setenv("S11_OUTPUT_DIR", written.format(tmp_path / "my run"))
    config = utils.get_config()
    assert config.profile == "full"
    assert config.data_dir == tmp_path / "my data"
    assert config.output_dir == tmp_path / "my run"


def test_folders_are_told_without_the_name_of_their_user(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    assert utils.describe_path(tmp_path / "here" / "outputs") == "outputs"
    assert utils.describe_path(tmp_path / "S11") == str(Path("~") / "S11")
    assert utils.describe_path(Path("/content/S11")) == str(Path("/content/S11"))


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_other_accelerators_compute_in_float32(kind):
    float32 = {"device_type": kind, "dtype": torch.float32, "enabled": False}
    assert utils.get_autocast(torch.device(kind)) == float32


def test_relative_folders_stay_where_they_were_after_a_chdir(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    config = utils.get_config("quick", data_dir="data", output_dir="run", train_images=64)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    utils.find_lr(model, utils.get_dataloaders(config)[0], config)
    assert config.data_dir == tmp_path / "data"
    assert (tmp_path / "run" / "lr_finder.png").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", ["output_dir", "data_dir"])
def test_a_tilde_is_the_home_folder(make_config, monkeypatch, name):
    monkeypatch.setenv("HOME", "/home/ada")
    assert getattr(make_config(**{name: "~/x"}), name) == Path("/home/ada/x")


DRIVE = Path("/content/drive/MyDrive/s11")


@pytest.mark.parametrize("name", ["output_dir", "data_dir"])
def test_a_drive_is_mounted_once_if_a_folder_is_on_it(make_config, monkeypatch, name):
    mounted = []
    drive = SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(drive=drive))
    monkeypatch.setattr(os.path, "ismount", lambda path: path in mounted)
    for _ in range(2):
        assert getattr(make_config(**{name: DRIVE}), name) == DRIVE
    assert mounted == ["/content/drive"]


@pytest.mark.parametrize("name", ["output_dir", "data_dir"])
def test_a_drive_that_cannot_be_mounted_is_told(make_config, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "google.colab", None)
    monkeypatch.setattr(os.path, "ismount", lambda path: False)
    with pytest.raises(FileNotFoundError, match=r"^.*not mounted.*another folder.*$"):
        make_config(**{name: DRIVE})


def test_a_folder_that_only_begins_like_a_drive_is_none(make_config):
    assert make_config(data_dir="/content/drivers").data_dir == Path("/content/drivers")


# --- The device, with a pretended accelerator -----------------------------------------------------
@pytest.fixture
def accelerator(monkeypatch):
    """Return a function that pretends an accelerator; its tiny operation raises, or works."""

    def pretend(name, error=None):
        def compute(*_, device):
            if error:
                raise error
            return Mock(device=torch.device(name, 0))

        device = torch.device(name)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: device)
        monkeypatch.setattr(torch, "ones", compute)
        return device

    return pretend


@pytest.mark.parametrize("name", ["cuda", "mps", "xpu", "meta"])
def test_an_accelerator_that_works_is_used_without_a_word(accelerator, monkeypatch, capsys, name):
    accelerator(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert utils.find_device() == torch.device(name, 0)
    assert capsys.readouterr().out == ""


FAILURES = [
    RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA ..."),
    NotImplementedError("the operator is not implemented for this device"),
    AssertionError("Torch not compiled with CUDA enabled"),
    RuntimeError(),
]


@pytest.mark.parametrize("error", FAILURES, ids=repr)
def test_an_accelerator_that_cannot_compute_is_left_for_the_cpu(accelerator, capsys, error):
    accelerator("cuda", error)
    assert utils.find_device() == torch.device("cpu")
    printed = capsys.readouterr().out
    assert "GPU T4" in printed
    assert "driver" in printed
    assert str(error).partition("\n")[0] in printed


def test_an_accelerator_whose_numbers_cannot_be_read_is_left_for_the_cpu(monkeypatch, capsys):
    """As on the device "meta", which knows shapes only."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    assert utils.find_device() == torch.device("cpu")
    assert "The CPU is used" in capsys.readouterr().out


@pytest.mark.parametrize("profile", ["full", "quick"])
def test_a_gpu_chooses_the_full_profile(accelerator, monkeypatch, tmp_path, profile):
    monkeypatch.delenv("S11_PROFILE")
    monkeypatch.setenv("S11_OUTPUT_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA X")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    accelerator("cuda", RuntimeError("no kernel image") if profile == "quick" else None)
    config = utils.get_config()
    assert config.profile == profile
    assert config.device.type == ("cuda" if profile == "full" else "cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta:x", "vulkan"])
def test_a_device_that_is_not_there_is_told_in_one_sentence(make_config, device):
    with pytest.raises(ValueError, match=rf"^device '{device}' cannot be used[^\n]*$"):
        make_config(device=device)


def test_images_of_your_own_are_not_counted_by_train_images(make_config):
    own = {"dataset": "mine", "classes": ("a", "b"), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert make_config("quick", **own).train_images is None, "though the quick profile has some"
    with pytest.raises(ValueError, match=r"^train_images is 64.*make_loader"):
        make_config("full", **own, train_images=64)


@pytest.mark.parametrize("classes", [{"bee": 1, "ant": 0}, {1: "bee", 0: "ant"}])
def test_classes_may_be_a_dict_from_names_to_numbers_or_back(make_config, classes):
    config = make_config("full", dataset="mine", **OWN | {"classes": classes})
    assert config.classes == ("ant", "bee")


@pytest.mark.parametrize("classes", [{"ant", "bee"}, frozenset({"ant"}), "ant bee"])
def test_classes_without_an_order_are_refused(make_config, classes):
    with pytest.raises(ValueError, match=r"^classes is [^\n]*: give a list[^\n]*$"):
        make_config("full", dataset="mine", **OWN | {"classes": classes})


@pytest.mark.parametrize(
    ("dataset", "words"),
    [("CIFAR10", "none of [^\n]*'CIFAR-10'"), (["CIFAR-10"], "must be a name")],
)
def test_a_dataset_that_we_do_not_know_is_told_in_one_sentence(make_config, dataset, words):
    with pytest.raises(ValueError, match=rf"^[^\n]*{words}[^\n]*$"):
        make_config("full", dataset=dataset)


def test_random_states_are_those_of_the_device_with_this_number(monkeypatch):
    module = Mock()
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    device = torch.device("cuda", 1)
    states = utils.get_random_states(device)
    utils.set_random_states(states, device)
    module.get_rng_state.assert_called_once_with(device)
    module.set_rng_state.assert_called_once_with(states["cuda"], device)


def test_of_two_gpus_one_is_used_and_that_is_told(accelerator, monkeypatch, capsys):
    accelerator("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert utils.find_device() == torch.device("cuda", 0)
    assert "2 GPUs" in capsys.readouterr().out


def test_a_driver_that_is_too_old_is_told(monkeypatch, capsys):
    def warn():
        warnings.warn("CUDA initialization: The driver is too old (found 12020).", stacklevel=2)
        return False

    monkeypatch.setattr(torch.accelerator, "is_available", warn)
    assert utils.find_device() == torch.device("cpu")
    printed = capsys.readouterr()
    assert "driver is too old (found 12020)" in printed.out
    assert "driver" in printed.out


def test_a_machine_without_a_gpu_is_told_nothing_of_it(monkeypatch, capsys):
    def warn():
        warnings.warn("This function is deprecated", DeprecationWarning, stacklevel=2)
        return False

    monkeypatch.setattr(torch.accelerator, "is_available", warn)
    assert utils.find_device() == torch.device("cpu")
    assert capsys.readouterr().out == ""
