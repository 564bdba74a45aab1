"""The ways people walk: another run's folder, cells out of order, two notebooks, a disconnect."""

import copy
import itertools
import json
import os
import re
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, Subset, TensorDataset

import utils
from helpers import ROOT, interrupt_step, make_small_model

# Two steps an epoch
RUN = {"epochs": 3, "batch_size": 32, "train_images": 64, "lr_finder_steps": 20}
FILES = ("checkpoint.pt", "history.json", "model.pt")


@pytest.fixture
def configure(make_config):
    """Return get_config for a run of 3 epochs of 2 steps each; a quick one, unless told."""
    return lambda profile="quick", **changes: make_config(profile, **{**RUN, **changes})


@cache
def read_digits():
    return utils.load_digits()


def get_loaders(config):
    """Run the cell that makes the loaders: of 64 digits, and of 96 to test."""
    (images, labels), (test_images, test_labels) = read_digits()
    augment, normalize = utils.get_transforms(config)
    train_loader = utils.make_loader(images[:64], labels[:64], augment, config, shuffle=True)
    test_loader = utils.make_loader(test_images[:96], test_labels[:96], normalize, config)
    return train_loader, test_loader


def fit(config, model=None, max_lr=0.05):
    """Run the cells from the loaders to the training; without a model, with a fresh one."""
    train_loader, test_loader = get_loaders(config)
    model = model or make_small_model()
    return utils.fit_one_cycle(model, train_loader, test_loader, max_lr, config)


def stop_at_step(number, config, model=None):
    """Press Ctrl-C in the training cell, at a step counted from 1."""
    with interrupt_step(number), pytest.raises(KeyboardInterrupt):
        fit(config, model)


def read_checkpoint(config):
    return torch.load(config.output_dir / "checkpoint.pt", weights_only=True)


def read_folder(folder):
    """Return the content of every file in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def copy_weights(model):
    return {name: value.tolist() for name, value in model.state_dict().items()}


def read_weights(config):
    return {name: value.tolist() for name, value in read_checkpoint(config)["model"].items()}


# A run in a folder where another one lies: told by get_config
OTHERS = {
    "epochs": 4,
    "seed": 1,
    "batch_size": 16,
    "train_images": 65,
    "cutout_size": 4,
    "optimizer": "sgd",
    "label_smoothing": 0.0,
    "mean": (0.5, 0.5, 0.5),
    "classes": [f"digit {i}" for i in range(10)],
    "anneal_strategy": "cos",
}


@pytest.mark.parametrize("name", OTHERS)
def test_get_config_refuses_the_folder_of_a_run_with_other_settings(configure, name):
    config = configure(epochs=1)
    fit(config)
    before = read_folder(config.output_dir)
    changes = {"epochs": 1, name: OTHERS[name]}
    with pytest.raises(ValueError, match=rf"another {name}\b.*output_dir.*resume=False"):
        configure(**changes)
    assert read_folder(config.output_dir) == before


def test_all_settings_that_differ_are_named(configure):
    fit(configure(epochs=1))
    with pytest.raises(ValueError, match="another seed, epochs, optimizer"):
        configure(epochs=2, seed=1, optimizer="sgd")


FREE = {
    "precision": "float32",
    "data_dir": "elsewhere",
    "resume": False,
    "label_smoothing": 0.0,  # it was 0
}


@pytest.mark.parametrize("name", FREE)
def test_what_does_not_make_a_run_may_change(configure, name):
    fit(configure(epochs=1, label_smoothing=0))
    configure(**{"epochs": 1, "label_smoothing": 0, name: FREE[name]})


@pytest.fixture
def full(configure):
    """A full run that is finished; on digits, to be short."""
    config = configure("full", dataset="handwritten digits")
    fit(config)
    return config


@pytest.mark.parametrize("resume", [True, False])
def test_a_quick_run_never_touches_the_files_of_a_full_run(full, configure, resume):
    before = read_folder(full.output_dir)
    with pytest.raises(ValueError, match=r"full run.*output_dir.*GPU"):
        configure("quick", resume=resume)
    assert read_folder(full.output_dir) == before


def test_a_full_run_refuses_the_folder_of_a_quick_one(configure):
    fit(configure("quick"))
    with pytest.raises(ValueError, match=r"another profile.*output_dir.*resume=False"):
        configure("full", dataset="handwritten digits")


def test_get_config_tells_how_far_a_run_has_come(configure, capsys):
    stop_at_step(3, configure())
    capsys.readouterr()
    configure()
    printed = capsys.readouterr().out
    assert "1 of 3 epochs" in printed
    assert "epoch 2" in printed


def test_get_config_tells_that_a_run_is_finished(configure, capsys):
    fit(configure())
    capsys.readouterr()
    configure()
    told = capsys.readouterr().out
    assert "finished" in told
    assert "training cell loads it" in told


@pytest.mark.parametrize("show", ["confusion matrix", "mistakes", "prediction"])
def test_a_model_that_missed_the_training_cell_is_told(configure, capsys, show, shown):
    config = configure()
    _, test_loader = get_loaders(config)

    def show_model(model):
        capsys.readouterr()
        if show == "confusion matrix":
            utils.plot_confusion_matrix(model, test_loader, config)
        elif show == "mistakes":
            utils.get_misclassified(model, test_loader)
        else:
            utils.plot_prediction(model, Image.new("RGB", (32, 32)), config)
        return capsys.readouterr().out

    question = "Is this model trained?"
    assert question not in show_model(make_small_model()), "there is no run that it could miss"
    trained = make_small_model()
    fit(config, trained)
    assert question not in show_model(trained)
    assert question in show_model(make_small_model())
    loaded = make_small_model()
    fit(configure(), loaded)
    assert question not in show_model(loaded)


def test_get_config_tells_nothing_of_a_run_that_is_started_over(configure, capsys):
    configure()
    of_nothing = capsys.readouterr().out
    fit(configure())
    capsys.readouterr()
    configure(resume=False)
    assert capsys.readouterr().out == of_nothing


CURVES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds", "lr")
FOREIGN = {
    "empty": b"",
    "cut off": b'{"run": {"seed": 0, "epo',
    "not text": b"\xff\xfe\x00",
    "a number": b"3",
    "nothing": b"null",
    "a list": b"[1, 2]",
    "only curves": json.dumps({name: [1.0] for name in CURVES}).encode(),
    "of another program": b'{"history": [], "run": "2024-01-01", "stamp": 3}',
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_history_json_that_is_no_run_of_ours_is_ignored(configure, tmp_path, case):
    folder = tmp_path / "outputs"
    folder.mkdir()
    (folder / "history.json").write_bytes(FOREIGN[case])
    config = configure()
    history = fit(config)
    assert utils.read_history(config) == history


@pytest.mark.parametrize("case", ["empty", "cut off", "of another program"])
def test_a_run_whose_history_json_is_damaged_goes_on_from_its_checkpoint(configure, case):
    config = configure()
    stop_at_step(5, config)
    (config.output_dir / "history.json").write_bytes(FOREIGN[case])
    history = fit(configure())
    whole = fit(configure(output_dir=config.output_dir / "whole"))
    assert history["test_loss"] == whole["test_loss"]
    assert utils.read_history(config) == history


def test_a_quick_run_refuses_a_full_run_whose_history_json_is_gone(full, configure):
    (full.output_dir / "history.json").unlink()
    with pytest.raises(ValueError, match=r"full run.*output_dir.*GPU"):
        configure("quick")


# Cells out of order: a model that was trained before
@pytest.fixture
def trained(configure, tmp_path, capsys):
    """A model that has been trained in another folder."""
    model = make_small_model()
    fit(configure(output_dir=tmp_path / "before"), model)
    capsys.readouterr()
    return model


def test_a_model_that_was_trained_before_is_told(trained, configure, capsys):
    fit(configure(seed=1), trained)
    assert "trained before" in capsys.readouterr().out


def test_find_lr_tells_it_as_well(trained, configure, capsys):
    config = configure(seed=1, lr_finder_steps=100)
    train_loader, _ = get_loaders(config)
    utils.find_lr(trained, train_loader, config)
    assert "trained before" in capsys.readouterr().out


def test_a_model_that_was_loaded_from_its_checkpoint_counts_as_trained(trained, configure, capsys):
    config = configure()
    fit(config)
    loaded = make_small_model()
    fit(configure(), loaded)
    capsys.readouterr()
    fit(configure(seed=1, output_dir=config.output_dir / "b"), loaded)
    assert "trained before" in capsys.readouterr().out


def test_the_checkpoint_knows_that_the_model_was_trained_before(trained, configure):
    config = configure(seed=1)
    fit(config, trained)
    assert read_checkpoint(config)["trained_before"] is True


def test_a_fresh_process_that_goes_on_still_knows_it(trained, configure):
    config = configure(seed=1)
    stop_at_step(3, config, trained)
    fit(configure(seed=1), make_small_model())
    assert read_checkpoint(config)["trained_before"] is True


def test_of_a_fresh_model_nothing_is_told(configure, capsys):
    config = configure()
    fit(config)
    assert "trained before" not in capsys.readouterr().out
    assert read_checkpoint(config)["trained_before"] is False


def test_a_fresh_model_that_goes_on_after_ctrl_c_counts_as_fresh(configure, capsys):
    config = configure()
    model = make_small_model()
    stop_at_step(4, config, model)
    fit(config, model)
    assert "trained before" not in capsys.readouterr().out
    assert read_checkpoint(config)["trained_before"] is False


@pytest.mark.parametrize("step", [1, 2])
def test_after_ctrl_c_in_the_first_epoch_the_model_is_as_it_was(configure, capsys, step):
    config = configure()
    model = make_small_model()
    before = copy_weights(model)
    stop_at_step(step, config, model)
    assert copy_weights(model) == before
    fit(config, model)
    assert "trained before" not in capsys.readouterr().out
    assert read_checkpoint(config)["trained_before"] is False


def test_after_ctrl_c_a_model_keeps_the_epochs_that_a_full_disk_did_not(
    configure, monkeypatch, capsys
):
    config = configure(epochs=4)
    model = make_small_model()
    before = copy_weights(model)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.warns(UserWarning, match="could not be written"):
            stop_at_step(7, config, model)
    assert not (config.output_dir / "checkpoint.pt").exists()
    assert copy_weights(model) != before
    told = capsys.readouterr().out
    assert "the model has 3" in told
    assert "torch.save" in told


def test_after_ctrl_c_in_its_first_epoch_a_trained_model_still_counts_as_trained(
    trained, configure
):
    config = configure(seed=1)
    stop_at_step(1, config, trained)
    fit(config, trained)
    assert read_checkpoint(config)["trained_before"] is True


def test_fine_tuning_starts_from_what_was_learned(trained, configure, tmp_path):
    tuned = fit(configure(seed=1), trained, max_lr=0.001)
    fresh = fit(configure(seed=1, output_dir=tmp_path / "fresh"), max_lr=0.001)
    assert tuned["train_loss"][0] < fresh["train_loss"][0] - 0.1


# Figures of one run are not saved as those of another
@pytest.fixture
def two_runs(configure, tmp_path):
    """Two finished runs, each with its config and its model."""
    runs = []
    for seed in (0, 1):
        config = configure(seed=seed, output_dir=tmp_path / f"seed{seed}")
        model = make_small_model()
        fit(config, model)
        runs.append((config, model))
    return runs


def draw_figure(name, model, config):
    """Run one of the cells that draw what a model does."""
    _, test_loader = get_loaders(config)
    if name == "confusion matrix":
        utils.plot_confusion_matrix(model, test_loader, config)
    elif name == "prediction":
        utils.plot_prediction(model, Image.new("RGB", (32, 32)), config)
    elif name == "mistakes":
        utils.plot_misclassified(utils.get_misclassified(model, test_loader), config)
    else:
        mistakes = utils.get_misclassified(model, test_loader)
        utils.plot_gradcam(model, mistakes, config, target_layer=model[0])


FIGURES = ("confusion matrix", "prediction", "mistakes", "gradcam")


@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_of_a_run_are_not_replaced_by_those_of_another(two_runs, name, shown):
    (_, model), (other, _) = two_runs
    before = read_folder(other.output_dir)
    with pytest.raises(
        ValueError, match=r"not from the run in [^\n]*seed1 \(another seed\)[^\n]*output_dir"
    ):
        draw_figure(name, model, other)
    assert read_folder(other.output_dir) == before


@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_of_a_run_are_drawn_with_its_model(two_runs, configure, tmp_path, name, shown):
    for config, model in two_runs:
        draw_figure(name, model, config)
    config, model = two_runs[0]
    draw_figure(name, model, configure(seed=1, output_dir=tmp_path / "elsewhere"))
    loaded = make_small_model()
    fit(config, loaded)
    draw_figure(name, loaded, config)
    loaded.load_state_dict(model.state_dict())
    draw_figure(name, loaded, config)
    assert len(shown) == 5


def test_weights_of_a_run_may_be_loaded_into_the_model_of_another(two_runs, shown):
    (_, model), (other, _) = two_runs
    model.load_state_dict(torch.load(other.output_dir / "model.pt"))
    draw_figure("prediction", model, other)
    assert len(shown) == 1


def test_the_model_of_a_run_stays_its_own_if_the_next_run_never_began(
    two_runs, configure, shown, monkeypatch
):
    config, model = two_runs[0]
    monkeypatch.setattr(utils, "train", Mock(side_effect=RuntimeError("out of memory")))
    another = configure(seed=2, output_dir=config.output_dir / "next")
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(another, model)
    draw_figure("prediction", model, config)
    assert len(shown) == 1


def test_mistakes_that_are_left_of_another_run_are_told_as_such(two_runs):
    (earlier, old_model), (config, model) = two_runs
    _, test_loader = get_loaders(earlier)
    mistakes = utils.get_misclassified(old_model, test_loader)
    with pytest.raises(ValueError, match="get_misclassified again"):
        utils.plot_gradcam(model, mistakes, config, target_layer=model[0])


def test_loaders_may_be_those_of_an_earlier_run_with_the_same_images(two_runs):
    (earlier, _), (_, model) = two_runs
    _, test_loader = get_loaders(earlier)
    utils.get_misclassified(model, test_loader)


def test_another_seed_is_another_order_of_the_images(configure):
    losses = [fit(configure(seed=seed, resume=False))["train_loss"] for seed in (0, 1)]
    assert losses[0] != losses[1], "though the weights began alike"


# Weights that were loaded by hand
def make_loaded_model(batches):
    """Return a model with weights that have seen so many batches in training."""
    model = make_small_model()
    model[1].num_batches_tracked.fill_(batches)
    loaded = make_small_model()
    loaded.load_state_dict(model.state_dict())
    return loaded


@pytest.mark.parametrize(("batches", "expected"), [(1960, True), (11, True), (3, False)])
def test_weights_that_were_loaded_by_hand_count_as_trained(configure, capsys, batches, expected):
    config = configure()
    fit(config, make_loaded_model(batches))
    assert ("trained before" in capsys.readouterr().out) == expected
    assert read_checkpoint(config)["trained_before"] == expected
    utils.plot_prediction(make_loaded_model(batches), Image.new("RGB", (32, 32)), config)
    assert ("Is this model trained?" in capsys.readouterr().out) == (not expected)


# Code that has changed since it was imported
def test_code_that_has_changed_since_it_was_imported_is_told(
    configure, tmp_path, monkeypatch, capsys
):
    mine = ModuleType("models.mine")
    mine.__file__ = str(tmp_path / "mine.py")
    path = Path(mine.__file__)
    path.write_text("old")
    monkeypatch.setitem(sys.modules, "models.mine", mine)
    monkeypatch.setattr(utils, "IMPORTED", {})
    config = configure()
    told = r"mine\.py has changed[^.]*restart the kernel"
    assert "restart" not in capsys.readouterr().out
    path.write_text("new")
    fit(config)
    assert len(re.findall(told, capsys.readouterr().out)) == 1
    path.write_text("newer")
    configure()
    assert len(re.findall(told, capsys.readouterr().out)) == 1
    configure()
    path.write_text("newest")
    mine.__spec__ = ModuleSpec("models.mine", None)  # it was reloaded
    configure()
    path.unlink()
    configure()
    assert "restart" not in capsys.readouterr().out


# What a run is told of itself as it begins
def test_a_run_that_begins_tells_its_optimizer_and_its_peak(configure, capsys):
    config = configure(optimizer="adamw")
    stop_at_step(3, config)
    assert "Training with adamw: 6 steps, peak learning rate 0.05\n" in capsys.readouterr().out
    fit(config)
    assert "Training with" not in capsys.readouterr().out, "it tells what the run began with"


@pytest.mark.parametrize(("epochs", "expected"), [(39, True), (40, False)])
def test_few_steps_are_told(configure, capsys, epochs, expected):
    stop_at_step(1, configure(epochs=epochs))
    assert ("smaller batch_size" in capsys.readouterr().out) == expected


def get_own_loaders(config, scale_for_training=1.0, scale_for_testing=1.0, shift=0.0):
    """Return loaders of our images as torch's own collation gives them, scaled and shifted."""
    loaders = []
    for loader, scale in zip(
        get_loaders(config), (scale_for_training, scale_for_testing), strict=True
    ):
        batches = [loader.dataset.__getitems__([i]) for i in range(64)]
        images = torch.cat([images for images, _ in batches]) * scale + shift * (scale != 1)
        labels = torch.cat([labels for _, labels in batches])
        loaders.append(DataLoader(TensorDataset(images, labels), 32, shuffle=True))
    return loaders


ALIKE = "normalise in the same way"
OTHERWISE = "normalise otherwise"
SCALES = {
    "as config says": ({}, []),
    "both to half of it": ({"scale_for_training": 0.5, "scale_for_testing": 0.5}, [OTHERWISE]),
    "only for training": ({"scale_for_testing": 0.3232, "shift": 0.304}, [ALIKE, OTHERWISE]),
    "only for testing": ({"scale_for_training": 0.3232, "shift": 0.304}, [ALIKE]),
    "pixels up to 255": (
        {"scale_for_training": 82, "scale_for_testing": 82, "shift": 77},
        [OTHERWISE],
    ),
}


@pytest.mark.parametrize("case", SCALES)
def test_your_own_loaders_that_normalise_otherwise_are_told(configure, capsys, case):
    changes, expected = SCALES[case]
    config = configure(cutout_size=0)
    loaders = get_own_loaders(config, **changes)
    with interrupt_step(1), pytest.raises(KeyboardInterrupt):
        utils.fit_one_cycle(make_small_model(), *loaders, 0.05, config)
    told = capsys.readouterr().out
    assert [words for words in (ALIKE, OTHERWISE) if words in told] == expected


class AlwaysDropping(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5)


ODD = {
    "softmax": (nn.Softmax(1), "leave out the softmax"),
    "dropout": (AlwaysDropping(), "training=self.training"),
    "nothing": (nn.Dropout(0.5), None),
}


@pytest.mark.parametrize("case", ODD)
def test_a_network_that_answers_oddly_is_told(configure, capsys, case):
    layer, expected = ODD[case]
    fit(configure(), make_small_model().append(layer))
    told = capsys.readouterr().out
    assert [words for _, words in ODD.values() if words and words in told] == [expected] * bool(
        expected
    )


# Gallery and GradCAM of other mistakes
@pytest.fixture
def mistakes(model, loaders):
    return utils.get_misclassified(model, loaders[1])


def change_weights(model):
    """Let a model differ by one number."""
    with torch.no_grad():
        model[3].bias[0] += 0.001


def test_gradcam_refuses_the_mistakes_of_another_network(model, mistakes, config):
    other = make_small_model()
    change_weights(other)
    with pytest.raises(ValueError, match=r"another model.*get_misclassified"):
        utils.plot_gradcam(other, mistakes, config, other[0])


def test_gradcam_refuses_mistakes_that_the_network_made_before_it_was_trained(
    model, mistakes, loaders, config
):
    utils.fit_one_cycle(model, *loaders, 0.05, config)
    with pytest.raises(ValueError, match=r"trained since.*get_misclassified"):
        utils.plot_gradcam(model, mistakes, config, model[0])


def test_gallery_refuses_mistakes_that_the_network_made_before_it_was_trained(
    model, mistakes, loaders, config
):
    utils.fit_one_cycle(model, *loaders, 0.05, config)
    with pytest.raises(ValueError, match=r"trained since.*get_misclassified"):
        utils.plot_misclassified(mistakes, config)


def test_statistics_of_batchnorm_that_have_changed_count_as_training(model, mistakes, config):
    model[1].running_mean += 0.1
    with pytest.raises(ValueError, match="get_misclassified"):
        utils.plot_gradcam(model, mistakes, config, model[0])


def test_the_same_weights_in_another_model_will_do(model, mistakes, config, shown):
    twin = copy.deepcopy(model)
    utils.plot_gradcam(twin, mistakes, config, twin[0])
    utils.plot_misclassified(mistakes, config)
    assert len(shown) == 2


def test_mistakes_that_were_put_together_by_hand_will_do(model, mistakes, config, shown):
    by_hand = utils.Misclassified(*mistakes[:6])
    other = make_small_model()
    change_weights(other)
    utils.plot_gradcam(other, by_hand, config, other[0])
    utils.plot_misclassified(by_hand, config)
    assert len(shown) == 2


def test_mistakes_of_images_with_another_mean_are_refused(model, mistakes, config):
    other = replace(config, mean=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"mean was .* cell"):
        utils.plot_misclassified(mistakes, other)
    with pytest.raises(ValueError, match=r"mean was .* cell"):
        utils.plot_gradcam(model, mistakes, other, model[0])


def test_gradcam_without_a_layer_is_told_to_name_one(model, mistakes, config):
    with pytest.raises(ValueError, match=r"None.*layer3"):
        utils.plot_gradcam(model, mistakes, config, None)


@pytest.mark.parametrize("count", [0, -1])
def test_a_figure_of_no_image_is_refused(model, mistakes, loaders, config, count):
    with pytest.raises(ValueError, match="count"):
        utils.plot_gradcam(model, mistakes, config, model[0], count)
    with pytest.raises(ValueError, match="count"):
        utils.plot_misclassified(mistakes, config, count)
    with pytest.raises(ValueError, match="count"):
        utils.plot_samples(loaders[0], config, count)


def test_gradcam_inside_no_grad_draws_the_same(model, mistakes, config):
    utils.plot_gradcam(model, mistakes, config, model[0])
    path = config.output_dir / "gradcam.png"
    before = path.read_bytes()
    path.unlink()
    with torch.no_grad():
        utils.plot_gradcam(model, mistakes, config, model[0])
    assert path.read_bytes() == before


def test_gradcam_leaves_the_mistakes_as_they_were(model, mistakes, config):
    before = mistakes.images.clone()
    utils.plot_gradcam(model, mistakes, config, model[0])
    assert torch.equal(mistakes.images, before)
    assert not mistakes.images.requires_grad


# Two runs in one folder
@contextmanager
def meanwhile(action):
    """Do something once, as soon as the run in this context makes its first step."""
    waiting = [action]

    def act(*_):
        if waiting:
            waiting.pop()()

    with register_optimizer_step_pre_hook(act):
        yield


OTHER_RUNS = {"the same": {}, "another seed": {"seed": 1}, "a shorter one": {"epochs": 1}}


@pytest.mark.parametrize("case", OTHER_RUNS)
@pytest.mark.parametrize("resume", [True, False])
def test_the_second_run_to_save_is_stopped_and_the_files_of_the_first_are_kept(
    configure, case, resume
):
    config = configure(resume=resume)
    other = configure(**OTHER_RUNS[case])
    kept = {}

    def run_other():
        fit(other)
        kept.update(read_folder(other.output_dir))

    with meanwhile(run_other), pytest.raises(RuntimeError, match=r"[Aa]nother run.*output_dir"):
        fit(config)
    assert kept.keys() >= {*FILES}
    assert read_folder(config.output_dir) == kept


def test_of_two_notebooks_that_go_on_with_one_run_only_one_does(configure):
    config = configure()
    stop_at_step(3, config)
    with meanwhile(lambda: fit(configure())), pytest.raises(RuntimeError, match="output_dir"):
        fit(configure())
    assert len(utils.read_history(config)["test_loss"]) == 3
    assert (config.output_dir / "model.pt").exists()


def fail_to_replace(monkeypatch, name, number, error):
    """Let something go wrong when the file of this name is replaced for the number-th time."""
    calls = []
    replace_file = os.replace

    def fail(source, target):
        if Path(target).name == name:
            calls.append(target)
            if len(calls) == number:
                raise error
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", fail)


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("name", ["checkpoint.pt", "history.json"])
def test_a_run_that_is_killed_while_it_saves_goes_on_without_a_false_alarm(
    configure, monkeypatch, name, epoch
):
    config = configure()
    with monkeypatch.context() as patch:
        fail_to_replace(patch, name, epoch, SystemExit())
        with pytest.raises(SystemExit):
            fit(config)
    fit(configure())
    whole = configure(output_dir=config.output_dir / "whole")
    fit(whole)
    assert read_weights(config) == read_weights(whole)
    assert utils.read_history(config)["lr"] == utils.read_history(whole)["lr"]


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("name", ["checkpoint.pt", "history.json"])
def test_a_disk_that_is_full_for_a_while_gives_no_false_alarm(configure, monkeypatch, name, epoch):
    config = configure()
    fail_to_replace(monkeypatch, name, epoch, OSError(28, "No space left on device"))
    with pytest.warns(UserWarning, match="could not be written"):
        fit(config)
    assert len(fit(configure())["test_loss"]) == 3
    assert len(read_checkpoint(config)["history"]["test_loss"]) == 3
    assert len(utils.read_history(config)["test_loss"]) == 3


def test_a_folder_that_is_away_for_a_while_gives_no_false_alarm(configure, monkeypatch):
    config = configure()
    save = utils.save_checkpoint
    saves = []

    def save_or_fail(*arguments):
        saves.append(len(saves))
        with monkeypatch.context() as patch:
            if len(saves) == 2:
                patch.setattr(utils, "read_run", lambda folder: None)
                patch.setattr(utils, "replace_file", lambda path, content: False)
            save(*arguments)

    monkeypatch.setattr(utils, "save_checkpoint", save_or_fail)
    fit(config)
    assert len(saves) == 3
    assert len(read_checkpoint(config)["history"]["test_loss"]) == 3


def test_resume_false_renames_all_three_files_every_time(configure):
    config = configure(resume=False)
    contents = []
    for seed in range(3):
        fit(replace(config, seed=seed))
        contents.append({name: (config.output_dir / name).read_bytes() for name in FILES})
    for n, content in enumerate(contents[:2], 1):
        for name in FILES:
            path = config.output_dir / name
            previous = path.with_stem(f"{path.stem}-previous-{n}")
            assert previous.read_bytes() == content[name]
    assert len(read_folder(config.output_dir)) == 9


def test_a_run_that_lost_its_checkpoint_is_renamed_and_not_written_over(configure):
    config = configure()
    fit(config)
    content = {name: (config.output_dir / name).read_bytes() for name in FILES[1:]}
    (config.output_dir / "checkpoint.pt").unlink()
    fit(config)
    for name in FILES[1:]:
        path = config.output_dir / name
        assert path.with_stem(f"{path.stem}-previous-1").read_bytes() == content[name]
    assert len(read_checkpoint(config)["history"]["test_loss"]) == 3


def test_resume_false_may_take_the_folder_of_another_run(configure):
    config = configure()
    fit(config)
    fit(configure(seed=1, resume=False))
    old = json.loads((config.output_dir / "history-previous-1.json").read_text())
    assert old["run"]["seed"] == 0
    assert read_checkpoint(config)["run"]["seed"] == 1


# The peak of a run that goes on
def search(config):
    """Run the cells from the loaders to the LR finder."""
    train_loader, _ = get_loaders(config)
    return utils.find_lr(make_small_model(), train_loader, config)


@pytest.mark.parametrize("step", [3, 5])
def test_find_lr_gives_the_peak_of_the_run_that_goes_on_without_a_step(configure, steps, step):
    stop_at_step(step, configure())
    made = len(steps)
    assert search(configure()) == 0.05
    assert len(steps) == made


def test_find_lr_gives_the_peak_of_a_finished_run_without_a_step(configure, steps):
    fit(configure())
    made = len(steps)
    assert search(configure()) == 0.05
    assert len(steps) == made


def test_find_lr_gives_the_peak_even_if_only_the_checkpoint_is_left(configure, steps):
    config = configure()
    stop_at_step(3, config)
    (config.output_dir / "history.json").unlink()
    made = len(steps)
    assert search(configure()) == 0.05
    assert len(steps) == made


def test_find_lr_searches_if_the_run_is_started_over(configure, steps):
    stop_at_step(3, configure())
    made = len(steps)
    config = configure(resume=False, lr_finder_steps=100)
    assert search(config) != 0.05
    assert len(steps) > made


def test_find_lr_refuses_the_folder_of_another_network(configure):
    config = configure()
    fit(config)
    train_loader, _ = get_loaders(config)
    with pytest.raises(ValueError, match=r"another network.*output_dir.*resume=False"):
        utils.find_lr(make_small_model().append(nn.ReLU()), train_loader, config)


def test_another_peak_is_told_and_not_used(configure, capsys):
    stop_at_step(3, configure())
    capsys.readouterr()
    history = fit(configure(), max_lr=0.07)
    printed = capsys.readouterr().out
    assert re.search(r"0\.05\b.*0\.07\b.*not used", printed)
    assert max(history["lr"]) == pytest.approx(0.05, rel=0.2)
    assert max(history["lr"]) <= 0.05


def test_the_same_peak_is_not_told(configure, capsys):
    stop_at_step(3, configure())
    capsys.readouterr()
    fit(configure(), max_lr=0.05)
    assert "not used" not in capsys.readouterr().out


# The log after a disconnect
def read_log(printed):
    """Return the lines of the log, each once: epochs, and the numbers of training and of test."""
    pattern = r"^Epoch \d+$|Train: Loss=[\d.]+, Accuracy=[\d.]+|^Test set: .*$"
    lines = re.findall(pattern, printed.replace("\r", "\n"), flags=re.M)
    return [line for line, _ in itertools.groupby(lines)]


@pytest.fixture
def whole_log(configure, tmp_path, capsys):
    """The log of a run that nothing interrupted."""
    fit(configure(output_dir=tmp_path / "whole"))
    log = read_log(capsys.readouterr().out)
    assert [line for line in log if "Epoch" in line] == ["Epoch 1", "Epoch 2", "Epoch 3"]
    assert len(log) == 9
    return log


@pytest.mark.parametrize("step", [1, 3, 6])
def test_after_a_disconnect_the_whole_log_is_printed(configure, whole_log, capsys, step):
    stop_at_step(step, configure())
    capsys.readouterr()
    fit(configure())
    assert read_log(capsys.readouterr().out) == whole_log


def test_a_finished_run_prints_its_whole_log_again(configure, whole_log, capsys):
    fit(configure())
    capsys.readouterr()
    fit(configure())
    assert read_log(capsys.readouterr().out) == whole_log


def make_list(loader):
    return list(loader)


def make_part(loader):
    """Return a loader of the first 70 images of another."""
    return DataLoader(Subset(loader.dataset, range(70)), 35, collate_fn=tuple)


def make_sample(loader):
    """Return a loader that takes 60 of the images of another."""
    return DataLoader(loader.dataset, 30, sampler=range(60), collate_fn=tuple)


@pytest.mark.parametrize("change", [make_list, make_part, make_sample])
def test_the_log_is_the_same_whatever_the_loader_of_test_images(configure, capsys, change):
    logs = []
    for _ in range(2):
        config = configure()
        train_loader, test_loader = get_loaders(config)
        capsys.readouterr()
        utils.fit_one_cycle(make_small_model(), train_loader, change(test_loader), 0.05, config)
        logs.append(read_log(capsys.readouterr().out))
    assert logs[0] == logs[1]


@pytest.mark.parametrize(("step", "epochs"), [(1, 0), (3, 1), (6, 2)])
def test_after_ctrl_c_a_line_tells_how_many_epochs_are_kept(configure, capsys, step, epochs):
    stop_at_step(step, configure())
    lines = [line for line in capsys.readouterr().out.splitlines() if "kept" in line]
    assert len(lines) == 1
    assert f"{epochs} of 3 epochs" in lines[0]
    assert "go on" in lines[0]


def test_after_ctrl_c_with_resume_false_nobody_is_told_that_the_same_cell_goes_on(
    configure, capsys
):
    config = configure(resume=False)
    model = make_small_model()
    stop_at_step(3, config, model)
    told = capsys.readouterr().out
    assert "Run this cell again" not in told
    assert "Set resume=True, and run both cells again to go on." in told
    fit(configure(resume=True), model)
    assert "1 of 3 epochs are done" in capsys.readouterr().out


def test_after_ctrl_c_the_history_so_far_can_be_plotted(configure, shown):
    config = configure()
    stop_at_step(5, config)
    history = utils.read_history(config)
    assert [len(history[name]) for name in CURVES] == [2, 2, 2, 2, 2, 4]
    utils.plot_history(history, config)
    assert "epoch 2" in shown[0][1]


CHANGED = {"seed": 1, "epochs": 9, "cutout_free_fraction": 0}


@pytest.mark.parametrize("name", CHANGED)
def test_the_history_of_a_run_with_other_settings_is_not_drawn(configure, tmp_path, name):
    config = configure()
    history = fit(config)
    other = configure(**{name: CHANGED[name]}, output_dir=tmp_path / "another")
    for history_of_run in (history, utils.read_history(config)):
        with pytest.raises(ValueError, match=rf"^[^\n]*another {name}: run the cell"):
            utils.plot_history(history_of_run, other)
    assert not other.output_dir.exists()
    utils.plot_history(history, configure())
    utils.plot_history(dict(history), other)  # of a loop that we know nothing of


def load_by_hand():
    """Return 64 digits in a loader of somebody's own: as many steps as with ours."""
    (images, labels), _ = read_digits()
    images = images[:64].permute(0, 3, 1, 2) / 255
    return DataLoader(TensorDataset(images, torch.as_tensor(labels[:64])), 32, shuffle=True)


def test_images_that_pass_other_transforms_make_another_run(configure, shown):
    config = configure()
    fit(config)
    own = load_by_hand()
    _, test_loader = get_loaders(config)
    with pytest.raises(ValueError, match=r"another transforms \(transforms ours, now others\)"):
        utils.fit_one_cycle(make_small_model(), own, test_loader, 0.05, configure())
    other = configure(output_dir=config.output_dir / "own", cutout_free_fraction=0.5)
    history = utils.fit_one_cycle(make_small_model(), own, test_loader, 0.05, other)
    for lists in (history, utils.read_history(other)):
        utils.plot_history(lists, other)
        labels = [line.get_label() for line in shown[-1][0].axes[0].lines]
        assert labels == ["train", "test"], "not augmented by us, and without our CutOut"


def test_a_history_is_not_read_as_that_of_other_settings(configure):
    fit(configure())
    other = configure(seed=1, resume=False)
    with pytest.raises(ValueError, match=r"another seed: give get_config"):
        utils.read_history(other)


def test_a_run_that_moves_names_each_machine_once_in_a_row(configure, monkeypatch):
    for machine, commit in (("A", None), ("B", "1234567"), ("B", "1234567")):
        monkeypatch.setattr(utils, "describe_machine", lambda config, name=machine: name)
        monkeypatch.setattr(utils, "get_commit", lambda commit=commit: commit)
        stop_at_step(3, configure(epochs=4))
    record = utils.read_run(configure(epochs=4).output_dir)
    assert len(record["history"]["seconds"]) == 3
    assert record["machine"] == "A, then B"
    assert record["commit"] == "None, then 1234567"


def test_a_history_is_a_plain_dict_to_json(configure):
    history = fit(configure())
    assert json.loads(json.dumps(history)) == history


def test_without_a_run_there_is_no_history(configure):
    with pytest.raises(ValueError, match="no run"):
        utils.read_history(configure())


# A checkpoint that is not whole
KEYS = (
    "model",
    "optimizer",
    "scheduler",
    "scaler",
    "random_states",
    "run",
    "max_lr",
    "trained_before",
    "history",
    "stamp",
    "machine",
    "commit",
)


@pytest.fixture
def broken(configure):
    """Return a function that changes a saved run, and expects it to be refused whole."""
    config = configure()
    stop_at_step(5, config)
    path = config.output_dir / "checkpoint.pt"

    def expect_refusal(change):
        state = read_checkpoint(config)
        change(state)
        torch.save(state, path)
        content = path.read_bytes()
        model = make_small_model()
        change_weights(model)
        before = copy_weights(model)
        with pytest.raises(ValueError, match=r"damaged.*output_dir.*resume=False"):
            fit(configure(), model)
        assert copy_weights(model) == before
        assert path.read_bytes() == content

    return expect_refusal


def test_a_checkpoint_has_nothing_else_to_lack(configure):
    config = configure()
    stop_at_step(3, config)
    assert {*read_checkpoint(config)} == {*KEYS, "probe"}


@pytest.mark.parametrize("key", KEYS)
def test_a_checkpoint_that_lacks_something_is_refused_whole(broken, key):
    broken(lambda state: state.pop(key))


@pytest.mark.parametrize("key", ["model", "optimizer", "scheduler", "random_states"])
def test_a_checkpoint_with_an_empty_part_is_refused_whole(broken, key):
    broken(lambda state: state[key].clear())


@pytest.mark.parametrize(
    "key", ["model", "optimizer", "scheduler", "random_states", "history", "max_lr", "run"]
)
def test_a_checkpoint_with_nothing_in_place_of_a_part_is_refused_whole(broken, key):
    broken(lambda state: state.update({key: None}))


@pytest.mark.parametrize("name", CURVES)
def test_a_checkpoint_with_a_truncated_list_is_refused_whole(broken, name):
    broken(lambda state: state["history"][name].pop())


@pytest.mark.parametrize("name", CURVES)
def test_a_checkpoint_without_one_of_the_lists_is_refused_whole(broken, name):
    broken(lambda state: state["history"].pop(name))


def test_a_checkpoint_whose_lists_all_lack_an_epoch_is_refused_whole(broken):
    def cut(state):
        for values in state["history"].values():
            del values[len(values) // 2 :]

    broken(cut)


def test_a_checkpoint_with_the_weights_of_another_model_is_refused_whole(broken):
    other = nn.Sequential(*make_small_model()[:5], nn.Linear(256, 11))
    broken(lambda state: state.update(model=other.state_dict()))


def test_a_checkpoint_that_lacks_one_of_the_weights_is_refused_whole(broken):
    broken(lambda state: state["model"].pop("5.bias"))


def test_why_a_checkpoint_cannot_be_loaded_is_told(configure, monkeypatch):
    config = configure()
    stop_at_step(3, config)
    full = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory.\nTry again."))
    monkeypatch.setattr(utils.MuonSGD, "load_state_dict", full)
    with pytest.raises(ValueError, match=r"^[^\n]*CUDA out of memory[^\n]*$"):
        fit(configure())


# What makes a network the same
class Counter(nn.Module):
    """A layer with a state of its own, which is no tensor."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += self.training
        return images

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


class Apply(nn.Module):
    """A layer that shows its function, and so an address, when it is printed."""

    def __init__(self):
        super().__init__()
        self.function = lambda images: images

    def forward(self, images):
        return self.function(images)

    def extra_repr(self):
        return f"{self.function}"


@pytest.mark.parametrize("layer", [Counter, Apply])
def test_a_network_with_such_a_layer_goes_on_in_a_new_process(configure, layer):
    config = configure()
    stop_at_step(3, config, make_small_model().append(layer()))
    model = make_small_model().append(layer())
    assert len(fit(configure(), model)["test_loss"]) == 3


def test_a_state_that_is_no_tensor_goes_on_as_well(configure):
    stop_at_step(3, configure(), make_small_model().append(Counter()))
    model = make_small_model().append(Counter())
    fit(configure(), model)
    assert model[-1].calls == 6


CHANGES = {
    "forward of a layer": lambda model: setattr(model[2], "forward", torch.sigmoid),
    "a layer's padding": lambda model: setattr(model[0], "padding_mode", "circular"),
    "a constant": lambda model: setattr(model[1], "eps", 1.0),
}


@pytest.mark.parametrize("step", [3, 7])
@pytest.mark.parametrize("kind", CHANGES)
def test_a_network_that_answers_otherwise_is_another_one(configure, kind, step):
    config = configure(epochs=4)
    stop_at_step(step, config)
    before = read_folder(config.output_dir)
    model = make_small_model()
    CHANGES[kind](model)
    change_weights(model)
    weights = copy_weights(model)
    with pytest.raises(ValueError, match=r"^[^\n]*another network[^\n]*output_dir.*resume=False"):
        fit(configure(epochs=4), model)
    assert copy_weights(model) == weights
    assert read_folder(config.output_dir) == before


class Noise(nn.Module):
    """A layer that forgets that dropout is for training only."""

    def forward(self, images):
        return nn.functional.dropout(images, 0.5)


def test_a_network_that_answers_by_chance_goes_on(configure):
    config = configure()
    stop_at_step(3, config, make_small_model().insert(2, Noise()))
    state = read_checkpoint(config)
    state["random_states"]["cpu"] = torch.Generator().manual_seed(7).get_state()
    torch.save(state, config.output_dir / "checkpoint.pt")
    assert len(fit(configure(), make_small_model().insert(2, Noise()))["test_loss"]) == 3


def test_what_the_network_is_asked_changes_nothing(configure, monkeypatch):
    weights = []
    for name in ("asked", "not asked"):
        model = make_small_model().insert(2, nn.Dropout(0.1)).append(Counter())
        fit(configure(output_dir=configure().output_dir / name), model)
        assert model[-1].calls == 6
        weights.append(copy_weights(model.eval()[:-1]))
        monkeypatch.setattr(utils, "ask", lambda *_: None)
    assert weights[0] == weights[1]


def test_a_network_that_cannot_be_asked_goes_on(configure, monkeypatch):
    monkeypatch.setattr(utils, "forward", fail_for_two(utils.forward))
    stop_at_step(3, configure())
    assert read_checkpoint(configure())["probe"]["answers"] is None
    assert len(fit(configure())["test_loss"]) == 3


def fail_for_two(forward):
    """Return a forward that fails for as few images as the network is asked about."""

    def fail(model, images, precision):
        if len(images) == 2:
            raise RuntimeError("Too few")
        return forward(model, images, precision)

    return fail


def test_a_run_of_older_code_goes_on(configure):
    config = configure()
    stop_at_step(5, config)
    state = read_checkpoint(config)
    del state["probe"], state["run"]["transforms"]
    torch.save(state, config.output_dir / "checkpoint.pt")
    (config.output_dir / "history.json").unlink()
    assert len(fit(configure())["test_loss"]) == 3


@pytest.mark.parametrize("layer", [Counter, Apply])
def test_the_lr_finder_and_the_figures_take_such_a_layer(configure, layer, shown):
    config = configure(lr_finder_steps=100)
    train_loader, test_loader = get_loaders(config)
    model = make_small_model().append(layer())
    assert utils.find_lr(model, train_loader, config) > 0
    found = utils.get_misclassified(model, test_loader)
    utils.plot_gradcam(model, found, config, model[0])
    assert len(shown) == 2


# Fonts
OWN_FONTS = {
    "font.family": ["monospace"],
    "font.sans-serif": ["A font with many letters"],
    "axes.unicode_minus": False,
}
ODD_STYLE = {"text.color": "red", "font.size": 25, "axes.grid": True, "image.origin": "lower"}


def test_figures_keep_the_fonts_that_somebody_has_set_and_nothing_else(config, monkeypatch):
    with utils.plot_style():
        usual = dict(plt.rcParams)
    with plt.rc_context({**OWN_FONTS, **ODD_STYLE}), utils.plot_style():
        own = dict(plt.rcParams)
    changed = {name: own[name] for name in own if own[name] != usual[name]}
    assert changed == OWN_FONTS


def test_a_figure_is_drawn_in_the_font_that_somebody_has_set(config, shown):
    history = {name: [1.0] for name in CURVES}
    with plt.rc_context({"font.family": "monospace"}):
        utils.plot_history(history, config)
    figure, _ = shown[0]
    assert figure.axes[0].title.get_fontfamily() == ["monospace"]


def test_the_style_is_gone_after_a_figure(config):
    before = dict(plt.rcParams)
    utils.plot_history({name: [1.0] for name in CURVES}, config)
    assert dict(plt.rcParams) == before


# Progress bars, and a run that goes on, in a real kernel
SAVED_BAR = """
with utils.progress_bar(total=3, desc="first") as bar:
    for _ in range(3):
        bar.update()
        bar.refresh()
"""
TWO_BARS = """
for _ in utils.progress_bar(range(2), desc="second"):
    pass
with utils.progress_bar(total=4, desc="third") as bar:
    bar.update(4)
    bar.set_description("last")
"""
STOPPED_BAR = """
with utils.progress_bar(total=4, desc="stopped") as bar:
    bar.update(1)
    raise KeyboardInterrupt
"""
START = """
import torch, utils
from helpers import make_small_model
from test_walks import get_loaders
config = utils.get_config("quick", device="cpu", output_dir={folder!r}, **{run})
loaders = get_loaders(config)
model = make_small_model()
"""
FIND = "print(utils.find_lr(model, loaders[0], config))"
FIT = "history = utils.fit_one_cycle(model, *loaders, 0.05, config)"


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Run a notebook where a run of two epochs lies; return its code cells by their source."""
    folder = tmp_path_factory.mktemp("kernel")
    own = {"device": "cpu", "precision": "float32", "output_dir": folder}
    config = utils.get_config("quick", **RUN, **own)
    stop_at_step(5, config)
    utils.plot_history(utils.read_history(config), config)
    (folder / "history.png").rename(folder / "lr_finder.png")  # any picture will do

    start = START.format(folder=str(folder), run={**RUN, "precision": "float32"})
    sources = [start, SAVED_BAR, TWO_BARS, STOPPED_BAR, FIND, FIT]
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook.cells[3].metadata["tags"] = ["raises-exception"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=120, resources=resources).execute()
    return dict(zip(sources, notebook.cells, strict=True))


def list_texts(cell):
    """Return the texts that a cell displays, and that are no output of print."""
    shown = [output for output in cell.outputs if output.output_type == "display_data"]
    assert all({*output.data} <= {"text/plain", "image/png"} for output in shown)
    return [output.data["text/plain"] for output in shown if "image/png" not in output.data]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (SAVED_BAR, [("first", "3/3")]),
        (TWO_BARS, [("second", "2/2"), ("last", "4/4")]),
        (STOPPED_BAR, [("stopped", "1/4")]),
    ],
    ids=["one bar", "two bars", "a bar that was stopped"],
)
def test_a_saved_notebook_holds_the_last_state_of_each_bar_as_one_text(cells, source, words):
    texts = list_texts(cells[source])
    assert len(texts) == len(words)
    for text, expected in zip(texts, words, strict=True):
        assert all(word in text for word in expected), text
        assert "\r" not in text
        assert "\n" not in text.strip()
    assert not [output for output in cells[source].outputs if output.output_type == "stream"]


def test_a_saved_training_cell_holds_a_bar_for_each_epoch_that_was_trained(cells):
    (text,) = list_texts(cells[FIT])
    assert re.search(r"Train: Loss=[\d.]+, Accuracy=[\d.]+.*2/2", text)
    printed = [output for output in cells[FIT].outputs if output.output_type == "stream"]
    assert {output.name for output in printed} == {"stdout"}
    assert "\r" not in "".join(output.text for output in printed)


def test_the_log_in_a_notebook_is_whole_as_well(cells):
    texts = [output.get("text", "") for output in cells[FIT].outputs]
    texts += list_texts(cells[FIT])
    log = read_log("\n".join(texts))
    assert len([line for line in log if line.startswith("Train")]) == 3
    assert len([line for line in log if line.startswith("Test")]) == 3


def test_in_a_new_process_find_lr_gives_the_peak_of_the_run_and_shows_its_figure(cells):
    outputs = cells[FIND].outputs
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert printed.splitlines()[-1] == "0.05"
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1
    assert not list_texts(cells[FIND]), "there is no bar, since nothing was searched"


def test_in_a_terminal_bars_are_plain_text_on_stdout(capsys):
    for _ in utils.progress_bar(range(3), desc="first"):
        pass
    printed = capsys.readouterr()
    assert "first: 100%" in printed.out
    assert "3/3" in printed.out
    assert printed.err == ""
