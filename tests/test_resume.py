"""Disconnects: whenever the process dies, the next run goes on and ends where it would have."""

import json
import multiprocessing
import os
import random
import time
import warnings
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import tqdm
from torch import nn

import utils
from benchmarks import report
from helpers import interrupt_step, make_small_model, take_snapshot

# Two steps an epoch; some settings are NumPy's
RUN = {"epochs": np.int64(3), "batch_size": 32, "train_images": 64, "mean": np.full(3, 0.5)}


def load(folder):
    """Return the weights and the history that a run has saved, as it can be compared."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    weights = {name: value.tolist() for name, value in state["model"].items()}
    history = {name: values for name, values in state["history"].items() if name != "seconds"}
    return weights, history


# Real processes
EPOCHS = 150  # more than six processes reach before they are killed


def start(target, *args):
    """Start a function in a new process, and return it as soon as it is about to work."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["utils"])
    ready = context.Event()
    process = context.Process(target=target, args=(ready, *args))
    process.start()
    assert ready.wait(timeout=120)
    return process


def train_run(ready, output_dir):
    """Train in a process of its own: the same run, however often it is started."""
    torch.set_num_threads(1)
    settings = {**RUN, "device": "cpu", "epochs": EPOCHS, "output_dir": output_dir}
    config = utils.get_config("quick", **settings)
    loaders = utils.get_dataloaders(config)
    ready.set()
    utils.fit_one_cycle(make_small_model(), *loaders, 0.05, config)


def count_epochs(folder):
    """Return how many epochs of a run lie in its folder."""
    record = utils.read_run(folder)
    return len(record["history"]["seconds"]) if record else 0


def test_six_kills_at_random_moments_lose_nothing(tmp_path):
    folder = tmp_path / "killed"
    moments = random.Random(0)
    done = [0]
    for _ in range(6):
        goal = done[-1] + moments.randint(1, 3)
        process = start(train_run, folder)
        while count_epochs(folder) < goal:
            assert process.is_alive()
        time.sleep(moments.uniform(0, 0.02))  # an epoch takes about as long
        process.kill()
        process.join()
        assert process.exitcode == -9
        _, history = load(folder)
        done.append(len(history["test_loss"]))
    assert done == sorted(done), "an epoch once finished stays so"

    start(train_run, tmp_path / "whole").join()
    start(train_run, folder).join()
    weights, history = load(folder)
    assert len(history["test_loss"]) == EPOCHS
    assert (weights, history) == load(tmp_path / "whole")


def write_often(ready, path, content):
    """Replace a file over and over, with warnings as errors."""
    warnings.simplefilter("error")
    ready.set()
    for _ in range(300):
        utils.replace_file(path, content)


def test_half_of_a_file_is_never_seen_even_if_two_processes_write_it(tmp_path):
    path = tmp_path / "history.json"
    contents = [b"a" * 300_000, b"b" * 300_000]
    writers = [start(write_often, path, content) for content in contents]
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(path.read_bytes())
    assert seen <= {*contents}
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


# Ctrl-C, and the same cell again
@pytest.fixture
def fit(make_config):
    """Return a function that trains the small model for 3 epochs of 2 steps."""

    def fit(max_lr=0.05, model=None, copies=1, **changes):
        config = make_config(**{**RUN, **changes})
        train_loader, test_loader = utils.get_dataloaders(config)
        if copies > 1:
            train_loader = [*train_loader] * copies
        model = model or make_small_model()
        return utils.fit_one_cycle(model, train_loader, test_loader, np.float64(max_lr), config)

    return fit


@pytest.mark.parametrize("step", [1, 2, 4, 6])
def test_ctrl_c_then_the_same_cell_ends_where_it_would_have(fit, tmp_path, step):
    model = make_small_model()
    with interrupt_step(step), pytest.raises(KeyboardInterrupt):
        fit(model=model)
    fit(model=model)
    fit(output_dir=tmp_path / "whole")
    assert load(tmp_path / "outputs") == load(tmp_path / "whole")


def test_ctrl_c_then_a_new_process_ends_where_it_would_have(fit, tmp_path):
    with interrupt_step(4), pytest.raises(KeyboardInterrupt):
        fit()
    fit(model=make_small_model())
    fit(output_dir=tmp_path / "whole")
    assert load(tmp_path / "outputs") == load(tmp_path / "whole")


def test_ctrl_c_in_the_first_save_then_the_same_cell_ends_where_it_would_have(
    fit, tmp_path, monkeypatch
):
    model = make_small_model()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(model=model)
    fit(model=model)
    fit(output_dir=tmp_path / "whole")
    assert load(tmp_path / "outputs") == load(tmp_path / "whole")


def test_ctrl_c_closes_the_progress_bar(fit):
    with interrupt_step(4), pytest.raises(KeyboardInterrupt):
        fit()
    assert not list(tqdm.tqdm._instances)


def test_a_finished_run_is_loaded_and_not_trained_again(fit, steps):
    trained = make_small_model()
    history = fit(model=trained)
    made = len(steps)
    loaded = make_small_model()
    assert fit(model=loaded) == history, "its seconds, too"
    assert len(steps) == made
    assert take_snapshot(loaded)["values"] == take_snapshot(trained)["values"]


def test_history_json_holds_the_history(fit, tmp_path):
    history = fit()
    saved = json.loads((tmp_path / "outputs" / "history.json").read_text())
    assert saved["history"] == history


def test_model_pt_holds_the_weights_alone(fit, tmp_path):
    trained = make_small_model()
    fit(model=trained)
    loaded = make_small_model()
    loaded.load_state_dict(torch.load(tmp_path / "outputs" / "model.pt", weights_only=True))
    assert take_snapshot(loaded)["values"] == take_snapshot(trained)["values"]


# A run that was interrupted in its third epoch
@pytest.fixture
def path(fit, tmp_path):
    """The checkpoint of the run."""
    with pytest.raises(KeyboardInterrupt), interrupt_step(6):
        fit()
    return tmp_path / "outputs" / "checkpoint.pt"


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_run_that_began_on_a_gpu_goes_on_without_one(path, fit, tmp_path, kind):
    state = torch.load(path, weights_only=True)
    state["random_states"][kind] = torch.zeros(16, dtype=torch.uint8)
    torch.save(state, path)
    fit()
    fit(output_dir=tmp_path / "whole")
    assert load(tmp_path / "outputs") == load(tmp_path / "whole")


def test_a_run_that_began_without_a_loss_scaler_goes_on_with_one(path, fit, monkeypatch):
    monkeypatch.setattr(utils, "get_scaler", lambda _: torch.amp.GradScaler("cpu"))
    assert len(fit()["test_loss"]) == 3


def test_resume_false_makes_all_steps_anew_and_keeps_every_checkpoint(path, fit, steps):
    contents = []
    for _ in range(3):
        contents.append(path.read_bytes())
        assert len(fit(resume=False)["lr"]) == 6
        assert len(steps) == 6 * len(contents)
    for n, content in enumerate(contents, 1):
        assert path.with_stem(f"checkpoint-previous-{n}").read_bytes() == content


def test_a_run_with_another_number_of_steps_is_refused_and_kept(path, fit):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"another number of steps.*output_dir.*resume=False"):
        fit(copies=2)
    assert path.read_bytes() == before


def make_longer_model():
    """Return the small model and a layer more, which has no weights."""
    return make_small_model().append(nn.ReLU())


def make_model_of_other_shapes():
    """Return the small model with a convolution of other filters."""
    model = make_small_model()
    model[3] = nn.Conv2d(8, 16, 5, stride=4, padding=2)
    return model


def make_model_that_prints_the_same():
    """Return the small model with a parameter that its text does not show."""
    model = make_small_model()
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    return model


@pytest.mark.parametrize(
    "make_other", [make_longer_model, make_model_of_other_shapes, make_model_that_prints_the_same]
)
def test_a_run_of_another_network_is_refused_and_kept(path, fit, make_other):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"another network.*output_dir.*resume=False"):
        fit(model=make_other())
    assert path.read_bytes() == before


DAMAGE = {
    "empty": lambda content: b"",
    "text": lambda content: b"text",
    "cut off": lambda content: content[:-100],
    "a pickle": lambda content: b"(dp0\n.",
    "a pickle that does harm": lambda content: b"cos\nmkdir\n(S'hacked'\ntR.",
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_is_refused_kept_and_nothing_in_it_is_run(
    path, fit, case, monkeypatch
):
    monkeypatch.chdir(path.parent)
    content = DAMAGE[case](path.read_bytes())
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged.*output_dir.*resume=False[^\n]*$") as caught:
        fit()
    for advice in ("weights_only", "can still be loaded"):
        assert advice not in str(caught.value)
    assert path.read_bytes() == content
    assert not (path.parent / "hacked").exists()


def test_no_look_at_a_folder_runs_what_lies_there(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    (path.parent / "history.json").unlink()
    path.write_bytes(DAMAGE["a pickle that does harm"](b""))
    assert utils.read_run(path.parent) is None
    with pytest.raises(SystemExit, match="missing or damaged"):
        report.read_run(path.parent)
    assert not (path.parent / "hacked").exists()


@pytest.mark.parametrize("path", ["a file", "a file/below/it"])
def test_a_folder_that_cannot_be_written_is_told_before_training(path, fit, tmp_path):
    (tmp_path / "a file").write_text("of yours")
    with pytest.raises(ValueError, match=r"^Nothing can be written to [^\n]*output_dir\.$"):
        fit(output_dir=tmp_path / path)
    assert (tmp_path / "a file").read_text() == "of yours"


def test_a_folder_without_the_right_to_write_is_told_before_training(fit, monkeypatch, steps):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=r"^Nothing can be written to [^\n]*output_dir\.$"):
        fit()
    assert not steps


def test_a_full_disk_leaves_the_old_checkpoint_and_training_goes_on(path, fit, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.warns(UserWarning, match=r"could not be written .*No space left"):
        assert len(fit()["test_loss"]) == 3
    assert path.read_bytes() == before
    assert {file.name for file in path.parent.iterdir()} == {"checkpoint.pt", "history.json"}
