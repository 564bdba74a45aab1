"""Figures: what they show, how they are titled, and what they leave as it was."""

import time
from types import SimpleNamespace

import IPython
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.text import Text
from torch import nn
from torch.utils.data import DataLoader

import utils
from conftest import take_snapshot
from models.resnet import ResNet18

RAMP = [1.0, 2.0, 3.0, 4.0]
HISTORY = {
    **{"train_loss": RAMP[::-1], "train_accuracy": [20 * value for value in RAMP]},
    **{"test_loss": [2.0, 0.5, 0.7, 0.9], "test_accuracy": [40.0, 80.0, 78.0, 77.5]},
    **{"seconds": RAMP, "lr": [0.1, 0.4, 0.2, 0.0] * 4},
}


def misclassify(model, loader):
    return utils.get_misclassified(model, loader)


LOOKS = {
    "samples": lambda model, loaders, c: utils.plot_samples(loaders[0], c),
    "lr_finder": lambda model, loaders, c: utils.find_lr(model, loaders[0], c),
    "history": lambda model, loaders, c: utils.plot_history(HISTORY, c),
    "confusion_matrix": lambda model, loaders, c: utils.plot_confusion_matrix(model, loaders[1], c),
    "misclassified": lambda model, loaders, c: utils.plot_misclassified(
        misclassify(model, loaders[1]), c
    ),
    "gradcam": lambda model, loaders, c: utils.plot_gradcam(
        model, misclassify(model, loaders[1]), c, target_layer=model[0]
    ),
    "summary": lambda model, loaders, c: utils.show_summary(model),
    "map size": lambda model, loaders, c: utils.get_map_size(model, model[0]),
    "test": lambda model, loaders, c: utils.test(model, loaders[1]),
}
ODD = {"text.color": "red", "font.size": 25, "image.origin": "lower", "axes.grid": True}
ODD |= {"savefig.transparent": True, "savefig.facecolor": "black", "savefig.bbox": "tight"}


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_leaves_all_as_it_was_and_ignores_the_style(
    look, model, loaders, config, shown, monkeypatch
):
    monkeypatch.setattr(torch.random, "fork_rng", lambda *_, **__: pytest.fail("warns of 2 GPUs"))
    model[1].eval()  # one frozen layer
    before, pictures = take_snapshot(model), []
    for style in ("default", ["dark_background", ODD]):
        with plt.style.context(style):
            LOOKS[look](model, loaders, config)
        pictures.append({path.name: path.read_bytes() for path in config.output_dir.glob("*")})
    assert take_snapshot(model) == before
    assert pictures[0] == pictures[1]
    assert plt.get_fignums() == []
    if look in ("summary", "map size", "test"):
        return
    assert list(pictures[0]) == [f"{look}.png"]
    pixels = plt.imread(config.output_dir / f"{look}.png")
    assert (pixels[0, 0] == 1).all(), "white, and opaque"
    figure, title = shown[0]
    assert "not CIFAR-10" in title
    assert {text.get_color() for text in figure.findobj(Text)} <= {"black", "white"}
    assert figure._suptitle.get_color() == "black"


@pytest.mark.parametrize(
    ("backend", "kernel", "expected"),
    [
        ("agg", None, "printed"),
        ("module://matplotlib_inline.backend_inline", 1, "inline"),
        ("nbagg", 1, "display"),
    ],
)
@pytest.mark.parametrize("can_save", [True, False])
def test_figures_are_shown_in_every_notebook_and_told_in_a_terminal(
    make_config, tmp_path, monkeypatch, capsys, recwarn, backend, kernel, expected, can_save
):
    calls, shell = [], SimpleNamespace(**({"kernel": kernel} if kernel else {}))
    monkeypatch.setattr(plt, "get_backend", lambda: backend)
    monkeypatch.setattr(plt, "show", lambda: calls.append("inline"))
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    monkeypatch.setattr(IPython.display, "display", lambda _: calls.append("display"))
    (tmp_path / "a file").touch()
    config = make_config(output_dir=tmp_path / ("figures" if can_save else "a file"))
    capsys.readouterr()
    utils.plot_history(HISTORY, config)
    assert calls == ([] if expected == "printed" else [expected])
    told = "history.png" in capsys.readouterr().out
    assert told == (expected == "printed" and can_save)
    assert ["history.png could not be written" in str(w.message) for w in recwarn] == [True] * (
        not can_save
    )


@pytest.mark.parametrize("epochs", [4, 1])
def test_history_shows_both_curves_and_the_last_accuracy(make_config, shown, capsys, epochs):
    history = {name: values[:epochs] for name, values in HISTORY.items()}
    utils.plot_history(history, make_config("full"))
    figure, title = shown[0]
    last = HISTORY["test_accuracy"][epochs - 1]
    assert title == f"Test accuracy after epoch {epochs}: {last:.2f} %", "not the best; no caveat"
    for axis, name in zip(figure.axes, ("loss", "accuracy"), strict=False):
        lines = {line.get_label(): line for line in axis.lines}
        assert lines.keys() == {"train (augmented)", "test"}
        for label, split in (("train (augmented)", "train"), ("test", "test")):
            np.testing.assert_array_equal(lines[label].get_ydata(), history[f"{split}_{name}"])
            assert (lines[label].get_marker() == ".") == (epochs == 1), "a line needs two points"
    np.testing.assert_array_equal(figure.axes[2].lines[0].get_ydata(), history["lr"])
    assert "best" not in " ".join(text.get_text() for text in figure.findobj(Text))
    utils.plot_history({name: [] for name in HISTORY}, make_config())
    assert "no finished epoch" in capsys.readouterr().out


class Reader(nn.Module):
    """Answer with the logits that are written into the first pixels of an image."""

    def __init__(self, outputs=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)  # for GradCAM
        self.outputs = outputs

    def forward(self, images):
        return images[:, 0].flatten(1)[:, : self.outputs] + 0 * self.conv(images).mean()


@pytest.fixture
def mistakes():
    """30 images, numbered in their second channel, of which Reader gets 4, 17 and 29 wrong."""
    labels = torch.arange(30) % 10
    logits = 5.0 * torch.eye(10)[labels]
    for index, predicted, certainty in ((4, 9, 8.0), (17, 2, 12.0), (29, 0, 6.0)):
        logits[index] = certainty * torch.eye(10)[predicted]
    images = torch.zeros(30, 3, 32, 32)
    images[:, 0, 0, :10], images[:, 1] = logits, torch.arange(30).view(30, 1, 1)
    return list(zip(images, labels, strict=True))


@pytest.mark.parametrize("shuffle", [False, True])
def test_mistakes_of_all_batches_are_found_sorted_and_shown(mistakes, config, shown, shuffle):
    found = utils.get_misclassified(Reader(), DataLoader(mistakes, 8, shuffle=shuffle))
    assert found.images[:, 1, 0, 0].tolist() == [17, 4, 29]
    assert shuffle or found.indices.tolist() == [17, 4, 29]
    assert found.labels.tolist() == [7, 4, 9], "true classes"
    assert found.predictions.tolist() == [2, 9, 0]
    exponential = np.exp([12.0, 8.0, 6.0])
    np.testing.assert_allclose(found.probabilities, exponential / (exponential + 9), rtol=1e-4)
    np.testing.assert_allclose(found.losses, np.log(exponential + 9), rtol=1e-4)
    utils.plot_misclassified(found, config)
    figure, title = shown[0]
    headings = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert headings[:2] == ["predicted 2 (100%)\ntrue 7", "predicted 9 (100%)\ntrue 4"]
    assert len(headings) == 3
    assert "3 of 3 mistakes" in title


def test_confusion_matrix_has_true_classes_in_rows(mistakes, config, shown):
    loader = DataLoader([item for item in mistakes if item[1] != 5], 8)  # a class without images
    utils.plot_confusion_matrix(Reader(), loader, config)
    figure, title = shown[0]
    matrix = figure.axes[0].get_images()[0].get_array()
    assert (matrix.sum(), matrix.trace()) == (27, 24)
    assert matrix[7, 2] == matrix[4, 9] == matrix[9, 0] == 1
    assert "1 of 3 mistakes" in title
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert (labels[0], labels[5], labels[7]) == ("0: 100.0 %", "5: nan %", "7: 66.7 %")


def find_pictures(figure):
    return [axis.get_images()[0] for axis in figure.axes if axis.get_images()]


def test_pictures_have_true_colours_and_are_not_turned_or_smoothed(make_config, shown):
    config = make_config(mean=(0.1, 0.4, 0.7), std=(0.2, 0.3, 0.5), cutout_size=0, crop_padding=0)
    train_loader, test_loader = utils.get_dataloaders(config)
    train_loader.dataset.images = torch.randint(0, 256, (12, 32, 32, 3), dtype=torch.uint8)
    test_loader.dataset.images = train_loader.dataset.images
    originals = train_loader.dataset.images.numpy()
    images, labels = test_loader.dataset.__getitems__(range(12))
    found = utils.Misclassified(images, labels, labels, labels / 10, labels / 10, labels)
    conv = nn.Conv2d(3, 10, 1)
    model = nn.Sequential(nn.ReLU(inplace=True), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = images.clone()
    utils.plot_gradcam(model, found, config, target_layer=conv)
    utils.plot_misclassified(found, config)
    utils.plot_samples(train_loader, config)
    batches = [(images, labels)]
    utils.plot_misclassified(utils.get_misclassified(model, batches), config)
    assert torch.equal(images, before), "a network that works in place does not change them"
    gradcam, gallery, samples, _ = (find_pictures(figure) for figure, _ in shown)
    assert (len(gradcam), len(gallery), len(samples)) == (30, 10, 20)
    for i, original in enumerate(originals[:10]):
        for picture in (gradcam[i], gallery[i]):
            np.testing.assert_allclose(picture.get_array(), original / 255, atol=1e-5)
            assert (picture.origin, picture.get_interpolation()) == ("upper", "nearest")
        np.testing.assert_array_equal(samples[i].get_array(), original)
        augmented = samples[10 + i].get_array()
        is_mirrored = not np.allclose(augmented, original / 255, atol=1e-5)
        expected = original[:, ::-1] if is_mirrored else original
        np.testing.assert_allclose(augmented, expected / 255, atol=1e-5)


HARD_NAMES = ["$5", "$10", "$20", "a_b^2", "x" * 60, "one of very many words " * 4, *"6789"]


def test_names_are_written_as_they_are_in_two_short_lines(make_config, mistakes, shown):
    config, model, loader = make_config(classes=HARD_NAMES), Reader(), DataLoader(mistakes, 30)
    found = utils.get_misclassified(model, loader)
    utils.plot_confusion_matrix(model, loader, config)
    utils.plot_misclassified(found, config)
    utils.plot_gradcam(model, found, config, target_layer=model.conv)
    for figure, _ in shown:
        texts = figure.findobj(Text)
        assert not any(text.get_parse_math() for text in texts if "$" in text.get_text())
    ticks = [label.get_text() for label in shown[0][0].axes[0].get_xticklabels()]
    assert ticks[:4] == HARD_NAMES[:4]
    assert all(len(line) <= 16 for tick in ticks for line in tick.split("\n"))
    assert max(tick.count("\n") for tick in ticks) == 1
    assert shown[1][0].axes[0].get_title().startswith("predicted $20 (")


def test_confusion_matrix_of_100_classes_is_fast_and_readable(make_config, shown):
    torch.manual_seed(0)
    batches = [(torch.randn(500, 3, 32, 32), torch.arange(500) % 100)]
    config = make_config(classes=[f"class number {i}" for i in range(100)])
    begin = time.perf_counter()
    utils.plot_confusion_matrix(Reader(100), batches, config)
    assert time.perf_counter() - begin < 5
    axis = shown[0][0].axes[0]
    assert not [text for text in axis.texts if text.get_visible()], "no numbers"
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        names = [label.get_text().replace("\n", " ") for label in labels]
        assert 5 <= len(names) <= 21
        assert all(f"class number {5 * i}" in name for i, name in enumerate(names))


# GradCAM


@pytest.fixture
def network():
    """A convolution whose 10 maps, pooled, are the logits: GradCAM of class k is map k, exactly."""
    conv = nn.Conv2d(3, 10, 1, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0], conv.weight[1, 1], conv.weight[2, 2] = 1, 1, 1
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def found():
    """Two images with a red, a green and a blue square: true classes 1 and 2, predicted 0 and 1."""
    images = torch.zeros(2, 3, 32, 32)
    images[:, 0, :8, :8] = images[:, 1, 12:20, 12:20] = images[:, 2, 24:, 24:] = 1
    labels = torch.tensor([1, 2])
    return utils.Misclassified(images, labels, labels - 1, labels / 4, labels / 2, labels)


@pytest.fixture
def explain(found, config, shown):
    """Return a function that draws GradCAM and returns headings and maps."""

    def explain(model, layer):
        utils.plot_gradcam(model, found, config, target_layer=layer)
        axes = shown[-1][0].axes
        maps = [axis.get_images()[1].get_array() for axis in axes if len(axis.get_images()) > 1]
        return [axis.get_title() for axis in axes], maps

    return explain


@pytest.mark.parametrize("is_frozen", [False, True])
def test_gradcam_explains_each_image_for_its_own_two_classes(network, explain, is_frozen):
    headings, maps = explain(network.requires_grad_(not is_frozen), network[0])
    expected = ["image", "image", "predicted\n0", "predicted\n1", "true\n1", "true\n2"]
    assert headings == expected
    squares = [(slice(0, 8),) * 2, (slice(12, 20),) * 2, (slice(24, 32),) * 2]
    for heat, wanted in zip(maps, (0, 1, 1, 2), strict=True):  # predicted twice, true twice
        means = [heat[square].mean() for square in squares]
        assert np.argmax(means) == wanted
        assert means[wanted] > 0.9
        assert sorted(means)[1] < 0.1


class Layers(nn.Module):
    """A small network whose forward pass a function makes of its layers."""

    def __init__(self, forward, **layers):
        super().__init__()
        torch.manual_seed(0)
        layers = {"conv": nn.Conv2d(3, 8, 3, padding=1), "bn": nn.BatchNorm2d(8), **layers}
        self.layers, self.linear = nn.ModuleDict(layers), nn.Linear(8, 10)
        self.make = forward

    def forward(self, images):
        return self.linear(self.make(self.layers, images).mean((2, 3)))


def residual(in_place):
    def forward(layers, x):
        x = layers["conv"](x)
        out = layers["bn"](x)
        if in_place:
            out += x
        else:
            out = out + x
        return out.relu_() if in_place else out.relu()

    return forward


@pytest.mark.parametrize("name", ["conv", "bn"])
@pytest.mark.parametrize("kind", ["relu", "residual"])
def test_gradcam_is_the_same_when_what_follows_works_in_place(explain, kind, name):
    maps = []
    for in_place in (False, True):
        if kind == "relu":
            torch.manual_seed(0)
            conv, bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            last = nn.Linear(8 * 32 * 32, 10)
            model = nn.Sequential(conv, bn, nn.ReLU(inplace=in_place), nn.Flatten(), last)
            layer = {"conv": conv, "bn": bn}[name]
        else:
            model = Layers(residual(in_place))
            layer = model.layers[name]
        maps.append(explain(model, layer)[1])
    assert np.ptp(maps[0]) > 0.5
    np.testing.assert_array_equal(*maps)


class Function(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


@pytest.mark.parametrize(
    "call",
    [lambda x: x.permute(0, 2, 3, 1), lambda x: x.flatten(2).mT, lambda x: (x, x), lambda x: [x]],
    ids=["(N, H, W, C)", "(N, L, C)", "tuple", "list"],
)
def test_layer_without_maps_is_told_what_is_needed(found, config, call):
    layer = Function(call)

    def forward(layers, x):
        return layers["conv"](x) + 0 * layers["odd"](x)[0].sum()

    with pytest.raises(ValueError, match=r"maps \(N, C, H, W\)"):
        utils.plot_gradcam(Layers(forward, odd=layer), found, config, target_layer=layer)


@pytest.mark.parametrize("times", [0, 2])
def test_layer_that_is_not_used_once_is_told(found, config, times):
    twice = Layers(lambda layers, x: layers["bn"](layers["bn"](layers["conv"](x))))
    layer = twice.layers["bn"] if times else nn.Conv2d(3, 8, 1)
    with pytest.raises(ValueError, match=rf"{times} times.*once.*model\.layer3"):
        utils.plot_gradcam(twice, found, config, target_layer=layer)


def test_maps_that_are_too_coarse_are_told_and_no_mistake_is_a_sentence(
    found, config, shown, capsys
):
    model = ResNet18()
    with pytest.raises(ValueError, match=r"4 x 4.*model\.layer3\[-1\].*8 x 8"):
        utils.plot_gradcam(model, found, config, target_layer=model.layer4[-1])
    with pytest.raises(ValueError, match="no maps"):
        utils.plot_gradcam(model, found, config, target_layer=model.linear)
    nothing = utils.Misclassified(*(column[:0] for column in found))
    utils.plot_misclassified(nothing, config)
    utils.plot_gradcam(model, nothing, config, target_layer=model.layer3[-1])
    assert capsys.readouterr().out.count("no misclassified images to show") == 2
    assert not shown
