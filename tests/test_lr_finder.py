"""The LR finder: what it runs, what it leaves as it was, and which peak it chooses."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_small_model, take_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

import utils


@pytest.fixture
def curve(monkeypatch):
    """Collect the learning rates and losses that the LR finder draws."""
    seen = {}
    monkeypatch.setattr(
        utils, "plot_lr_finder", lambda lrs, losses, *_: seen.update(lrs=lrs, losses=losses)
    )
    return seen


@pytest.mark.parametrize("limits", [(), (1e-4, 1.0)])
def test_range_test_starts_where_it_is_told_and_trains_with_what_it_shows(
    model, config, loaders, curve, steps, limits
):
    start, end = limits or (1e-3, 10.0)
    utils.find_lr(model, loaders[0], config, *limits)
    np.testing.assert_allclose([lr for lr, _ in steps], curve["lrs"], rtol=1e-6)
    assert len(steps) <= config.lr_finder_steps == 40
    expected = np.geomspace(start, end, 40)[: len(steps)]
    np.testing.assert_allclose(curve["lrs"], expected, rtol=1e-6)
    assert len(set(np.round(curve["losses"], 3))) > len(steps) / 2, "losses as they are"


def test_full_profile_takes_100_steps(make_config):
    assert make_config("full").lr_finder_steps == 100


def test_only_a_figure_is_kept_and_the_peak_does_not_depend_on_epochs(make_config, tmp_path):
    peaks = []
    for epochs in (1, 40):
        config = make_config(epochs=epochs, train_images=96, lr_finder_steps=30)
        loader, _ = utils.get_dataloaders(config)
        peaks.append(utils.find_lr(make_small_model(), loader, config))
    assert peaks[0] == peaks[1]
    assert type(peaks[0]) is float
    assert [path.name for path in config.output_dir.iterdir()] == ["lr_finder.png"]


def test_output_is_plain_text_that_tells_of_an_early_end(model, config, loaders, capsys):
    utils.find_lr(model, loaders[0], config, end_lr=1e6)
    early = capsys.readouterr()
    utils.find_lr(model, loaders[0], config, start_lr=1e-4, end_lr=1e-2)
    late = capsys.readouterr()
    assert "diverged at a learning rate of" in early.out
    assert "diverged" not in late.out
    assert "never rose: a higher end_lr" in late.out
    assert "100%" in late.out
    assert early.err == late.err == ""


def test_ctrl_c_leaves_the_model_as_it_was(model, config, loaders, interrupt_step):
    model[1].eval()
    before = take_snapshot(model)
    with interrupt_step(5):
        utils.find_lr(model, loaders[0], config)
    assert take_snapshot(model) == before


@pytest.mark.parametrize("limits", [(1, 1e-3), (0, 1), (1, 1)])
def test_range_of_learning_rates_must_rise(model, config, loaders, limits):
    with pytest.raises(ValueError, match="must rise from above 0"):
        utils.find_lr(model, loaders[0], config, *limits)


@pytest.mark.parametrize("kind", ["cuda", "mps", "cpu"])
def test_batches_are_copied_without_waiting_on_cuda_only(
    model, config, loaders, monkeypatch, kind
):
    asked = []

    class Finder:
        history = {"lr": [1], "loss": [1]}  # noqa: RUF012

        def __init__(self, *_, **__):
            pass

        def range_test(self, *_, **options):
            asked.append(options.get("non_blocking_transfer", True))

    monkeypatch.setattr(utils, "LRFinder", Finder)
    monkeypatch.setattr(utils, "keep_random_state", lambda _: nullcontext())
    monkeypatch.setattr(utils, "get_precision", lambda _: torch.float32)
    config = replace(config, device=torch.device(kind))
    utils.run_range_test(model, loaders[0], config, 1e-3, 1)
    assert asked == [kind == "cuda"]


# Which peak is chosen, on curves whose answer is known


LRS = np.geomspace(1e-4, 10, 100)


def make_losses(lowest=0.1, lrs=LRS):
    """A loss that falls along a sigmoid, is lowest at a learning rate, and explodes beyond."""
    x = np.log10(lrs) - np.log10(lowest)
    return 2.3 - 1 / (1 + np.exp(-4 * (x + 1))) + np.exp(np.minimum(6 * x, 20)) / 20


@pytest.mark.parametrize("lowest", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
def test_peak_is_the_last_before_half_of_the_fall_is_lost(lowest, noise):
    losses = make_losses(lowest)
    noisy = losses + noise * np.random.default_rng(0).standard_normal(100)
    peak, smoothed = utils.choose_peak(LRS, noisy)
    expected = LRS[np.flatnonzero(losses <= (losses.min() + losses[0]) / 2)[-1]]
    assert peak == pytest.approx(expected, rel=0.3)
    assert peak > 1.2 * LRS[np.argmin(losses)], "not the minimum, which moves with chance"
    assert len(smoothed) == 100


@pytest.mark.parametrize("height", [0.8, 3.0])
@pytest.mark.parametrize("valley", [1.4, 1.7])
def test_peak_is_before_a_bump_though_the_loss_falls_again(height, valley):
    x = np.log10(LRS)
    losses = np.where(x < -1, 2.3 - np.clip(x + 3.5, 0, 1), valley)
    peak, _ = utils.choose_peak(LRS, losses + height * np.exp(-(((x + 1) / 0.3) ** 2)))
    assert 10**-2.5 < peak < 0.1


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_comes_after_the_first_nan_does_not_count(broken):
    losses = make_losses()
    losses[80] = broken
    peak, smoothed = utils.choose_peak(LRS, losses)
    assert peak == pytest.approx(utils.choose_peak(LRS, make_losses())[0], rel=0.2)
    assert len(smoothed) == 80
    losses[60:] = broken  # before the loss has risen
    assert utils.choose_peak(LRS, losses)[0] == pytest.approx(LRS[59])


def test_peak_of_a_loss_that_never_rises_is_the_end():
    assert utils.choose_peak(LRS, np.linspace(2.3, 1, 100))[0] == LRS[-1]


@pytest.mark.parametrize("losses", [np.geomspace(2, 9, 50), np.full(50, np.nan), [2.3, np.inf]])
def test_no_peak_without_a_fall(losses):
    with pytest.raises(ValueError, match="check the data") as caught:
        utils.choose_peak(np.geomspace(1e-3, 1, len(losses)), losses)
    assert "\n" not in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(
    *(st.floats(-2, 0), st.floats(-3, 3), st.floats(0.1, 100), st.floats(-5, 5)),
    *(st.integers(60, 300), st.integers(0, 99)),
)
def test_peak_moves_with_the_axis_and_not_with_the_loss(exponent, shift, scale, offset, n, seed):
    lrs = np.geomspace(1e-4, 10, n)
    losses = make_losses(10**exponent, lrs)
    losses += 0.02 * np.random.default_rng(seed).standard_normal(n)
    peak, smoothed = utils.choose_peak(lrs, losses)
    kept = (smoothed[0] - smoothed) / (smoothed[0] - smoothed.min())
    after = np.flatnonzero(lrs > peak)
    assert kept[lrs == peak] >= 0.5 - 1e-9
    assert not len(after) or kept[after[0]] < 0.5
    moved, _ = utils.choose_peak(lrs * 10**shift, losses * scale + offset)
    assert moved == pytest.approx(peak * 10**shift, rel=1e-6)
