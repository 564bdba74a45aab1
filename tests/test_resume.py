"""Disconnects: whenever the process dies, the next run goes on and ends where it would have."""

import json
import multiprocessing
import os
import pickle
import random
import signal
import time
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import tqdm
from torch import nn

import utils
from conftest import interrupt_step, make_small_model

RUN = {"epochs": 3, "batch_size": 32, "train_images": 64}
KILLED = {"device": "cpu", **RUN, "epochs": 100}


def train_run(output_dir, ready):
    """Train in a process of its own: the same run, however often it is started."""
    torch.set_num_threads(1)
    config = utils.get_config("quick", output_dir=output_dir, **KILLED)
    loaders = utils.get_dataloaders(config)
    ready.set()
    utils.fit_one_cycle(make_small_model(), *loaders, 0.05, config)


def start(output_dir):
    """Start the run in a new process, and return it as soon as it is about to train."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["utils"])
    process = context.Process(target=train_run, args=(output_dir, ready := context.Event()))
    process.start()
    assert ready.wait(timeout=120)
    return process


def load(folder):
    """Return the weights and the history that a run has saved, as it can be compared."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    weights = {name: value.tolist() for name, value in state["model"].items()}
    return weights, {name: v for name, v in state["history"].items() if name != "seconds"}


def test_twenty_five_kills_at_random_moments_lose_nothing(tmp_path):
    whole, begin = start(tmp_path / "whole"), time.perf_counter()
    whole.join()
    seconds = time.perf_counter() - begin
    moments, done, folder = random.Random(0), [], tmp_path / "killed"
    for _ in range(25):
        process = start(folder)
        time.sleep(moments.uniform(0, seconds / 15))  # on average, 25 / 30 of a run in all
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        if (folder / "checkpoint.pt").exists():
            done.append(len(load(folder)[1]["test_loss"]))
    assert done == sorted(done), "an epoch once finished stays so"
    assert len(set(done)) > 8, "the kills fell into different epochs"
    start(folder).join()
    assert load(folder) == load(tmp_path / "whole")
    assert len(load(folder)[1]["test_loss"]) == 100


@pytest.fixture
def fit(make_config):
    """Return a function that trains the small model for 3 epochs; settings change the run."""

    def fit(max_lr=0.05, model=None, **changes):
        config = make_config(**{**RUN, **changes})
        model = model or make_small_model()
        loaders = utils.get_dataloaders(config)
        return utils.fit_one_cycle(model, *loaders, max_lr, config), model.state_dict()

    return fit


@pytest.fixture
def folder(fit, tmp_path):
    """The folder of a run that was interrupted in its third epoch."""
    with pytest.raises(KeyboardInterrupt), interrupt_step(6):
        fit()
    return tmp_path / "outputs"


PLACES = {"test": (utils, "test"), "save": (torch, "save"), "replace": (os, "replace")}


@pytest.mark.parametrize("place", [1, 4, 6, *PLACES])
def test_ctrl_c_is_ctrl_c_and_the_next_call_ends_the_same(
    fit, make_config, monkeypatch, tmp_path, capsys, steps, place
):
    with monkeypatch.context() as patch:
        if place in PLACES:
            patch.setattr(*PLACES[place], Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt), interrupt_step(place):
            fit()
    assert not list(tqdm.tqdm._instances), "the bars are closed"
    config, model = make_config(**RUN), make_small_model()
    train_loader, _ = utils.get_dataloaders(config)
    torch.manual_seed(99)  # what happens in between does not count
    utils.plot_samples(train_loader, config)
    utils.find_lr(model, train_loader, config)
    done = {4: 1, 6: 2}.get(place, 0)
    history, weights = fit(0.06 if done else 0.05, model)  # a finder may answer a bit differently
    assert (f"{done} of 3 epochs are done" in capsys.readouterr().out) == (done > 0)
    fit(output_dir=tmp_path / "whole")
    assert load(tmp_path / "outputs") == load(tmp_path / "whole")
    steps.clear()
    again, loaded = fit()  # a finished run is loaded, not trained again
    assert (again, steps) == (history, [])
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert json.loads((tmp_path / "outputs" / "history.json").read_text()) == history


def test_resume_false_trains_afresh_and_keeps_every_checkpoint(folder, fit):
    contents = []
    for _ in range(3):
        contents.append((folder / "checkpoint.pt").read_bytes())
        assert len(fit(resume=False)[0]["test_loss"]) == 3
    kept = [(folder / f"checkpoint-previous-{n}.pt").read_bytes() for n in (1, 2, 3)]
    assert kept == contents


@pytest.mark.parametrize("enabled", [False, True])
def test_checkpoint_of_another_device_goes_on(folder, fit, monkeypatch, enabled):
    """With the random state of a GPU that is not there, with or without a loss scaler's state."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["random_states"].append(torch.zeros(16, dtype=torch.uint8))
    torch.save(state, folder / "checkpoint.pt")
    scaler = torch.amp.GradScaler("cpu", init_scale=512, enabled=enabled)
    monkeypatch.setattr(utils, "get_scaler", lambda _: scaler)
    assert len(fit()[0]["test_loss"]) == 3


def assert_refused(folder, words, call):
    """Check for an error of one sentence, which leaves the checkpoint as it was."""
    before = (folder / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=rf"{words}.*another output_dir.*resume=False") as caught:
        call()
    assert "\n" not in str(caught.value)
    assert (folder / "checkpoint.pt").read_bytes() == before


OTHERS = {"epochs": 4, "seed": 1, "batch_size": 16, "label_smoothing": 0.0, "train_images": 63}
OTHERS |= {"optimizer": "sgd", "crop_padding": 2, "std": (1, 1, 1)}


def test_another_configuration_or_network_is_refused(folder, fit):
    for name, value in OTHERS.items():
        assert_refused(folder, rf"another {name}\b", partial(fit, **{name: value}))
    other = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    assert_refused(folder, "another network", partial(fit, model=other))
    twins = [make_small_model() for _ in range(2)]
    for model, shape in zip(twins, (1, 3), strict=True):  # both print the same
        model.register_parameter("scale", nn.Parameter(torch.ones(shape)))
    fit(model=twins[0], resume=False)
    assert_refused(folder, "another network", partial(fit, model=twins[1]))


def test_another_number_of_steps_is_refused(make_config, make_loader):
    config = make_config(epochs=3)

    def fit(count):
        loader = make_loader(torch.zeros(count, 3, 32, 32), torch.arange(count) % 10, 32)
        return utils.fit_one_cycle(make_small_model(), loader, loader, 0.05, config)

    with pytest.raises(KeyboardInterrupt), interrupt_step(5):
        fit(96)
    for count in (64, 192):
        assert_refused(config.output_dir, "another number of steps", partial(fit, count))
    assert len(fit(96)["lr"]) == 9


def test_numbers_from_numpy_are_loaded_again(fit):
    pixels = np.array([[0.1, 0.2, 0.3], [0.4, 0.6, 0.8]])
    settings = {"epochs": np.int64(1), "cutout_size": np.uint8(4), "weight_decay": np.float64(0.5)}
    settings |= {"mean": pixels.mean(0), "std": tuple(pixels.std(0)), "resume": np.bool_(True)}
    settings |= {"classes": np.array(list("0123456789")), "label_smoothing": np.float32(0.5)}
    history, _ = fit(np.float64(0.01), **settings)
    assert fit(np.float64(0.01), **settings)[0] == history


class Malice:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


DAMAGED = [b"", b"text", pickle.dumps(Malice()), pickle.dumps({"settings": 1}), None]


@pytest.mark.parametrize("content", DAMAGED, ids=["empty", "text", "malicious", "pickle", "cut"])
def test_damaged_checkpoint_is_refused_and_runs_nothing(
    folder, fit, content, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    path = folder / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    assert_refused(folder, r"checkpoint\.pt is damaged", fit)
    assert not (tmp_path / "hacked").exists()


def test_full_disk_leaves_the_old_checkpoint_whole(folder, fit, monkeypatch):
    before = (folder / "checkpoint.pt").read_bytes()
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="could not be written .*No space left"):
        assert len(fit()[0]["test_loss"]) == 3, "training goes on without"
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert {file.name for file in folder.iterdir()} == {"checkpoint.pt", "history.json"}


def test_two_runs_in_one_folder_do_not_share_a_temporary_file(tmp_path):
    path, context = tmp_path / "history.json", multiprocessing.get_context("fork")

    def write_meanwhile(file):
        file.write(b"one ")
        file.flush()
        arguments = (path, lambda file: file.write(b"the other"))
        other = context.Process(target=utils.replace_file, args=arguments)
        other.start()
        other.join()
        assert path.read_bytes() == b"the other"
        file.write(b"whole")

    utils.replace_file(path, write_meanwhile)
    assert path.read_bytes() == b"one whole"
    assert list(tmp_path.iterdir()) == [path]
