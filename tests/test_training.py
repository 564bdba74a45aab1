"""The optimizers, OneCycle, one epoch of training, one pass of testing."""

import copy
import importlib
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset
from torchvision.transforms import Compose

import utils
from helpers import interrupt_step, make_data, make_small_model, take_snapshot
from models.resnet import ResNet18


def train_once(model, loader, lr, config):
    """Train for one epoch with plain SGD, whose learning rate is constant."""
    optimizer = torch.optim.SGD(model.parameters(), lr)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
    return utils.train(model, loader, optimizer, scheduler, utils.get_scaler(config), config)


# --- Losses and accuracies ------------------------------------------------------------------------
@pytest.mark.parametrize("is_training", [True, False])
def test_losses_are_means_over_images_whatever_the_batches(model, config, make_loader, is_training):
    images, labels = make_data(25)
    loader = make_loader(images, labels, 7)
    twin = copy.deepcopy(model).train(is_training)
    if is_training:
        loss, accuracy, _ = train_once(model.eval(), loader, 0.0, config)
    else:
        loss, accuracy = utils.test(model, loader)
    with torch.no_grad():
        logits = torch.cat([twin(batch) for batch in images.split(7)])
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())


def test_training_optimises_the_smoothed_loss(model, config, make_loader):
    images, labels = make_data(16)
    twin = copy.deepcopy(model)
    train_once(model, make_loader(images, labels, 16), 0.1, config)
    F.cross_entropy(twin(images), labels, label_smoothing=config.label_smoothing).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.1 * q.grad)


@pytest.mark.parametrize("optimizer", utils.OPTIMIZERS)
def test_no_reading_from_the_device_in_the_loop(config, steps, monkeypatch, optimizer):
    """On a device that only knows shapes, so that whatever wants a number fails."""
    float32 = utils.get_autocast(config.device)
    monkeypatch.setattr(utils, "get_autocast", lambda *_: float32)
    scaler = utils.get_scaler(config)
    config = replace(config, device=torch.device("meta"), optimizer=optimizer)
    model = make_small_model().to("meta")
    batch = torch.empty(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64)
    chosen = utils.get_optimizer(model, 0.1, config)
    scheduler = torch.optim.lr_scheduler.ConstantLR(chosen)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        utils.train(model, [batch] * 3, chosen, scheduler, scaler, config)
    assert len(steps) == 3, "all steps were made before the first reading"


# --- The optimizers -------------------------------------------------------------------------------
FILTERS = ("0.weight", "1.weight", "2.weight", "3.weight")


def make_layers():
    """Return four layers with filters, the last of which are zeros, and all else that trains."""
    model = nn.Sequential(
        nn.Conv1d(3, 8, 3),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv3d(3, 8, 3),
        nn.Conv1d(1, 1, 1),
        nn.ConvTranspose1d(3, 8, 3),
        nn.ConvTranspose2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Linear(8, 10),
    )
    model.tokens = nn.Parameter(torch.randn(1, 4, 5, 6))  # four dimensions, but no filters
    nn.init.zeros_(model[3].weight)
    return model


def make_steps(model, optimizer):
    """Make three steps of random gradients, always the same."""
    torch.manual_seed(1)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", ["muon", "sgd"])
def test_what_is_no_filter_trains_by_sgd_and_biases_do_not_decay(make_config, momentum, name):
    model = make_layers()
    twin = copy.deepcopy(model)
    config = make_config(momentum=momentum, weight_decay=0.1, optimizer=name)
    groups = [{"params": [p], "weight_decay": 0.1 * (p.ndim > 1)} for p in twin.parameters()]
    plain = torch.optim.SGD(groups, 0.1, momentum=momentum, nesterov=momentum > 0)
    make_steps(model, utils.get_optimizer(model, 0.1, config))
    make_steps(twin, plain)
    for key, value in twin.state_dict().items():
        if name == "sgd" or key not in FILTERS:
            torch.testing.assert_close(model.state_dict()[key], value)


def test_adamw_is_pytorchs_with_a_decay_of_its_own_and_none_for_biases(make_config):
    model = make_layers()
    twin = copy.deepcopy(model)
    config = make_config(optimizer="adamw", momentum=0.8)
    groups = [{"params": [p], "weight_decay": 0.05 * (p.ndim > 1)} for p in twin.parameters()]
    make_steps(model, utils.get_optimizer(model, 0.1, config))
    make_steps(twin, torch.optim.AdamW(groups, 0.1, betas=(0.8, 0.999)))
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value)


def test_labels_that_are_no_whole_numbers_are_told(model):
    images, labels = make_data(8)
    with pytest.raises(ValueError, match="whole numbers"):
        utils.predict(model, [(images, labels.float())])


@pytest.mark.parametrize("optimizer", utils.OPTIMIZERS)
def test_momentum_may_be_a_whole_0(make_config, optimizer):
    model = make_layers()
    before = copy.deepcopy(model.state_dict())
    make_steps(model, utils.get_optimizer(model, 0.1, make_config(optimizer=optimizer, momentum=0)))
    assert any(not value.equal(before[key]) for key, value in model.state_dict().items())


def test_filters_do_not_decay(make_config):
    found = []
    for decay in (0.0, 0.5):
        torch.manual_seed(0)
        model = make_layers()
        make_steps(model, utils.get_optimizer(model, 0.1, make_config(weight_decay=decay)))
        found.append([model.state_dict()[key] for key in FILTERS])
    torch.testing.assert_close(*found)


def test_filters_turn_and_keep_their_norm(make_config):
    model = make_layers()
    start = copy.deepcopy(model.state_dict())
    make_steps(model, utils.get_optimizer(model, 0.1, make_config(weight_decay=0.1)))
    for key in FILTERS:
        value = model.state_dict()[key]
        assert not torch.allclose(value, start[key], rtol=0.05), "even what begins at zero"
        if start[key].any():
            torch.testing.assert_close(value.norm(), start[key].norm())


def test_steps_are_orthogonal_and_lr_is_their_relative_size(config):
    lr = 0.01
    model = ResNet18()
    before = copy.deepcopy(model.state_dict())
    for p in model.parameters():
        p.grad = 1e-3 * torch.randn_like(p)  # the size of a gradient does not count
    utils.get_optimizer(model, lr, config).step()
    for name, p in model.named_parameters():
        if p.ndim == 4 and not name.startswith("layer4"):  # its filters take seconds here
            change = (before[name] - p.detach()).flatten(1) / before[name].norm()
            u, _, v = torch.linalg.svd(p.grad.flatten(1), full_matrices=False)
            singular = torch.einsum("ij,ik,kj->k", change, u, v) * (len(p) ** 0.5 / lr)
            assert singular.min() > 0.5, name
            assert singular.max() < 1.4, name


# --- OneCycle -------------------------------------------------------------------------------------
def fit(model, config, max_lr=0.05):
    return utils.fit_one_cycle(model, *utils.get_dataloaders(config), max_lr, config)


def test_every_step_follows_one_cycle(model, make_config, steps):
    history = fit(model, make_config(epochs=10, batch_size=32, train_images=64))
    used = [lr for lr, _ in steps]
    expected = np.interp(range(20), [0, 3, 19], [2e-3, 0.05, 2e-7])
    assert used == pytest.approx(expected, abs=1e-8)
    assert history["lr"] == used, "the history shows the learning rates used"


@pytest.mark.parametrize("optimizer", utils.OPTIMIZERS)
def test_momentum_is_not_cycled(model, make_config, steps, optimizer):
    fit(model, make_config(train_images=64, optimizer=optimizer, momentum=0.8))
    assert {momentum for _, momentum in steps} == {0.8}


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_runs_of_a_few_steps_have_a_warm_up_of_one_or_less(model, make_config, epochs):
    lrs = fit(model, make_config(epochs=epochs, train_images=32))["lr"]
    assert len(lrs) == epochs
    assert all(0 <= lr <= 0.0501 for lr in lrs)


def test_learning_rate_can_follow_a_cosine(model, make_config):
    lrs = fit(model, make_config(epochs=5, train_images=32, anneal_strategy="cos"))["lr"]
    assert lrs[1] == pytest.approx(0.05 * (1 + 0.5**0.5) / 2), "not a straight line"


@pytest.mark.parametrize("max_lr", [0, -1.0, None, "0.05", float("nan"), float("inf")])
def test_a_peak_that_is_no_number_above_zero_is_told(model, config, loaders, max_lr):
    with pytest.raises(ValueError, match=r"max_lr is .* a number above 0"):
        utils.fit_one_cycle(model, *loaders, max_lr, config)


# --- What training gives --------------------------------------------------------------------------
def test_history_is_complete(model, config, loaders):
    history = utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert {name: len(values) for name, values in history.items()} == {
        "train_loss": 2,
        "train_accuracy": 2,
        "test_loss": 2,
        "test_accuracy": 2,
        "seconds": 2,
        "lr": 6,
    }


def test_history_ends_with_the_returned_model(model, config, loaders):
    history = utils.fit_one_cycle(model, *loaders, 0.05, config)
    loss, accuracy = utils.test(model, loaders[1])
    assert history["test_loss"][-1] == loss
    assert history["test_accuracy"][-1] == accuracy


def test_returned_model_is_ready_to_be_used(model, config, loaders):
    utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert not any(module.training for module in model.modules())


def test_frozen_layers_stay_so_in_every_epoch(model, config, loaders):
    before = model[1].eval().running_mean.clone()
    utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert torch.equal(model[1].running_mean, before)


def test_log_is_one_bar_and_one_line_an_epoch_on_stdout(model, config, loaders, capsys):
    history = utils.fit_one_cycle(model, *loaders, 0.05, config)
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line for line in lines if line.startswith("Epoch")] == ["Epoch 1", "Epoch 2"]
    assert "Loss=" in printed.out
    assert "3/3" in printed.out
    assert lines[-1].startswith("Test set: Average loss: ")
    assert f"({history['test_accuracy'][-1]:.2f}%)" in lines[-1]
    assert printed.err == ""


# --- CutOut ends for the last epochs --------------------------------------------------------------
def note_cuts(model):
    """Return a list that will hold, for each training batch, whether its images were cut out."""
    cuts = []

    def note(module, inputs):
        if module.training:
            # No pixel of a digit is the mean, so that 0 comes from CutOut alone.
            cuts.append(bool((inputs[0] == 0).any()))

    model.register_forward_pre_hook(note)
    return cuts


def is_cut(loader):
    return bool((next(iter(loader))[0] == 0).any())


def test_the_last_epochs_are_without_cutout(model, config, loaders):
    config = replace(config, epochs=10, cutout_free_fraction=0.7)  # 1 - 0.7 is above 0.3
    cuts = note_cuts(model)
    utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert cuts == 9 * [True] + 21 * [False]


def test_cutout_is_back_after_training(model, config, loaders):
    config = replace(config, cutout_free_fraction=0.5)
    utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert is_cut(loaders[0])


def test_cutout_is_back_after_ctrl_c(model, config, loaders):
    config = replace(config, cutout_free_fraction=0.5)
    with interrupt_step(5), pytest.raises(KeyboardInterrupt):
        utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert is_cut(loaders[0])


def test_cutouts_of_other_loaders_are_not_switched(model, config, loaders):
    other = utils.CutOut(16)
    seen = []

    def look(*_):
        seen.append(bool((other(torch.ones(1, 3, 32, 32)) == 0).any()))

    model.register_forward_pre_hook(look)
    config = replace(config, cutout_free_fraction=0.5)
    utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert set(seen) == {True}


def test_cutout_ends_after_a_reload_with_loaders_kept(model, config, loaders):
    before = vars(utils).copy()
    cuts = note_cuts(model)
    try:
        importlib.reload(utils)
        config = replace(config, cutout_free_fraction=0.5)
        utils.fit_one_cycle(model, *loaders, 0.05, config)
    finally:
        vars(utils).update(before)
    assert cuts == 3 * [True] + 3 * [False]
    assert is_cut(loaders[0])


class Pairs(Dataset):
    """Hold a dataset in an attribute of its own name."""

    def __init__(self, source):
        self.dataset = source

    def __len__(self):
        return len(self.dataset)

    def __getitems__(self, indices):
        return self.dataset.__getitems__(indices)


def nest(dataset):
    dataset.transform = Compose([Compose([dataset.transform])])
    return dataset


NESTED = {
    "Compose": nest,
    "Subset": lambda dataset: Subset(Subset(dataset, range(80)), range(80)),
    "a wrapper": Pairs,
    "CutOut alone": lambda dataset: dataset,
    "ConcatDataset": lambda dataset: ConcatDataset([dataset, dataset]),
}


@pytest.mark.parametrize("kind", NESTED)
def test_cutout_is_found_wherever_a_loader_holds_it(model, config, loaders, kind):
    dataset = NESTED[kind](loaders[0].dataset)
    collate = None if kind == "ConcatDataset" else tuple
    loader = DataLoader(dataset, 80, shuffle=True, collate_fn=collate)
    cuts = note_cuts(model)
    config = replace(config, cutout_free_fraction=0.5)
    utils.fit_one_cycle(model, loader, loaders[1], 0.05, config)
    half = len(cuts) // 2
    assert cuts == half * [True] + half * [False]


def test_worker_processes_see_that_cutout_ends(model, config, loaders):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["utils"])
    loader = DataLoader(
        loaders[0].dataset,
        40,
        num_workers=1,
        collate_fn=tuple,
        multiprocessing_context=context,
    )
    cuts = note_cuts(model)
    config = replace(config, cutout_free_fraction=0.5)
    utils.fit_one_cycle(model, loader, loaders[1], 0.05, config)
    assert cuts == 2 * [True] + 2 * [False]


def fit_on(model, loader, config):
    return utils.fit_one_cycle(model, loader, loader, 0.05, config)


@pytest.mark.parametrize("start", [utils.find_lr, fit_on])
def test_workers_that_would_not_see_it_are_refused(model, config, loaders, steps, start):
    dataset = loaders[0].dataset
    loader = DataLoader(dataset, 40, num_workers=1, collate_fn=tuple, persistent_workers=True)
    with pytest.raises(ValueError, match=r"^[^\n]*persistent_workers[^\n]*$"):
        start(model, loader, config)
    assert not steps


def test_workers_may_persist_where_nothing_is_cut_out(model, config, loaders):
    data = TensorDataset(*make_data(64))
    loader = DataLoader(data, 32, shuffle=True, num_workers=1, persistent_workers=True)
    history = utils.fit_one_cycle(model, loader, loaders[1], 0.05, config)
    assert len(history["lr"]) == 4


# --- Precision ------------------------------------------------------------------------------------
def note_dtypes(model):
    """Return a set that will hold the dtypes in which the first layer computes."""
    dtypes = set()
    model[0].register_forward_hook(lambda *values: dtypes.add(values[-1].dtype))
    return dtypes


def run_all(config, loaders):
    """Search, train and predict; return all that could depend on the precision."""
    model = make_small_model()
    dtypes = note_dtypes(model)
    max_lr = utils.find_lr(model, loaders[0], config)
    foreign = list(loaders[1])  # without settings of its own
    history = utils.fit_one_cycle(model, loaders[0], foreign, max_lr, config)
    utils.plot_confusion_matrix(model, foreign, config)
    logits, _ = utils.predict(model, loaders[1])
    assert logits.dtype == torch.float32, "for exact losses"
    assert history["train_loss"][-1] < history["train_loss"][0]
    return dtypes, max_lr, take_snapshot(model)["values"], logits.tolist()


GPUS = {"T4": ((7, 5), torch.float16), "A100": ((8, 0), torch.bfloat16)}


@pytest.mark.parametrize("gpu", GPUS)
def test_precision_of_a_gpu_reaches_every_pass(config, loaders, pretend_gpu, gpu):
    """A CPU can do both, if slowly."""
    capability, dtype = GPUS[gpu]
    pretend_gpu(capability)
    assert run_all(config, loaders)[0] == {dtype}


def test_bfloat16_is_used_where_a_cpu_has_it(config, loaders, native_bfloat16):
    assert run_all(config, loaders)[0] == {torch.float32}
    native_bfloat16()
    assert run_all(config, loaders)[0] == {torch.bfloat16}
    assert "bfloat16" in utils.describe_machine(config)


def test_float32_turns_mixed_precision_off_everywhere(config, loaders, native_bfloat16):
    """The same bits as on a CPU that knows no bfloat16, Muon's steps included."""
    plain = run_all(config, loaders)
    native_bfloat16()
    config = replace(config, precision="float32")
    assert run_all(config, utils.get_dataloaders(config)) == plain
    assert "in float32" in utils.describe_machine(config)


@pytest.mark.parametrize(("gpu", "scale"), [("T4", 1024), ("A100", 1)])
def test_loss_is_scaled_in_float16_only_and_by_no_more_than_it_bears(
    config, pretend_gpu, gpu, scale
):
    pretend_gpu(GPUS[gpu][0])
    assert utils.get_scaler(config).get_scale() == scale
    assert utils.get_scaler(replace(config, precision="float32")).get_scale() == 1


def make_overflow(positions):
    """Return four batches; in float16, the images of some are too large."""
    torch.manual_seed(0)
    batches = []
    for i in range(4):
        images, labels = make_data(8 + i)
        batches.append((1e6 * images if i in positions else images, labels))
    return batches


def make_linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))


@pytest.mark.parametrize("position", [0, 1])
def test_a_step_that_overflowed_is_left_out_of_the_epoch(config, pretend_gpu, steps, position):
    pretend_gpu((7, 5))
    model = make_linear()
    batches = make_overflow([position])
    good = [batch for i, batch in enumerate(batches) if i != position]
    images = torch.cat([images for images, _ in good])
    labels = torch.cat([labels for _, labels in good])
    expected, _ = utils.test(model, [(images, labels)])
    loss, _, lrs = train_once(model, batches, 1e-9, config)
    assert loss == pytest.approx(expected, rel=1e-3)
    assert len(steps) == 3
    assert len(lrs) == 4
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("positions", [[3], [0, 1, 2, 3]])
def test_an_epoch_that_ends_in_an_overflow_names_float32(config, pretend_gpu, positions):
    pretend_gpu((7, 5))
    with pytest.raises(FloatingPointError, match=r"^[^\n]*float16[^\n]*precision='float32'[^\n]*$"):
        train_once(make_linear(), make_overflow(positions), 1e-9, config)


def test_a_prediction_that_overflows_names_float32(pretend_gpu):
    pretend_gpu((7, 5))
    with pytest.raises(FloatingPointError, match="precision='float32'"):
        utils.predict(make_linear(), make_overflow([2]))


def test_a_gpu_of_float16_can_train_in_float32(config, pretend_gpu, steps):
    pretend_gpu((7, 5))
    config = replace(config, precision="float32")
    train_once(make_linear(), make_overflow([1]), 1e-9, config)
    utils.predict(make_linear(), make_overflow([1]), "float32")
    assert len(steps) == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_nan_is_told_with_its_step_and_nothing_of_float16(config, native_bfloat16, dtype):
    if dtype == "bfloat16":
        native_bfloat16()
    batches = make_overflow([])
    batches[2][0][5] = torch.nan
    with pytest.raises(FloatingPointError, match=r"nan in step 3 .*smaller max_lr") as caught:
        train_once(make_linear(), batches, 0.1, config)
    assert "float16" not in str(caught.value)


def test_a_nan_leaves_no_checkpoint_and_no_history(model, config):
    batches = make_overflow([])
    broken = make_overflow([])
    broken[2][0][5] = torch.nan
    with pytest.raises(FloatingPointError, match="check the images"):
        utils.fit_one_cycle(model, batches, broken, 0.05, config)
    with pytest.raises(FloatingPointError, match="check the images"):
        utils.fit_one_cycle(model, broken, batches, 0.05, config)
    assert not config.output_dir.exists()


# --- Memory ---------------------------------------------------------------------------------------
class WithFeatures(nn.Module):
    """Answer with logits and features, as networks with an auxiliary head do."""

    def __init__(self):
        super().__init__()
        self.network = make_small_model()

    def forward(self, images):
        return self.network(images), images


def test_a_model_that_returns_more_than_logits_is_told(config, loaders):
    model = WithFeatures()
    for start in (
        lambda: utils.find_lr(model, loaders[0], config),
        lambda: utils.fit_one_cycle(model, *loaders, 0.05, config),
        lambda: utils.predict(model, loaders[1]),
    ):
        with pytest.raises(ValueError, match=r"^The model returns a tuple[^\n]*logits\.$"):
            start()


def test_images_reach_the_model_contiguous_from_any_loader(model, config, loaders):
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    images, labels = make_data(64)
    channels_last = images.to(memory_format=torch.channels_last)
    foreign = [(channels_last, labels), (images.transpose(2, 3), labels)]
    for loader, test_loader in (loaders, (foreign, foreign)):
        utils.find_lr(model, loader, config)
        utils.fit_one_cycle(model, loader, test_loader, 0.05, config)
        utils.predict(model, loader)
    assert set(seen) == {True}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_weights_keep_their_memory_format(config, loaders, memory_format):
    model = make_small_model().to(memory_format=memory_format)
    before = take_snapshot(model)["strides"]
    utils.find_lr(model, loaders[0], config)
    assert take_snapshot(model)["strides"] == before
    utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert take_snapshot(model)["strides"] == before


class Viewed(nn.Module):
    """Look at the maps of a convolution as rows, as only contiguous ones can be."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.linear = nn.Linear(4 * 16 * 16, 10)

    def forward(self, x):
        return self.linear(self.convolution(x).view(len(x), -1))


class Volume(nn.Module):
    """Take the channels of an image as depth."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv3d(1, 4, 3, stride=2)
        self.linear = nn.Linear(4 * 15 * 15, 10)
        self.register_buffer("scale", torch.ones(1, 1, 1, 1, 1))

    def forward(self, x):
        return self.linear(self.convolution(x[:, None] * self.scale).flatten(1))


class Weighted(nn.Module):
    """Look at filters of its own as a matrix."""

    def __init__(self):
        super().__init__()
        self.filters = nn.Parameter(torch.randn(4, 3, 3, 3) / 9)
        self.linear = nn.Linear(4 * 10 * 10, 10)

    def forward(self, x):
        norms = self.filters.view(4, -1).norm(dim=1)
        maps = F.conv2d(x, self.filters / norms.view(4, 1, 1, 1), stride=3)
        return self.linear(maps.flatten(1))


@pytest.mark.parametrize("kind", [Viewed, Volume, Weighted])
def test_networks_that_want_contiguous_memory_train(config, loaders, kind):
    model = kind()
    max_lr = utils.find_lr(model, loaders[0], config, 1e-4, 1.0)
    history = utils.fit_one_cycle(model, *loaders, max_lr / 4, config)
    assert history["train_loss"][1] < history["train_loss"][0]


HAS_BFLOAT16 = torch.cpu._is_avx512_bf16_supported()


@pytest.mark.parametrize("groups", [1, 24])
def test_gradients_of_dilated_convolutions_are_right(config, native_bfloat16, groups):
    """With the images as other loaders may give them, channels last."""
    torch.manual_seed(0)
    images, labels = make_data(16)
    images = images.to(memory_format=torch.channels_last)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 1),
        nn.Conv2d(24, 24, 3, padding=2, dilation=2, groups=groups),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 32 * 32, 10),
    )
    F.cross_entropy(model(images.contiguous()), labels).backward()
    exact = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    if HAS_BFLOAT16:
        native_bfloat16()
    F.cross_entropy(utils.forward(model, images), labels).backward()
    for p, gradient in zip(model.parameters(), exact, strict=True):
        assert (p.grad - gradient).norm() < 0.1 * gradient.norm()


# --- Models that do not fit the classes -----------------------------------------------------------
MISFITS = {
    "100 outputs": lambda: make_small_model(100),
    "9 outputs": lambda: make_small_model(9),
    "maps": lambda: nn.Conv2d(3, 10, 3),
    "one number": lambda: nn.Sequential(*make_small_model(), nn.Linear(10, 1), nn.Flatten(0)),
}


def draw_matrix(model, loaders, config):
    utils.plot_confusion_matrix(model, loaders[1], config)


def draw_matrix_of_a_list(model, loaders, config):
    utils.plot_confusion_matrix(model, list(loaders[1]), config)


WAYS = {
    "train": lambda model, loaders, config: train_once(model, loaders[0], 0.1, config),
    "test": lambda model, loaders, _: utils.test(model, loaders[1]),
    "predict": lambda model, loaders, _: utils.predict(model, loaders[1]),
    "get_misclassified": lambda model, loaders, _: utils.get_misclassified(model, loaders[1]),
    "confusion matrix": draw_matrix,
    "confusion matrix of a list": draw_matrix_of_a_list,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", MISFITS)
def test_a_model_that_does_not_fit_the_classes_is_told(config, loaders, kind, way):
    with pytest.raises(ValueError, match=r"^[^\n]*output[^\n]*num_classes=10[^\n]*$"):
        WAYS[way](MISFITS[kind](), loaders, config)


MEASURE = {name: WAYS[name] for name in ("test", "get_misclassified", "confusion matrix")}


@pytest.mark.parametrize("way", MEASURE)
@pytest.mark.parametrize("label", [10, -1])
def test_a_label_outside_the_classes_is_told(model, config, label, way):
    images, labels = make_data(20)
    labels[7] = label
    with pytest.raises(ValueError, match=rf"^There is a label {label}[^\n]* 0 to 9[^\n]*$"):
        MEASURE[way](model, (None, [(images, labels)]), config)


IMAGES, LABELS = make_data(20)
NO_PAIRS = {
    "a dict": {"images": IMAGES, "labels": LABELS},
    "three parts": (IMAGES, LABELS, LABELS),
    "arrays": (IMAGES.numpy(), LABELS.numpy()),
    "no labels": IMAGES,
}


@pytest.mark.parametrize("way", MEASURE)
@pytest.mark.parametrize("kind", NO_PAIRS)
def test_batches_that_are_no_pairs_of_tensors_are_told(model, config, kind, way):
    with pytest.raises(ValueError, match=r"^Each batch[^\n]*two tensors[^\n]*$"):
        MEASURE[way](model, (None, [NO_PAIRS[kind]]), config)
