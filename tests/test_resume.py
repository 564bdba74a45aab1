"""Disconnects: whenever the process dies, the next run goes on and ends where it would have."""

import json
import multiprocessing
import os
import random
import time
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
import tqdm
from torch import nn

import utils
from conftest import interrupt_step, make_small_model, take_snapshot

RUN = {"epochs": np.int64(3), "batch_size": 32, "train_images": 64, "mean": np.full(3, 0.5)}


def train_run(output_dir, ready):
    """Train in a process of its own: the same run, however often it is started."""
    torch.set_num_threads(1)
    settings = {**RUN, "device": "cpu", "epochs": 100, "output_dir": output_dir}
    loaders = utils.get_dataloaders(config := utils.get_config("quick", **settings))
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
        assert process.exitcode == -9
        if (folder / "checkpoint.pt").exists():
            done.append(len(load(folder)[1]["test_loss"]))
    assert done == sorted(done), "an epoch once finished stays so"
    assert len(set(done)) > 8, "the kills fell into different epochs"
    start(folder).join()
    assert load(folder) == load(tmp_path / "whole")
    assert len(load(folder)[1]["test_loss"]) == 100


@pytest.fixture
def fit(make_config):
    """Return a function that trains the small model for 3 epochs, some settings being NumPy's."""

    def fit(max_lr=0.05, model=None, copies=1, **changes):
        config, model = make_config(**{**RUN, **changes}), model or make_small_model()
        train_loader, test_loader = utils.get_dataloaders(config)
        train_loader = train_loader if copies == 1 else [*train_loader] * copies
        return utils.fit_one_cycle(model, train_loader, test_loader, np.float64(max_lr), config)

    return fit


@pytest.fixture
def path(fit, tmp_path, monkeypatch):
    """The checkpoint of a run that was interrupted in its third epoch, on a GPU that is gone."""
    with pytest.raises(KeyboardInterrupt), interrupt_step(6):
        fit()
    state = torch.load(path := tmp_path / "outputs" / "checkpoint.pt", weights_only=True)
    state["random_states"].append(torch.zeros(16, dtype=torch.uint8))
    torch.save(state, path)
    # The saved loss scaler is empty, since it was not used there; here, it is.
    monkeypatch.setattr(utils, "get_scaler", lambda _: torch.amp.GradScaler("cpu"))
    return path


@pytest.mark.parametrize(("step", "effect"), [(1, None), (4, None), (99, KeyboardInterrupt)])
def test_ctrl_c_then_a_new_call_ends_the_same(fit, tmp_path, capsys, step, effect):
    model, loaded = make_small_model(), make_small_model()
    replace = patch.object(os, "replace", side_effect=effect, wraps=os.replace)
    with replace, interrupt_step(step), pytest.raises(KeyboardInterrupt):  # 99: in the first save
        fit(model=model)
    assert not list(tqdm.tqdm._instances), "the bars are closed"
    model = make_small_model() if step == 4 else model  # in the second epoch: in a new process
    history = fit(0.06 if step == 4 else 0.05, model)  # a finder may answer differently
    fit(output_dir=tmp_path / "whole")
    assert load(tmp_path / "outputs") == load(tmp_path / "whole")
    assert fit(model=loaded) == history, "its seconds, too: it is loaded, not trained again"
    assert take_snapshot(loaded)["values"] == take_snapshot(model)["values"]
    accuracies = "%: {:.2f} {:.2f} {:.2f}\n".format(*history["test_accuracy"])
    assert accuracies in capsys.readouterr().out, "a log of the epochs that are not trained again"
    assert json.loads((tmp_path / "outputs" / "history.json").read_text()) == history


def test_resume_false_trains_afresh_and_keeps_every_checkpoint(path, fit, steps):
    contents = []
    for _ in range(3):
        contents.append(path.read_bytes())
        assert len(fit(resume=False)["lr"]) == 6
        assert len(steps) == 6 * len(contents), "all of them are made anew"
    assert contents == [path.with_stem(f"checkpoint-previous-{n}").read_bytes() for n in (1, 2, 3)]


def test_another_run_or_a_damaged_file_is_refused_and_kept(path, fit, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    longer, wider = make_small_model().append(nn.ReLU()), make_small_model()
    wider.register_parameter("scale", nn.Parameter(torch.ones(1)))  # it prints the same
    others = {"epochs": 4, "seed": 1, "optimizer": "sgd", "std": (1, 1, 1)}
    whole = path.read_bytes()
    cases = [(whole, rf"another {name}\b", {name: value}) for name, value in others.items()]
    cases += [(whole, "another number of steps", {"copies": 2})]
    cases += [(whole, "another network", {"model": model}) for model in (longer, wider)]
    damaged = (b"", b"text", whole[:-100], b"(dp0\n.", b"cos\nmkdir\n(S'hacked'\ntR.")  # 2 pickles
    for content, words, changes in [*cases, *[(content, "is damaged", {}) for content in damaged]]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{path}.*{words}.*output_dir.*resume=False[^\n]*$"):
            fit(**changes)
        assert path.read_bytes() == content
    assert not (tmp_path / "hacked").exists(), "nothing in a file is run"


def test_full_disk_leaves_the_old_checkpoint_whole(path, fit, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.warns(UserWarning, match="could not be written .*No space left"):
        assert len(fit()["test_loss"]) == 3, "training goes on without"
    assert path.read_bytes() == before
    assert {file.name for file in path.parent.iterdir()} == {"checkpoint.pt", "history.json"}


def test_two_runs_in_one_folder_do_not_share_a_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "history.json"

    def write_meanwhile(file):
        file.write(b"whole")
        file.flush()
        monkeypatch.setattr(os, "getpid", lambda: 1)  # another process
        utils.replace_file(path, lambda file: file.write(b"other"))
        assert path.read_bytes() == b"other"

    utils.replace_file(path, write_meanwhile)
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]
