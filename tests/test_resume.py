"""Disconnects: whenever the process dies, the next run goes on and ends where it would have."""

import copy
import json
import multiprocessing
import os
import pickle
import random
import signal
import time

import numpy as np
import pytest
import torch
from conftest import make_small_model

import utils

EPOCHS = 100


def train_run(output_dir, ready):
    """Train in a process of its own: the same run, however often it is started."""
    torch.set_num_threads(1)
    settings = {"epochs": EPOCHS, "batch_size": 32, "train_images": 64}
    config = utils.get_config("quick", device="cpu", output_dir=output_dir, **settings)
    loaders = utils.get_dataloaders(config)
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
            done.append(len(load(output_dir)["rest"]["history"]["test_loss"]))
    assert done == sorted(done), "an epoch once finished stays so"
    assert len(set(done)) > 8, "the kills fell into different epochs"
    final = start(output_dir)
    final.join()
    assert final.exitcode == 0
    expected, resumed = load(tmp_path / "whole"), load(output_dir)
    assert_same_state(expected["model"], resumed["model"])
    assert without_times(expected["rest"]["history"]) == without_times(resumed["rest"]["history"])
    assert len(resumed["rest"]["history"]["seconds"]) == EPOCHS


@pytest.fixture
def resuming(make_config):
    return make_config(epochs=3, batch_size=32, train_images=64)


@pytest.fixture
def interrupted(resuming, model, monkeypatch):
    """Stop a run in its third epoch; return its history."""
    train, calls = utils.train, []

    def stopping_train(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(utils, "train", stopping_train)
        return utils.fit_one_cycle(model, *utils.get_dataloaders(resuming), 0.05, resuming)


def test_interrupting_keeps_the_history_so_far(resuming, model, capsys, request):
    history = request.getfixturevalue("interrupted")
    assert len(history["test_loss"]) == len(history["seconds"]) == 2
    assert len(history["lr"]) == 4
    assert "Interrupted in epoch 3" in capsys.readouterr().out


def test_interrupting_within_an_epoch_drops_its_steps(resuming, model, interrupt_step):
    loaders = utils.get_dataloaders(resuming)
    interrupt_step(4)
    history = utils.fit_one_cycle(model, *loaders, 0.05, resuming)
    interrupt_step(0)
    assert len(history["lr"]) == 2, "those of the finished epoch"
    assert_same_state(model.state_dict(), load(resuming.output_dir)["model"])
    history = utils.fit_one_cycle(make_small_model(), *loaders, 0.05, resuming)
    assert len(history["lr"]) == 6


def test_resuming_says_so_and_ends_the_same(interrupted, resuming, make_config, tmp_path, capsys):
    loaders = utils.get_dataloaders(resuming)
    resumed = make_small_model()
    history = utils.fit_one_cycle(resumed, *loaders, 0.05, resuming)
    printed = capsys.readouterr().out
    assert "Going on from" in printed
    assert "2 of 3 epochs are done" in printed
    elsewhere = make_config(
        epochs=3, batch_size=32, train_images=64, output_dir=tmp_path / "elsewhere"
    )
    whole = make_small_model()
    expected = utils.fit_one_cycle(whole, *loaders, 0.05, elsewhere)
    assert without_times(history) == without_times(expected)
    assert_same_state(whole.state_dict(), resumed.state_dict())


def test_finished_run_is_loaded_not_trained_again(resuming, model, capsys):
    loaders = utils.get_dataloaders(resuming)
    history = utils.fit_one_cycle(model, *loaders, 0.05, resuming)
    capsys.readouterr()
    again = make_small_model()
    assert utils.fit_one_cycle(again, *loaders, 0.05, resuming) == history
    assert_same_state(model.state_dict(), again.state_dict())
    printed = capsys.readouterr().out
    assert "Finished before, and loaded from" in printed
    assert "3 of 3 epochs are done" in printed
    assert f"accuracy of {history['test_accuracy'][-1]:.2f} %" in printed
    assert "resume=False" in printed
    assert "Test set" not in printed


def test_resume_false_trains_afresh_and_keeps_the_old_checkpoint(
    interrupted, resuming, make_config, capsys
):
    old = (resuming.output_dir / "checkpoint.pt").read_bytes()
    fresh = make_config(epochs=3, batch_size=32, train_images=64, resume=False)
    history = utils.fit_one_cycle(make_small_model(), *utils.get_dataloaders(fresh), 0.05, fresh)
    assert len(history["test_loss"]) == 3
    assert (resuming.output_dir / "checkpoint-previous-1.pt").read_bytes() == old
    printed = capsys.readouterr().out
    assert "The checkpoint that was there is now" in printed
    assert "Training starts from the weights that the model has" in printed, "trained or not"


def test_every_checkpoint_that_was_put_aside_is_kept(make_config):
    config = make_config(epochs=1, batch_size=32, train_images=64, resume=False)
    loaders, contents = utils.get_dataloaders(config), []
    for _ in range(4):
        utils.fit_one_cycle(make_small_model(), *loaders, 0.05, config)
        contents.append((config.output_dir / "checkpoint.pt").read_bytes())
    for number, content in enumerate(contents[:3], start=1):
        assert (config.output_dir / f"checkpoint-previous-{number}.pt").read_bytes() == content


def test_interrupting_the_first_epoch_leaves_the_model_as_it_was(resuming, model, monkeypatch):
    before = copy.deepcopy(model.state_dict())
    loaders = utils.get_dataloaders(resuming)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(utils, "test", interrupt)  # after the epoch's last step
        utils.fit_one_cycle(model, *loaders, 0.05, resuming)
    assert_same_state(model.state_dict(), before)


def test_interrupting_the_checkpoint_takes_the_epoch_back(resuming, model, monkeypatch):
    before = copy.deepcopy(model.state_dict())

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(utils.Checkpoint, "save", interrupt)
        history = utils.fit_one_cycle(model, *utils.get_dataloaders(resuming), 0.05, resuming)
    assert_same_state(model.state_dict(), before)
    assert all(values == [] for values in history.values())


def test_checkpoint_of_a_gpu_goes_on_elsewhere(interrupted, resuming):
    """With the random state of a GPU that is not there, and without that of a loss scaler."""
    path = resuming.output_dir / "checkpoint.pt"
    state = load(resuming.output_dir)
    state["random_states"].append(torch.zeros(16, dtype=torch.uint8))
    torch.save(state, path)
    loaders = utils.get_dataloaders(resuming)
    history = utils.fit_one_cycle(make_small_model(), *loaders, 0.05, resuming)
    assert len(history["test_loss"]) == 3


def test_checkpoint_without_a_scaler_goes_on_where_one_is_used(tmp_path):
    def make_parts(enabled):
        scaler = torch.amp.GradScaler("cpu", init_scale=512, enabled=enabled)
        return {"model": make_small_model(), "scaler": scaler}

    path = tmp_path / "checkpoint.pt"
    utils.Checkpoint(path, {}, **make_parts(False)).save(history={})
    parts = make_parts(True)
    utils.Checkpoint(path, {}, **parts).load()
    assert parts["scaler"].get_scale() == 512


def test_peak_learning_rate_is_that_of_the_checkpoint(interrupted, resuming, make_config, tmp_path):
    """On a GPU, a finder that runs again answers a little differently."""
    loaders = utils.get_dataloaders(resuming)
    history = utils.fit_one_cycle(make_small_model(), *loaders, 0.06, resuming)
    elsewhere = make_config(
        epochs=3, batch_size=32, train_images=64, output_dir=tmp_path / "elsewhere"
    )
    expected = utils.fit_one_cycle(make_small_model(), *loaders, 0.05, elsewhere)
    assert history["lr"] == expected["lr"]


@pytest.mark.parametrize(
    "change", [{"epochs": 4}, {"seed": 1}, {"batch_size": 16}, {"label_smoothing": 0.0}]
)
def test_another_configuration_is_refused_and_the_checkpoint_kept(
    interrupted, resuming, make_config, change
):
    path = resuming.output_dir / "checkpoint.pt"
    before = path.read_bytes()
    other = make_config(**{"epochs": 3, "batch_size": 32, "train_images": 64, **change})
    (name,) = change
    with pytest.raises(
        ValueError, match=rf"made with another {name}: choose another output_dir"
    ) as error:
        utils.fit_one_cycle(make_small_model(), *utils.get_dataloaders(other), 0.05, other)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_another_network_is_refused(interrupted, resuming):
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    with pytest.raises(ValueError, match="made with another network"):
        utils.fit_one_cycle(other, *utils.get_dataloaders(resuming), 0.05, resuming)


def test_numbers_from_numpy_are_loaded_again(make_config, capsys):
    pixels = np.array([[0.1, 0.2, 0.3], [0.4, 0.6, 0.8]])
    config = make_config(
        classes=np.array(list("0123456789")),
        mean=pixels.mean(0),
        std=tuple(pixels.std(0)),
        epochs=np.int64(1),
        train_images=np.int32(40),
        batch_size=20,
        cutout_size=np.uint8(4),
        weight_decay=np.float64(0.5),
        label_smoothing=np.float32(0.5),
    )
    loaders = utils.get_dataloaders(config)
    max_lr = np.geomspace(0.01, 0.02, 3)[1]
    history = utils.fit_one_cycle(make_small_model(), *loaders, max_lr, config)
    capsys.readouterr()
    assert utils.fit_one_cycle(make_small_model(), *loaders, max_lr, config) == history
    assert "Finished before, and loaded" in capsys.readouterr().out


class Malice:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", pickle.dumps(Malice()), pickle.dumps({"settings": 1}), None],
    ids=["empty", "text", "malicious", "pickle", "cut"],
)
def test_damaged_checkpoint_is_refused_and_kept(
    interrupted, resuming, content, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    path = resuming.output_dir / "checkpoint.pt"
    content = path.read_bytes()[:-100] if content is None else content
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged .*resume=False") as error:
        utils.fit_one_cycle(make_small_model(), *utils.get_dataloaders(resuming), 0.05, resuming)
    assert "\n" not in str(error.value)
    assert error.value.__suppress_context__, "no advice to load it unsafely"
    assert path.read_bytes() == content
    assert not (tmp_path / "hacked").exists(), "nothing in it may run"


def test_full_disk_leaves_the_old_checkpoint_whole(interrupted, resuming, monkeypatch):
    path = resuming.output_dir / "checkpoint.pt"
    before = path.read_bytes()

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.warns(UserWarning, match="could not be written .*No space left.*the run goes on"):
        history = utils.fit_one_cycle(
            make_small_model(), *utils.get_dataloaders(resuming), 0.05, resuming
        )
    assert len(history["test_loss"]) == 3, "training goes on without"
    assert path.read_bytes() == before
    assert {file.name for file in resuming.output_dir.iterdir()} == {
        "checkpoint.pt",
        "history.json",
    }


def test_history_is_saved_as_it_comes(interrupted, resuming):
    assert json.loads((resuming.output_dir / "history.json").read_text()) == interrupted


def test_interrupted_run_does_not_depend_on_what_happens_in_between(
    interrupted, resuming, model, tmp_path
):
    loaders = utils.get_dataloaders(resuming)
    twin = copy.deepcopy(model)
    torch.manual_seed(99)
    utils.plot_samples(loaders[0], resuming)
    utils.find_lr(twin, loaders[0], resuming)
    torch.rand(17)
    history = utils.fit_one_cycle(twin, *loaders, 0.05, resuming)
    assert history["lr"][-1] < history["lr"][0]
    assert len(history["test_loss"]) == 3
