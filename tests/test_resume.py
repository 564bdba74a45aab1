"""Disconnects: whenever the process dies, the next run goes on and ends where it would have."""

import json
import multiprocessing
import os
import pickle
import random
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
import tqdm
from torch import nn

import utils
from conftest import interrupt_step, make_small_model

EPOCHS = 100
RUN = {"epochs": 3, "batch_size": 32, "train_images": 64}


def train_run(output_dir, ready):
    """Train in a process of its own: the same run, however often it is started."""
    torch.set_num_threads(1)
    config = utils.get_config(
        "quick", device="cpu", output_dir=output_dir, **{**RUN, "epochs": EPOCHS}
    )
    loaders = utils.get_dataloaders(config)
    loaders[1].dataset.labels = loaders[1].dataset.labels[:40]  # to test fast
    ready.set()
    utils.fit_one_cycle(make_small_model(), *loaders, 0.05, config)


def start(output_dir):
    """Start the run in a new process, and return it as soon as it is about to train."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["utils"])
    ready = context.Event()
    process = context.Process(target=train_run, args=(output_dir, ready))
    process.start()
    assert ready.wait(timeout=120)
    return process


def load(output_dir):
    return torch.load(output_dir / "checkpoint.pt", weights_only=True)


def without_times(history):
    return {name: values for name, values in history.items() if name != "seconds"}


def assert_same_state(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_twenty_five_kills_at_random_moments_lose_nothing(tmp_path):
    whole = start(tmp_path / "whole")
    begin = time.perf_counter()
    whole.join()
    seconds = time.perf_counter() - begin
    assert whole.exitcode == 0
    output_dir = tmp_path / "killed"
    moments, done = random.Random(0), []
    for _ in range(25):
        process = start(output_dir)
        time.sleep(moments.uniform(0, seconds / 15))  # on average, 25 / 30 of a run in all
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        if (output_dir / "checkpoint.pt").exists():
            done.append(len(load(output_dir)["history"]["test_loss"]))
    assert done == sorted(done), "an epoch once finished stays so"
    assert len(set(done)) > 8, "the kills fell into different epochs"
    final = start(output_dir)
    final.join()
    assert final.exitcode == 0
    expected, resumed = load(tmp_path / "whole"), load(output_dir)
    assert_same_state(expected["model"], resumed["model"])
    assert without_times(expected["history"]) == without_times(resumed["history"])
    assert len(resumed["history"]["seconds"]) == EPOCHS


@pytest.fixture
def fit(make_config):
    """Return a function that trains the small model for 3 epochs; settings change the run."""

    def fit(max_lr=0.05, model=None, **changes):
        config = make_config(**{**RUN, **changes})
        model = model or make_small_model()
        history = utils.fit_one_cycle(model, *utils.get_dataloaders(config), max_lr, config)
        return without_times(history), model.state_dict()

    return fit


@pytest.fixture
def folder(fit, tmp_path):
    """The folder of a run that was interrupted in its third epoch."""
    with pytest.raises(KeyboardInterrupt), interrupt_step(6):
        fit()
    return tmp_path / "outputs"


def interrupt(*_, **__):
    raise KeyboardInterrupt


PLACES = {"test": (utils, "test"), "save": (torch, "save"), "replace": (os, "replace")}


@pytest.mark.parametrize("place", [1, 4, 6, *PLACES])
def test_ctrl_c_is_ctrl_c_and_the_next_call_ends_the_same(
    fit, monkeypatch, tmp_path, capsys, place
):
    expected, whole = fit(output_dir=tmp_path / "whole")
    with monkeypatch.context() as patch:
        if place in PLACES:
            patch.setattr(*PLACES[place], interrupt)
        with pytest.raises(KeyboardInterrupt), interrupt_step(place):
            fit()
    assert not list(tqdm.tqdm._instances), "the bars are closed"
    history, resumed = fit()
    assert history == expected
    assert_same_state(whole, resumed)
    done = {4: 1, 6: 2}.get(place, 0)
    assert (f"{done} of 3 epochs are done" in capsys.readouterr().out) == (done > 0)


def test_resumed_run_does_not_depend_on_what_happens_in_between(folder, fit, make_config, tmp_path):
    config, model = make_config(**RUN), make_small_model()
    train_loader, _ = utils.get_dataloaders(config)
    torch.manual_seed(99)
    utils.plot_samples(train_loader, config)
    utils.find_lr(model, train_loader, config)
    history, resumed = fit(0.06, model)  # a finder answers a little differently on a GPU
    expected, whole = fit(output_dir=tmp_path / "whole")
    assert history == expected
    assert_same_state(whole, resumed)


def test_finished_run_is_loaded_not_trained_again(fit, capsys, steps):
    history, state = fit()
    steps.clear()
    again, loaded = fit()
    assert (again, steps) == (history, [])
    assert_same_state(state, loaded)
    printed = capsys.readouterr().out
    assert "3 of 3 epochs are done" in printed
    assert "resume=False" in printed


def test_resume_false_trains_afresh_and_keeps_every_checkpoint(folder, fit, capsys):
    contents = [(folder / "checkpoint.pt").read_bytes()]
    for _ in range(3):
        assert len(fit(resume=False)[0]["test_loss"]) == 3
        contents.append((folder / "checkpoint.pt").read_bytes())
    for number, content in enumerate(contents[:3], start=1):
        assert (folder / f"checkpoint-previous-{number}.pt").read_bytes() == content
    assert "starts from the" in capsys.readouterr().out


@pytest.mark.parametrize("enabled", [False, True])
def test_checkpoint_of_another_device_goes_on(folder, fit, monkeypatch, enabled):
    """With the random state of a GPU that is not there, with or without a loss scaler's state."""
    state = load(folder)
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


@pytest.mark.parametrize("name", OTHERS)
def test_another_configuration_is_refused(folder, fit, name):
    assert_refused(folder, rf"another {name}\b", lambda: fit(**{name: OTHERS[name]}))


class Scale(nn.Module):
    """A layer that prints the same, whatever its parameter's shape."""

    def __init__(self, *shape):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(shape))

    def forward(self, images):
        return images * self.scale


def test_another_network_is_refused(folder, fit):
    other = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    assert_refused(folder, "another network", lambda: fit(model=other))
    fit(model=nn.Sequential(Scale(1), make_small_model()), resume=False)
    other = nn.Sequential(Scale(3, 1, 1), make_small_model())
    assert_refused(folder, "another network", lambda: fit(model=other))


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


def test_numbers_from_numpy_are_loaded_again(fit, capsys):
    pixels = np.array([[0.1, 0.2, 0.3], [0.4, 0.6, 0.8]])
    settings = {
        **{"classes": np.array(list("0123456789")), "optimizer": np.str_("sgd")},
        **{"mean": pixels.mean(0), "std": tuple(pixels.std(0)), "resume": np.bool_(True)},
        **{"epochs": np.int64(1), "train_images": np.int32(40), "cutout_size": np.uint8(4)},
        **{"weight_decay": np.float64(0.5), "label_smoothing": np.float32(0.5)},
    }
    max_lr = np.geomspace(0.01, 0.02, 3)[1]
    history, _ = fit(max_lr, **settings)
    assert fit(max_lr, **settings)[0] == history
    assert "1 of 1 epochs are done" in capsys.readouterr().out


class Malice:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


DAMAGED = {"empty": b"", "text": b"not a checkpoint", "malicious": pickle.dumps(Malice())}
DAMAGED |= {"pickle": pickle.dumps({"settings": 1}), "cut": None}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_checkpoint_is_refused(folder, fit, kind, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = folder / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-100] if kind == "cut" else DAMAGED[kind])
    assert_refused(folder, r"checkpoint\.pt is damaged", fit)
    assert not (tmp_path / "hacked").exists(), "nothing in it may run"


def test_full_disk_leaves_the_old_checkpoint_whole(folder, fit, monkeypatch):
    before = (folder / "checkpoint.pt").read_bytes()

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.warns(UserWarning, match="could not be written .*No space left.*the run goes on"):
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


def test_history_is_valid_json_even_after_nan_in_the_test_images(model, config, make_loader):
    images, labels = torch.randn(40, 3, 32, 32), torch.arange(40) % 10
    train_loader, broken = make_loader(images, labels, 20), images.clone()
    broken[33] = float("nan")
    with pytest.raises(FloatingPointError, match="check the images"):
        utils.fit_one_cycle(model, train_loader, make_loader(broken, labels, 20), 0.01, config)
    path = config.output_dir / "history.json"
    assert not path.exists() or "NaN" not in path.read_text()
    history = utils.fit_one_cycle(model, train_loader, train_loader, 0.01, config)
    assert json.loads(path.read_text()) == history
