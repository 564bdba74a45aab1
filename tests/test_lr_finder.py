"""The LR finder: what it runs, what it leaves as it was, and which peak it chooses."""

from dataclasses import replace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

import utils
from conftest import interrupt_step, make_small_model, take_snapshot


def test_range_test_shows_the_rates_that_it_used(model, config, loaders, shown, steps):
    model[1].eval()
    before = take_snapshot(model)
    utils.find_lr(model, loaders[0], config, 1e-4, 1.0)
    (axis,) = shown[0][0].axes
    lrs, losses = axis.lines[0].get_xydata().T
    np.testing.assert_allclose([lr for lr, _ in steps], lrs, rtol=1e-6)
    assert 20 < len(steps) <= config.lr_finder_steps == 40
    np.testing.assert_allclose(lrs, np.geomspace(1e-4, 1, 40)[: len(steps)], rtol=1e-6)
    assert np.std(np.diff(losses[:10])) > 0.01, "losses as they are, not smoothed"
    axis.set_xlim(0.02, 0.09)  # less than a decade: the minor ticks have labels
    assert "$" not in "".join(tick.get_text() for tick in axis.get_xticklabels(which="both"))
    for start_lr in (0, 1):
        with pytest.raises(ValueError, match="must rise from above 0"):
            utils.find_lr(model, loaders[0], config, start_lr, 1)
    with pytest.raises(KeyboardInterrupt), interrupt_step(5):
        utils.find_lr(model, loaders[0], config)
    assert take_snapshot(model) == before, "even after Ctrl-C"


def test_peak_does_not_depend_on_epochs_and_only_a_figure_is_kept(make_config, capsys):
    peaks = []
    for epochs in (1, 40):
        config = make_config(epochs=epochs, train_images=96, lr_finder_steps=30)
        loader, _ = utils.get_dataloaders(config)
        peaks.append(utils.find_lr(make_small_model(), loader, config))
    assert peaks[0] == peaks[1]
    assert [path.name for path in config.output_dir.iterdir()] == ["lr_finder.png"]
    assert "hardly rose" not in capsys.readouterr().out
    utils.find_lr(make_small_model(), loader, config, 1e-4, 1e-2)
    printed = capsys.readouterr()
    assert "hardly rose: try a higher end_lr" in printed.out
    assert ("100%" in printed.out, printed.err) == (True, ""), "a bar of plain text"


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_copies_go_on_without_waiting_on_cuda_only(model, config, loaders, monkeypatch, kind):
    plain, finder, index = utils.get_autocast(config.device), MagicMock(), MagicMock()
    finder.history = {"lr": LRS, "loss": make_losses()}
    monkeypatch.setattr(utils, "get_autocast", lambda _: plain)
    monkeypatch.setattr(utils, "LRFinder", lambda *_, **__: finder)
    utils.find_lr(model, [], replace(config, device=torch.device(kind)))
    assert finder.range_test.call_args.kwargs["non_blocking_transfer"] == (kind == "cuda")
    dataset, images = loaders[1].dataset, MagicMock(device=kind, is_cuda=kind == "cuda")
    dataset.images, dataset.labels, dataset.transform = images, MagicMock(), MagicMock()
    monkeypatch.setattr(torch, "as_tensor", lambda _: index)
    dataset.__getitems__([0, 1])
    index.to.assert_called_once_with(kind, non_blocking=kind == "cuda")


LRS = np.geomspace(1e-4, 10, 100)


def make_losses(lowest=0.1):
    """A loss that falls along a sigmoid, is lowest at a learning rate, and explodes beyond."""
    x = np.log10(LRS) - np.log10(lowest)
    return 2.3 - 1 / (1 + np.exp(-4 * (x + 1))) + np.exp(np.minimum(6 * x, 20)) / 20


@pytest.mark.parametrize(("lowest", "noise"), [(0.01, 0.0), (0.01, 0.05), (1.0, 0.05)])
def test_peak_is_the_last_before_half_of_the_fall_is_lost(lowest, noise):
    losses = make_losses(lowest)
    expected = LRS[np.flatnonzero(losses <= (losses.min() + losses[0]) / 2)[-1]]
    noisy = losses + noise * np.random.default_rng(0).standard_normal(100)
    peak, _ = utils.choose_peak(LRS, noisy)
    assert peak == pytest.approx(expected, rel=0.3)
    assert peak > 1.2 * LRS[np.argmin(losses)], "not the minimum, which moves with chance"


def test_peak_is_before_a_bump_though_the_loss_falls_again():
    x = np.log10(LRS)
    losses = np.where(x < -1, 2.3 - np.clip(x + 3.5, 0, 1), 1.4)
    peak, _ = utils.choose_peak(LRS, losses + 0.8 * np.exp(-(((x + 1) / 0.3) ** 2)))
    assert 10**-2.5 < peak < 0.1


def test_what_comes_after_the_first_nan_does_not_count():
    losses = np.where(np.arange(100) // 30 == 2, np.inf, make_losses())  # 60 to 89
    peak, smoothed = utils.choose_peak(LRS, losses)
    assert (peak, len(smoothed)) == (pytest.approx(LRS[59]), 60)
    for no_fall in (np.geomspace(2, 9, 50), np.full(50, np.nan), [2.3, np.inf]):
        with pytest.raises(ValueError, match=r"start below 0\.0001.*check the data"):
            utils.choose_peak(LRS[: len(no_fall)], no_fall)
