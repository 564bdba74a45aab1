"""The LR finder: what it runs, what it leaves as it was, and which peak it chooses."""

import numpy as np
import pytest
import torch
from torch import nn

import utils
from helpers import interrupt_step, make_data, make_small_model, take_snapshot


# --- What it runs ---------------------------------------------------------------------------------
def test_rates_grow_by_a_constant_factor_from_start_to_end(model, config, loaders, steps):
    lrs, losses = utils.range_test(model, loaders[0], config, 1e-4, 1e-2)
    assert [lr for lr, _ in steps] == lrs, "the rates used"
    np.testing.assert_allclose(lrs, np.geomspace(1e-4, 1e-2, 40))
    assert len(losses) == 40


def test_each_loss_is_that_before_its_step(model, config, loaders):
    images, labels = next(iter(loaders[1]))
    before = take_snapshot(model)["values"]
    _, losses = utils.range_test(model, [(images, labels)], config, 1e-3, 1e-2)
    assert take_snapshot(model)["values"] == before
    expected = utils.compute_loss(model.train()(images), labels, config)
    assert losses[0] == pytest.approx(expected.item(), rel=1e-5)
    assert losses[1] != losses[0]


def test_test_ends_early_when_the_loss_explodes(model, config, loaders, steps):
    _, losses = utils.range_test(model, loaders[0], config, 1e-3, 1e4)
    assert 10 < len(losses) < 40
    assert len(steps) == len(losses)
    assert losses[-1] > 5 * min(losses) or not np.isfinite(losses[-1])
    for step, loss in enumerate(losses[:-1], start=1):
        assert loss <= 5 * min(losses[:step])


def test_figure_shows_the_losses_as_they_are(model, config, loaders, shown, steps):
    utils.find_lr(model, loaders[0], config, 1e-4, 1.0)
    axis = shown[0][0].axes[0]
    lrs, losses = axis.lines[0].get_xydata().T
    np.testing.assert_allclose([lr for lr, _ in steps], lrs)
    assert lrs[0] == pytest.approx(1e-4)
    assert np.std(np.diff(losses[:10])) > 0.01, "not smoothed"


def test_rates_on_the_axis_are_plain_numbers(model, config, loaders, shown):
    utils.find_lr(model, loaders[0], config)
    axis = shown[0][0].axes[0]
    axis.set_xlim(0.02, 0.09)  # less than a decade: the minor ticks have labels
    texts = [tick.get_text() for tick in axis.get_xticklabels(which="both")]
    assert any(texts)
    assert "$" not in "".join(texts)


@pytest.mark.parametrize("start_lr", [0, 1, -1, float("nan")])
def test_a_range_that_does_not_rise_is_told(model, config, loaders, start_lr):
    with pytest.raises(ValueError, match="must rise from above 0"):
        utils.find_lr(model, loaders[0], config, start_lr, 1)


def find_peak(make_config, *lr_range, **settings):
    config = make_config(train_images=96, lr_finder_steps=30, **settings)
    train_loader = utils.get_dataloaders(config)[0]
    return utils.find_lr(make_small_model(), train_loader, config, *lr_range)


def test_peak_does_not_depend_on_the_number_of_epochs(make_config):
    assert find_peak(make_config, epochs=1) == find_peak(make_config, epochs=40)


def test_only_a_figure_is_kept(make_config, tmp_path):
    find_peak(make_config)
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["lr_finder.png"]


def test_a_loss_that_hardly_rose_is_told(make_config, capsys):
    find_peak(make_config)
    assert "higher end_lr" not in capsys.readouterr().out
    find_peak(make_config, 1e-4, 1e-2)
    assert "hardly rose: try a higher end_lr" in capsys.readouterr().out


# --- What it leaves as it was ---------------------------------------------------------------------
class Buffered(nn.Module):
    """Count the batches in a buffer that is not saved, and average in one that is."""

    def __init__(self):
        super().__init__()
        self.network = make_small_model()
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.seen += 1
        return self.network(x)


def make_frozen():
    model = Buffered()
    model.network[1].eval()
    model.network[0].requires_grad_(False)
    return model


MODELS = {"training": Buffered, "in eval mode": lambda: Buffered().eval(), "frozen": make_frozen}


@pytest.mark.parametrize("kind", MODELS)
def test_finder_leaves_model_and_random_numbers_as_they_were(config, loaders, kind):
    model = MODELS[kind]()
    before = take_snapshot(model)
    utils.find_lr(model, loaders[0], config)
    assert take_snapshot(model) == before


@pytest.mark.parametrize("kind", MODELS)
def test_finder_leaves_all_as_it_was_after_ctrl_c(config, loaders, kind):
    model = MODELS[kind]()
    before = take_snapshot(model)
    with pytest.raises(KeyboardInterrupt), interrupt_step(5):
        utils.find_lr(model, loaders[0], config)
    assert take_snapshot(model) == before


def fit(model, loader, config):
    return utils.fit_one_cycle(model, loader, [*loader], 0.01, config)


@pytest.mark.parametrize("start", [utils.range_test, fit])
def test_layers_train_in_the_modes_that_you_gave_them(config, loaders, start):
    model = nn.Sequential(*make_small_model(), nn.Dropout(0.5))
    model[1].eval()
    model[6].eval()
    seen = []

    def note(*_):
        if model.training:
            seen.append((model[0].training, model[1].training, model[6].training))

    model[2].register_forward_hook(note)
    start(model, loaders[0], config)
    assert set(seen) == {(True, False, False)}


@pytest.mark.parametrize("start", [utils.range_test, fit])
def test_a_model_that_was_evaluated_trains_as_a_whole(config, loaders, start):
    model = make_small_model().eval()
    modes = []

    def note(layer, *_):
        if torch.is_grad_enabled():  # no look at what it answers
            modes.append(layer.training)

    model[1].register_forward_hook(note)
    start(model, loaders[0], config)
    assert modes[0]


# --- Networks of all kinds ------------------------------------------------------------------------
class Remembering(nn.Module):
    """Keep the last features, as for a look at them afterwards."""

    def __init__(self):
        super().__init__()
        self.network = make_small_model()

    def forward(self, x):
        self.features = self.network[:5](x)
        return self.network[5](self.features)


class Noted(nn.Sequential):
    """Save a note beside the weights."""

    note = "trained at home"

    def get_extra_state(self):
        return {"note": self.note}

    def set_extra_state(self, state):
        self.note = state["note"]


class Lazy(nn.Module):
    """Make a table in the first pass, which is not saved."""

    def __init__(self):
        super().__init__()
        self.network = make_small_model()

    def forward(self, x):
        if not hasattr(self, "table"):
            self.register_buffer("table", torch.zeros(3, 1, 1), persistent=False)
        return self.network(x + self.table)


def make_normed(weight_norm):
    model = make_small_model()
    weight_norm(model[0])
    weight_norm(model[5])
    return model


def make_remembering():
    model = Remembering()
    model(torch.zeros(2, 3, 32, 32))
    return model


NETWORKS = {
    "keeps its features": make_remembering,
    "old weight_norm": lambda: make_normed(nn.utils.weight_norm),
    "new weight_norm": lambda: make_normed(nn.utils.parametrizations.weight_norm),
    "extra state": lambda: Noted(*make_small_model()),
    "makes a buffer in its first pass": Lazy,
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_finder_and_training_work(config, loaders, kind):
    model = NETWORKS[kind]()
    max_lr = utils.find_lr(model, loaders[0], config)
    history = utils.fit_one_cycle(model, *loaders, max_lr, config)
    assert history["train_loss"][1] < history["train_loss"][0]


def test_extra_state_is_given_back(config, loaders):
    model = Noted(*make_small_model())
    model.register_forward_hook(lambda *_: setattr(model, "note", "changed in a pass"))
    utils.find_lr(model, loaders[0], config)
    assert model.note == "trained at home"


# --- Before it begins -----------------------------------------------------------------------------
@pytest.mark.parametrize("start", [utils.find_lr, fit])
def test_a_model_on_another_device_is_told_at_once(make_config, loaders, steps, start):
    config = make_config(device="meta")  # stands for a GPU
    with pytest.raises(ValueError, match=r"^The model is on cpu.* meta[^\n]*$"):
        start(make_small_model(), loaders[0], config)
    assert not steps


@pytest.mark.parametrize("start", [utils.find_lr, fit])
def test_a_model_of_other_classes_is_told_at_once(config, loaders, steps, start):
    with pytest.raises(ValueError, match=r"^The model's output .*num_classes=10[^\n]*$"):
        start(make_small_model(3), loaders[0], config)
    assert not steps


def test_an_overflow_in_float16_is_told_as_such(config, pretend_gpu):
    pretend_gpu((7, 5))
    images, labels = make_data(32)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    with pytest.raises(FloatingPointError, match="float32"):
        utils.find_lr(model, [(1e6 * images, labels)], config)


# --- Which peak it chooses ------------------------------------------------------------------------
LRS = np.geomspace(1e-4, 10, 100)
MULTIPLES = {"muon": 2, "sgd": 3, "adamw": 2}


def make_losses(lowest=0.1):
    """A loss that falls along a sigmoid, is lowest near a learning rate, and explodes beyond."""
    x = np.log10(LRS) - np.log10(lowest)
    return 2.3 - 1 / (1 + np.exp(-4 * (x + 1))) + np.exp(np.minimum(6 * x, 20)) / 20


@pytest.mark.parametrize("optimizer", MULTIPLES)
@pytest.mark.parametrize(("lowest", "noise"), [(0.01, 0.0), (0.01, 0.05), (1.0, 0.05)])
def test_peak_is_a_multiple_of_the_rate_of_the_lowest_loss(optimizer, lowest, noise):
    losses = make_losses(lowest)
    expected = MULTIPLES[optimizer] * LRS[np.argmin(losses)]
    noisy = losses + noise * np.random.default_rng(0).standard_normal(100)
    peak = utils.choose_peak(LRS, noisy, optimizer)
    assert peak == pytest.approx(expected, rel=0.5 if noise else 0.15)


def test_few_noisy_steps_lead_to_nearly_the_same_peak():
    rates = np.geomspace(1e-3, 0.3, 18)
    x = np.log10(rates) - np.log10(0.02)
    peaks = []
    for seed in range(20):
        noise = 0.05 * np.random.default_rng(seed).standard_normal(18)
        peaks.append(utils.choose_peak(rates, 2.2 + 0.3 * x**2 + noise, "muon"))
    assert max(peaks) / min(peaks) < 4.1, "three steps, each a factor of 1.4"


def test_a_search_that_ended_by_itself_needs_no_higher_end(
    model, config, loaders, monkeypatch, capsys
):
    rates = [*np.geomspace(1e-3, 1e-2, 20)]
    monkeypatch.setattr(utils, "range_test", lambda *_: (rates, [*np.linspace(2, 1, 20)]))
    utils.find_lr(model, loaders[0], config)
    assert "higher end_lr" not in capsys.readouterr().out


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_comes_after_the_first_infinite_loss_does_not_count(bad):
    losses = make_losses()
    losses[40:] = np.linspace(0.5, 0.1, 60)
    losses[50:60] = bad
    assert utils.choose_peak(LRS, losses, "muon") == pytest.approx(2 * LRS[49])
    assert len(utils.smooth(losses)) == 50


@pytest.mark.parametrize("losses", [np.geomspace(2, 9, 50), np.full(50, np.nan), [2.3, np.inf]])
def test_a_loss_that_never_falls_is_told(losses):
    with pytest.raises(ValueError, match=r"start below 0\.0001.*check the data"):
        utils.choose_peak(LRS[: len(losses)], losses, "muon")


def test_figure_marks_the_peak_and_what_courses_would_choose(config, shown):
    losses = make_losses(0.1)
    lowest = LRS[np.argmin(losses)]
    utils.plot_lr_finder([*LRS], [*losses], 2 * lowest, config)
    marked = {
        line.get_label().split(":")[0]: line.get_xdata()[0] for line in shown[0][0].axes[0].lines
    }
    assert marked["our peak"] == pytest.approx(2 * lowest)
    assert marked["a tenth of that"] == pytest.approx(lowest / 10)
    assert marked["steepest fall"] == pytest.approx(0.01, rel=0.3)
    assert marked[f"lowest at {lowest:.2g}"] == pytest.approx(lowest)


def test_a_fall_after_the_blow_up_is_not_the_steepest(config, shown):
    losses = make_losses(0.1)
    losses[85:] = np.linspace(losses[84], 1.5, 15)  # steep, and still above the lowest
    utils.plot_lr_finder([*LRS], [*losses], 0.2, config)
    labels = [line.get_label() for line in shown[0][0].axes[0].lines]
    (label,) = [label for label in labels if label.startswith("steepest")]
    assert float(label.split()[-1]) == pytest.approx(0.01, rel=0.3)


@pytest.mark.parametrize(("lowest", "is_told"), [(2, True), (4, False)])
def test_a_loss_that_only_fell_by_the_smoothing_is_told(lowest, is_told):
    losses = np.abs(np.arange(50) - lowest) / 10.0
    smoothed = utils.smooth(losses).argmin()
    assert (smoothed < 3) == is_told, "so the curve is at the limit"
    if is_told:
        with pytest.raises(ValueError, match="only rises"):
            utils.choose_peak(LRS[:50], losses, "muon")
    else:
        assert utils.choose_peak(LRS[:50], losses, "muon") == 2 * LRS[smoothed]


def test_the_peak_is_seen_even_beyond_what_was_tried(config, shown):
    utils.plot_lr_finder([*LRS], [*np.linspace(2, 1, 100)], 20.0, config)
    assert shown[0][0].axes[0].get_xlim()[1] > 20


def test_figure_does_not_give_half_of_its_width_to_the_blow_up(config, shown):
    utils.plot_lr_finder([*LRS], [*make_losses(0.01)], 0.02, config)
    left, right = np.log(shown[0][0].axes[0].get_xlim())
    assert (np.log(0.02) - left) / (right - left) > 0.6


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_finder_tells_that_its_rule_was_made_for_muon(make_config, capsys, optimizer):
    find_peak(make_config)
    assert "made for Muon" not in capsys.readouterr().out
    find_peak(make_config, optimizer=optimizer)
    assert f"{optimizer}, compare a few peaks" in capsys.readouterr().out


def test_finder_starts_lower_for_adamw(make_config, shown):
    starts = {}
    for optimizer in MULTIPLES:
        find_peak(make_config, optimizer=optimizer)
        starts[optimizer] = shown[-1][0].axes[0].lines[0].get_xdata()[0]
    assert starts == pytest.approx({"muon": 1e-3, "sgd": 1e-3, "adamw": 1e-5})
