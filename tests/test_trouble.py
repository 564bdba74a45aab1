"""Trouble is told, in a sentence that says what to do, and costs nothing that was there."""

import pytest
import torch

import utils


def test_infinite_loss_stops_within_the_epoch_and_names_step_and_rate(model, config, loaders):
    with torch.no_grad():
        model[-1].weight *= float("inf")
    with pytest.raises(FloatingPointError, match=r"became nan in step 1 .*smaller max_lr"):
        utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert not (config.output_dir / "checkpoint.pt").exists(), "no checkpoint of a broken run"


def test_step_of_the_first_infinite_loss(model, config, make_loader):
    images, labels = torch.randn(40, 3, 32, 32), torch.arange(40) % 10
    images[25] = float("nan")
    loader = make_loader(images, labels, 10)
    with pytest.raises(FloatingPointError, match="nan in step 3 of this epoch"):
        utils.fit_one_cycle(model, loader, loader, 0.05, config)


@pytest.mark.parametrize("max_lr", [0, -1.0, None, float("nan"), float("inf")])
def test_bad_peak_is_told_before_anything_is_trained(model, config, loaders, max_lr):
    with pytest.raises(ValueError, match=f"max_lr is {max_lr}, but must be a number above 0"):
        utils.fit_one_cycle(model, *loaders, max_lr, config)


@pytest.mark.parametrize("outputs", [3, 20])
def test_model_for_another_number_of_classes_is_told_what_to_do(model, config, loaders, outputs):
    model[5] = torch.nn.Linear(256, outputs)
    for call in (
        lambda: utils.find_lr(model, loaders[0], config),
        lambda: utils.fit_one_cycle(model, *loaders, 0.05, config),
    ):
        with pytest.raises(ValueError, match=rf"has {outputs} outputs.*num_classes=10"):
            call()


@pytest.mark.parametrize("limits", [(1, 1e-3), (0, 1), (1, 1)])
def test_range_of_learning_rates_must_rise(model, config, loaders, limits):
    with pytest.raises(ValueError, match=r"range is .* must rise from above 0"):
        utils.find_lr(model, loaders[0], config, *limits)


@pytest.mark.parametrize("work", ["fit", "find"])
def test_too_little_gpu_memory_names_the_batch_size(model, config, loaders, monkeypatch, work):
    def full(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(model, "forward", full)
    works = {
        "fit": lambda: utils.fit_one_cycle(model, *loaders, 0.05, config),
        "find": lambda: utils.find_lr(model, loaders[0], config),
    }
    with pytest.raises(torch.OutOfMemoryError, match="batches of 32: try batch_size=16"):
        works[work]()


def test_figure_that_cannot_be_saved_is_shown_anyway(make_config, tmp_path, monkeypatch, capsys):
    (tmp_path / "a file").write_text("where a folder should be")
    config = make_config(output_dir=tmp_path / "a file" / "images")
    calls = []
    monkeypatch.setattr(utils.plt, "get_backend", lambda: "inline")
    monkeypatch.setattr(utils.plt, "show", lambda: calls.append(1))
    history = {name: [1.0] for name in ("train_loss", "train_accuracy", "test_loss", "lr")}
    history["test_accuracy"] = [50.0]
    with pytest.warns(UserWarning, match="history.png could not be written"):
        utils.plot_history(history, config)
    assert calls == [1]
    monkeypatch.setattr(utils.plt, "get_backend", lambda: "agg")
    with pytest.warns(UserWarning, match="history.png could not be written"):
        utils.plot_history(history, config)
    assert "Figure saved" not in capsys.readouterr().out


def test_bars_are_closed_after_an_interrupt(model, config, make_loader, monkeypatch):
    images, labels = torch.randn(40, 3, 32, 32), torch.arange(40) % 10

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "forward", interrupt)
    loader = make_loader(images, labels, 10)
    history = utils.fit_one_cycle(model, loader, loader, 0.05, config)
    assert history["test_loss"] == []
    assert not list(utils.tqdm._instances)


def test_history_without_an_epoch_is_a_sentence(config, capsys):
    empty = {name: [] for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")}
    utils.plot_history({**empty, "lr": []}, config)
    assert "no finished epoch" in capsys.readouterr().out
