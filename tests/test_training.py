"""LR finder, OneCycle, one epoch of training, one pass of testing."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tqdm
from conftest import make_small_model
from torch import nn
from torch.utils.data import DataLoader

import utils
from models.resnet import ResNet18


def state(model):
    return copy.deepcopy(model.state_dict())


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


# Losses and accuracies


@pytest.mark.parametrize("batch_size", [7, 10, 32])
def test_test_is_the_mean_over_images_whatever_the_batches(model, make_loader, batch_size, capsys):
    torch.manual_seed(1)
    images, labels = torch.randn(25, 3, 32, 32), torch.randint(0, 10, (25,))
    loss, accuracy = utils.test(model, make_loader(images, labels, batch_size))
    with torch.no_grad():
        logits = model.eval()(images)
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    correct = (logits.argmax(1) == labels).sum().item()
    assert accuracy == pytest.approx(100 * correct / 25)
    line = f"Test set: Average loss: {loss:.4f}, Accuracy: {correct}/25 ({accuracy:.2f}%)\n"
    assert capsys.readouterr().out == line


@pytest.mark.parametrize("batch_size", [7, 10, 25])
def test_train_reports_the_mean_over_images_whatever_the_batches(
    model, config, make_loader, batch_size
):
    torch.manual_seed(1)
    images, labels = torch.randn(25, 3, 32, 32), torch.randint(0, 10, (25,))
    loader = make_loader(images, labels, batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # so that the model stays as it is
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    scaler = utils._get_scaler(config.device)
    loss, accuracy = utils.train(model, loader, optimizer, scheduler, scaler, config)
    with torch.no_grad():
        logits = torch.cat([model.train()(batch) for batch in images.split(batch_size)])
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())


def test_train_steps_the_scheduler_after_every_batch(model, config, loaders):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler = utils._get_scaler(config.device)
    utils.train(model, loaders[0], optimizer, scheduler, scaler, config)
    assert scheduler.last_epoch == len(loaders[0]) == 3


def test_train_optimises_the_smoothed_loss(model, config, make_loader):
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1)
    scaler = utils._get_scaler(config.device)
    utils.train(model, make_loader(images, labels, 16), optimizer, scheduler, scaler, config)
    F.cross_entropy(twin(images), labels, label_smoothing=config.label_smoothing).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.1 * q.grad)


def test_no_reading_from_the_device_in_the_loop(config, monkeypatch):
    """On a device that only knows shapes, so that whatever wants a number fails."""
    monkeypatch.setattr(utils, "_autocast", lambda _: {"device_type": "cpu", "enabled": False})
    with torch.device("meta"):
        model = make_small_model()
        batch = torch.empty(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        utils.train(model, [batch] * 3, optimizer, scheduler, scaler, config)
    assert scheduler.last_epoch == 3, "all steps were made before the first reading"


def take_steps(optimizer, parameters, count=3):
    """Take steps along gradients that are always the same ones."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_all_but_filters_train_by_sgd(make_config, momentum):
    config = make_config(momentum=momentum, weight_decay=0.1)
    model, twin = make_small_model(), make_small_model()
    take_steps(utils._get_optimizer(model, 0.1, config), model.parameters())
    groups = [
        {"params": [p for p in twin.parameters() if p.ndim <= 1]},
        {"params": twin[5].weight, "weight_decay": 0.1},
        {"params": [twin[0].weight, twin[3].weight], "lr": 0},
    ]
    sgd = torch.optim.SGD(groups, 0.1, momentum=momentum, nesterov=momentum > 0)
    take_steps(sgd, twin.parameters())
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        if p.ndim != 4:
            torch.testing.assert_close(p, q)


def test_filters_take_orthogonal_steps_and_keep_their_norm(config):
    model = ResNet18()
    filters = {name: p for name, p in model.named_parameters() if p.ndim == 4}
    assert len(filters) == 20
    before = {name: p.detach().clone() for name, p in filters.items()}
    gradients = {name: torch.randn_like(p) for name, p in filters.items()}
    for name, p in filters.items():
        p.grad = gradients[name]
    utils._get_optimizer(model, 0.1, config).step()
    for name, p in filters.items():
        start = before[name] * len(p) ** 0.5 / before[name].norm()
        step = ((start - p.detach()) / 0.1).flatten(1)
        singular = torch.linalg.svdvals(step)
        assert 0.5 < singular.min() <= singular.max() < 1.4, name
        u, _, v = torch.linalg.svd(gradients[name].flatten(1), full_matrices=False)
        nearest = u @ v
        assert (step * nearest).sum() > 0.9 * step.norm() * nearest.norm(), name


def test_only_weights_of_linear_layers_decay(model, config):
    spared, decayed = utils._get_optimizer(model, 0.1, config).param_groups
    assert decayed["weight_decay"] == config.weight_decay > 0
    assert spared["weight_decay"] == 0
    assert [id(p) for p in decayed["params"]] == [id(model[5].weight)]
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))
    assert all(group["momentum"] == 0.9 for group in (decayed, spared))


def test_what_has_no_gradient_stays(model, config):
    model[0].weight.requires_grad_(False)
    model[5].weight.requires_grad_(False)
    before = state(model)
    optimizer = utils._get_optimizer(model, 0.1, config)
    model(torch.randn(8, 3, 32, 32)).sum().backward()
    optimizer.step()
    after = state(model)
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert torch.equal(before["5.weight"], after["5.weight"])
    assert not torch.equal(before["3.weight"], after["3.weight"])


# OneCycle


@pytest.fixture
def steps(before_steps):
    """Collect (learning rate, momentum) of every step that Muon makes."""
    made = []

    def note(muon):
        made.append((muon.param_groups[0]["lr"], muon.param_groups[0]["momentum"]))

    before_steps(note)
    return made


def test_learning_rate_follows_one_cycle_per_step(model, config, loaders, steps):
    history = utils.fit_one_cycle(model, *loaders, 0.05, config)
    used, momenta = zip(*steps, strict=True)
    assert len(used) == config.epochs * len(loaders[0]) == 6
    assert history["lr"] == list(used), "the history shows the learning rates used"
    assert set(momenta) == {0.9}, "momentum is not cycled"
    assert min(used) >= 0
    assert used[0] == pytest.approx(0.05 / 25)
    assert used[-1] < used[0] / 100


def test_learning_rate_reaches_its_peak_after_the_warm_up(model, make_config):
    config = make_config(epochs=10, batch_size=32, train_images=64)
    history = utils.fit_one_cycle(model, *utils.get_dataloaders(config), 0.05, config)
    assert max(history["lr"]) == pytest.approx(0.05)
    assert np.argmax(history["lr"]) == 3  # 20 % of 20 steps, counted from 0
    rising, falling = np.diff(history["lr"][:4]), np.diff(history["lr"][3:])
    assert (rising > 0).all()
    assert (falling < 0).all()


@pytest.mark.parametrize("epochs", [1, 2, 4, 5, 6])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.2, 0.5])
def test_any_number_of_steps_is_a_cycle(model, make_config, epochs, warmup_fraction):
    settings = {"epochs": epochs, "warmup_fraction": warmup_fraction}
    config = make_config(batch_size=32, train_images=32, **settings)
    history = utils.fit_one_cycle(model, *utils.get_dataloaders(config), 0.05, config)
    assert len(history["lr"]) == epochs
    assert all(0 <= lr <= 0.0501 for lr in history["lr"])


def test_history_is_complete_and_plain(model, config, loaders, capsys):
    history = utils.fit_one_cycle(model, *loaders, 0.05, config)
    per_epoch = {"train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"}
    assert history.keys() == per_epoch | {"lr"}
    assert all(len(history[name]) == 2 for name in per_epoch)
    assert all(type(value) is float for values in history.values() for value in values)
    printed = capsys.readouterr().out
    assert printed.count("Test set: Average loss: ") == 2
    assert f"({history['test_accuracy'][-1]:.2f}%)" in printed.splitlines()[-1], "the last is shown"
    assert "Loss=" in printed
    assert "3/3" in printed


def test_last_test_score_belongs_to_the_returned_model(model, config, loaders):
    history = utils.fit_one_cycle(model, *loaders, 0.05, config)
    loss, accuracy = utils.test(model, loaders[1])
    assert (loss, accuracy) == (history["test_loss"][-1], history["test_accuracy"][-1])


def test_running_it_twice_just_trains_again(model, config, loaders):
    first = utils.fit_one_cycle(model, *loaders, 0.05, config)
    before = state(model)
    second = utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert second["lr"] == first["lr"]
    assert second["train_loss"][0] < first["train_loss"][0], "it goes on from its weights"
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_same_seed_same_run_and_another_seed_another(config, make_config, model):
    runs = []
    for seed in (0, 0, 1):
        config = make_config(epochs=2, batch_size=32, train_images=80, seed=seed, resume=False)
        loaders = utils.get_dataloaders(config)
        twin = copy.deepcopy(model)
        history = utils.fit_one_cycle(twin, *loaders, 0.05, config)
        runs.append((history["train_loss"], state(twin)))
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert_same(runs[0][1], runs[1][1])


def test_finding_and_plotting_in_between_changes_nothing(model, config, loaders):
    plain, other = copy.deepcopy(model), copy.deepcopy(model)
    expected = utils.fit_one_cycle(plain, *loaders, 0.05, config)
    utils.find_lr(other, loaders[0], config)
    utils.plot_samples(loaders[0], config)
    utils.plot_confusion_matrix(other, loaders[1], config)
    history = utils.fit_one_cycle(other, *loaders, 0.05, config)
    assert history["train_loss"] == expected["train_loss"]
    assert_same(state(plain), state(other))


def test_training_learns(model, make_config):
    config = make_config(epochs=15, batch_size=32, train_images=512, cutout_size=0)
    history = utils.fit_one_cycle(model, *utils.get_dataloaders(config), 0.05, config)
    assert history["test_accuracy"][-1] > 60


# Precision: what a GPU would use, told from its kind alone


@pytest.mark.parametrize(
    ("capability", "dtype", "scales"),
    [((7, 5), torch.float16, True), ((8, 0), torch.bfloat16, False)],
)
def test_mixed_precision_by_gpu(monkeypatch, capability, dtype, scales):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device = torch.device("cuda")
    assert utils._autocast(device) == {"device_type": "cuda", "dtype": dtype}
    scaler = utils._get_scaler(device)
    assert scaler.is_enabled() == scales
    assert not scales or scaler._init_scale <= 4096


@pytest.mark.parametrize(("native", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_cpu_is_as_precise_as_is_fast(make_config, native_bfloat16, native, dtype, capsys):
    native_bfloat16(native)
    config = make_config()
    assert f"on CPU in {str(dtype).removeprefix('torch.')} " in capsys.readouterr().out
    with torch.autocast(**utils._autocast(config.device)):
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == dtype
    assert not utils._get_scaler(config.device).is_enabled(), "bfloat16 has the range of float32"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_reaches_every_pass(model, config, loaders, monkeypatch, dtype):
    """With float16 as on a T4, whose loss is scaled, and which a CPU can do slowly."""
    seen = []
    model[0].register_forward_hook(lambda *values: seen.append(values[-1].dtype))
    monkeypatch.setattr(utils, "_autocast", lambda _: {"device_type": "cpu", "dtype": dtype})
    assert utils._get_scaler(config.device).is_enabled() == (dtype == torch.float16)
    max_lr = utils.find_lr(model, loaders[0], config)
    history = utils.fit_one_cycle(model, *loaders, max_lr, config)
    assert set(seen) == {dtype}
    logits, _ = utils.predict(model, loaders[1])
    assert logits.dtype == torch.float32, "losses are computed in full precision"
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert history["train_loss"][-1] < history["train_loss"][0]


# The LR finder


@pytest.fixture
def curve(monkeypatch):
    """Collect the learning rates and losses that the LR finder draws."""
    seen = {}
    monkeypatch.setattr(
        utils, "_plot_lr_finder", lambda lrs, losses, *_: seen.update(lrs=lrs, losses=losses)
    )
    return seen


def test_find_lr_restores_everything(model, config, loaders):
    model.eval()
    before, random_state = state(model), torch.get_rng_state()
    max_lr = utils.find_lr(model, loaders[0], config)
    assert_same(before, state(model))
    assert torch.equal(random_state, torch.get_rng_state())
    assert not model.training
    assert type(max_lr) is float


def test_find_lr_starts_where_it_is_told(model, config, loaders, curve):
    utils.find_lr(model, loaders[0], config, start_lr=1e-4, end_lr=1.0)
    assert curve["lrs"][0] == pytest.approx(1e-4)
    expected = (1.0 / 1e-4) ** (1 / (config.lr_finder_steps - 1))
    ratios = np.array(curve["lrs"][1:]) / curve["lrs"][:-1]
    np.testing.assert_allclose(ratios, expected, rtol=1e-6)


def test_find_lr_trains_with_the_learning_rates_it_shows(model, config, loaders, curve, steps):
    utils.find_lr(model, loaders[0], config)
    np.testing.assert_allclose([lr for lr, _ in steps], curve["lrs"], rtol=1e-6)


def test_find_lr_draws_plain_text_only(model, config, loaders, capsys):
    utils.find_lr(model, loaders[0], config)
    captured = capsys.readouterr()
    assert "LR finder: " in captured.out
    assert "finder_name" not in captured.out
    assert captured.err == ""


def test_find_lr_says_when_the_loss_diverges_too_early(model, config, loaders):
    with pytest.raises(ValueError, match="too early to see a limit: start below 1e"):
        utils.find_lr(model, loaders[0], config, start_lr=1e4, end_lr=1e6)


def test_find_lr_says_when_it_stops_early(model, config, loaders, capsys):
    utils.find_lr(model, loaders[0], config, end_lr=1e6)
    assert "the loss diverged at a learning rate of" in capsys.readouterr().out
    utils.find_lr(model, loaders[0], config, start_lr=1e-4, end_lr=1e-2)
    assert "diverged" not in capsys.readouterr().out


@pytest.mark.parametrize("rises", [False, True])
def test_find_lr_says_when_the_loss_never_rises(model, config, loaders, capsys, monkeypatch, rises):
    losses = [*np.linspace(2.3, 1, 40), *([1.5, 2.0, 3.0] * rises)]
    lrs = np.logspace(-3, 0, len(losses)).tolist()
    monkeypatch.setattr(utils, "_run_range_test", lambda *_: (lrs, losses))
    utils.find_lr(model, loaders[0], config)
    assert ("up to 1, the loss never rose" in capsys.readouterr().out) != rises


def test_interrupted_range_test_restores_everything(model, config, loaders, interrupt_step):
    before = state(model)
    interrupt_step(5)
    with pytest.raises(KeyboardInterrupt):
        utils.find_lr(model.eval(), loaders[0], config)
    assert_same(before, state(model))
    assert not model.training


def test_momentum_is_defined_before_the_first_step(model, config):
    optimizer = utils._get_optimizer(model, 0.1, config)
    buffers = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    assert all((buffer == 0).all() for buffer in buffers)


def change_nothing(model, config):
    pass


def change_weights(model, config):
    with torch.no_grad():
        model[0].weight[0] += 1e-3


def damage_file(model, config):
    (config.output_dir / "lr_finder.json").write_text('{"lr": [0.1')


@pytest.mark.parametrize(
    ("change", "resume", "again"),
    [
        (change_nothing, True, False),
        (change_nothing, False, True),
        (change_weights, True, True),
        (damage_file, True, True),
    ],
)
def test_same_range_test_is_not_made_twice(
    model, make_config, change, resume, again, steps, capsys
):
    settings = {"train_images": 80, "lr_finder_steps": 40, "resume": resume}
    config = make_config(**settings)
    loader, _ = utils.get_dataloaders(config)
    first = utils.find_lr(model, loader, config)
    change(model, config)
    steps.clear()
    capsys.readouterr()
    second = utils.find_lr(model, loader, config)
    assert (len(steps) > 0) == again
    assert ("the curve is that of" in capsys.readouterr().out) != again
    assert again or first == second


def test_another_range_test_is_made(model, make_config, steps):
    settings = {"train_images": 80, "lr_finder_steps": 40}
    for count, change in enumerate(({}, {"batch_size": 16}, {"label_smoothing": 0.0}), start=1):
        config = make_config(**{**settings, **change})
        utils.find_lr(model, utils.get_dataloaders(config)[0], config, end_lr=0.01)
        assert len(steps) == 40 * count


def falling_then_rising(lrs, lowest, noise=0.0):
    """A loss that falls along a sigmoid, is lowest at a learning rate, and explodes beyond."""
    x = np.log10(lrs) - np.log10(lowest)
    loss = 2.3 - 1 / (1 + np.exp(-4 * (x + 1))) + np.exp(np.minimum(6 * x, 20)) / 20
    return loss + noise * np.random.default_rng(0).standard_normal(len(lrs))


def test_longer_runs_peak_lower(make_config):
    def find(epochs):
        config = make_config(epochs=epochs, batch_size=32, train_images=96, lr_finder_steps=20)
        return utils.find_lr(make_small_model(), utils.get_dataloaders(config)[0], config)

    assert find(40) == pytest.approx(find(10) / 2)
    assert find(1) == find(2), "the limit itself"
    assert find(10) == pytest.approx(find(1) * (25 / 30) ** 0.5)


@pytest.mark.parametrize("lowest", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_limit_is_the_last_before_half_of_the_fall_is_lost(lowest, noise):
    lrs = np.logspace(-4, 1, 200)
    losses = falling_then_rising(lrs, lowest)
    limit, smoothed = utils.find_lr_limit(lrs, falling_then_rising(lrs, lowest, noise))
    expected = lrs[np.flatnonzero(losses <= (losses.min() + losses[0]) / 2)[-1]]
    assert limit == pytest.approx(expected, rel=0.2)
    assert limit > 1.2 * lrs[np.argmin(losses)], "not the minimum, which moves with chance"
    assert len(smoothed) == 200


def test_limit_ignores_what_comes_after_a_nan():
    lrs = np.logspace(-4, 1, 200)
    losses = falling_then_rising(lrs, 0.1)
    broken = losses.copy()
    broken[150:] = np.nan
    expected, _ = utils.find_lr_limit(lrs, losses)
    limit, smoothed = utils.find_lr_limit(lrs, broken)
    assert limit == pytest.approx(expected, rel=0.2)
    assert len(smoothed) == 150


@pytest.mark.parametrize("losses", [np.linspace(2, 9, 50), np.full(50, np.nan), [2.3, np.inf]])
def test_no_limit_without_a_fall(losses):
    with pytest.raises(ValueError, match="too early"):
        utils.find_lr_limit(np.logspace(-3, 1, len(losses)), losses)


def test_any_dataloader_works(model, config):
    images, labels = torch.randn(60, 3, 32, 32), torch.arange(60) % 10
    loader = DataLoader(list(zip(images, labels.tolist(), strict=True)), 20)
    assert utils.find_lr(model, loader, config) > 0
    history = utils.fit_one_cycle(model, loader, loader, 0.01, config)
    assert len(history["test_loss"]) == 2


def test_progress_bars_are_plain_text_on_stdout(capsys):
    for _ in utils._progress_bar(range(3), desc="Some work"):
        pass
    captured = capsys.readouterr()
    assert type(utils._progress_bar([])) is tqdm.std.tqdm, "not the notebook's widget"
    assert "Some work: 100%" in captured.out
    assert captured.err == ""
