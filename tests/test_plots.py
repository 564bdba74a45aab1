"""Figures: what they show, how they are titled, and where they are saved."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import utils
from models.resnet import ResNet18


def get_pictures(figure):
    return [image.get_array() for axis in figure.axes for image in axis.get_images()[:1]]


def get_titles(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


class Oracle(nn.Module):
    """Read the class off an image's mean, and be wrong, more and more surely, where told to."""

    def __init__(self, answers):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)  # GradCAM wants gradients
        self.answers = answers
        self.position = 0

    def forward(self, images):
        logits = self.answers[self.position : self.position + len(images)]
        self.position = (self.position + len(images)) % len(self.answers)
        return logits + 0 * self.conv(images).mean()


@pytest.fixture
def mistaken(make_loader):
    """A loader of 30 images, and a model that gets number 4, 17 and 29 wrong."""
    labels = torch.arange(30) % 10
    logits = 5.0 * torch.eye(10)[labels]
    for index, predicted, certainty in ((4, 9, 8.0), (17, 2, 12.0), (29, 0, 6.0)):
        logits[index] = 0
        logits[index, predicted] = certainty
    images = torch.arange(30.0).view(30, 1, 1, 1).expand(30, 3, 32, 32) / 100
    return Oracle(logits), make_loader(images, labels, 8)


def test_misclassified_images_belong_to_their_labels_even_when_shuffled(model):
    torch.manual_seed(1)
    images, labels = torch.randn(30, 3, 32, 32), torch.arange(30) % 10
    images[:, 0, 0, 0] = labels.float()
    loader = DataLoader(TensorDataset(images, labels), 8, shuffle=True)
    found = utils.get_misclassified(model, loader)
    assert len(found.labels) > 10
    assert found.images[:, 0, 0, 0].tolist() == found.labels.tolist()


def test_misclassified_are_found_in_all_batches_and_sorted_by_loss(mistaken, capsys):
    found = utils.get_misclassified(*mistaken)
    assert found.indices.tolist() == [17, 4, 29]
    assert found.labels.tolist() == [7, 4, 9], "true classes"
    assert found.predictions.tolist() == [2, 9, 0]
    assert found.losses.tolist() == sorted(found.losses.tolist(), reverse=True)
    exponential = np.exp(12.0)
    assert found.probabilities[0].item() == pytest.approx(exponential / (exponential + 9), rel=1e-4)
    assert found.losses[0].item() == pytest.approx(np.log(exponential + 9), rel=1e-4)
    np.testing.assert_allclose(found.images[:, 0, 0, 0], [0.17, 0.04, 0.29], atol=1e-6)
    assert capsys.readouterr().out == "3 of 30 test images are misclassified\n"


def test_gallery_shows_predicted_and_true_in_their_places(mistaken, config, shown):
    found = utils.get_misclassified(*mistaken)
    utils.plot_misclassified(found, config)
    figure, title = shown[0]
    assert get_titles(figure)[0] == "predicted 2 (100%)\ntrue 7"
    assert get_titles(figure)[1] == "predicted 9 (100%)\ntrue 4"
    assert len(get_pictures(figure)) == 3, "fewer than ten mistakes"
    assert "3 of 3 mistakes" in title
    assert "not CIFAR-10" in title


def test_gallery_shows_true_colours(config, shown, monkeypatch):
    picture = np.random.default_rng(0).random((32, 32, 3), dtype=np.float32)
    mean, std = np.float32(config.mean), np.float32(config.std)
    normalized = torch.tensor((picture - mean) / std).permute(2, 0, 1)[None]
    one = torch.tensor([0])
    found = utils.Misclassified(normalized, one, one + 1, one + 0.5, one + 1.0, one)
    utils.plot_misclassified(found, config)
    np.testing.assert_allclose(get_pictures(shown[0][0])[0], picture, atol=1e-5)


@pytest.mark.parametrize("count", [1, 4, 6, 10, 25])
def test_gallery_of_any_size(config, shown, count):
    labels = torch.arange(count) % 10
    images = torch.zeros(count, 3, 32, 32)
    found = utils.Misclassified(images, labels, labels, labels / 10, labels / 10, labels)
    utils.plot_misclassified(found, config)
    assert len(get_pictures(shown[0][0])) == min(count, 10)


def test_no_mistake_is_a_sentence(config, shown, capsys, model):
    nothing = torch.zeros(0, dtype=torch.int64)
    found = utils.Misclassified(torch.zeros(0, 3, 32, 32), *[nothing] * 5)
    utils.plot_misclassified(found, config)
    utils.plot_gradcam(model, found, config, target_layer=model[0])
    assert capsys.readouterr().out.count("no misclassified images to show") == 2
    assert not shown


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


def test_gradcam_explains_each_image_for_its_own_two_classes(network, found, config, shown):
    utils.plot_gradcam(network, found, config, target_layer=network[0])
    figure, _ = shown[0]
    heats = [axis.get_images()[1].get_array() for axis in figure.axes if len(axis.get_images()) > 1]
    squares = [(slice(0, 8),) * 2, (slice(12, 20),) * 2, (slice(24, 32),) * 2]
    for heat, wanted in zip(heats, (0, 1, 1, 2), strict=True):  # predicted twice, true twice
        means = [heat[square].mean() for square in squares]
        assert np.argmax(means) == wanted
        assert means[wanted] > 0.9
        assert sorted(means)[1] < 0.1
    assert get_titles(figure) == [
        *("image", "image"),
        *("predicted\n0", "predicted\n1"),
        *("true\n1", "true\n2"),
    ]


def test_gradcam_explains_a_frozen_network_as_well(network, found, config, shown):
    for frozen in (False, True):
        network.requires_grad_(not frozen)
        utils.plot_gradcam(network, found, config, target_layer=network[0])
    heats = [
        [axis.get_images()[1].get_array() for axis in figure.axes if len(axis.get_images()) > 1]
        for figure, _ in shown
    ]
    np.testing.assert_array_equal(*heats)
    assert not found.images.requires_grad


def test_gradcam_leaves_the_model_as_it_was(config, found):
    model = ResNet18().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    utils.plot_gradcam(model, found, config, target_layer=model.layer3[-1])
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gradcam_refuses_layer4_and_names_layer3(config, found):
    model = ResNet18()
    with pytest.raises(ValueError, match=r"4 x 4 pixels.*model\.layer3\[-1\].*8 x 8"):
        utils.plot_gradcam(model, found, config, target_layer=model.layer4[-1])


def test_gradcam_refuses_a_layer_of_another_model(config, found):
    with pytest.raises(ValueError, match=r"not in the model.*model\.layer3"):
        utils.plot_gradcam(ResNet18(), found, config, target_layer=ResNet18().layer3[-1])


def test_gradcam_refuses_a_layer_without_maps(config, found):
    model = ResNet18()
    with pytest.raises(ValueError, match="makes no maps"):
        utils.plot_gradcam(model, found, config, target_layer=model.linear)


# Curves, confusion, samples


def make_history(epochs=4):
    ramp = [float(i) for i in range(1, epochs + 1)]
    return {
        "train_loss": ramp[::-1],
        "train_accuracy": [20 * value for value in ramp],
        "test_loss": [2.0, 0.5, 0.7, 0.9][:epochs],
        "test_accuracy": [40.0, 80.0, 78.0, 77.5][:epochs],
        "seconds": ramp,
        "lr": [0.1, 0.4, 0.2, 0.0] * epochs,
    }


def test_history_shows_both_curves_and_the_last_accuracy(config, shown):
    utils.plot_history(make_history(), config)
    figure, title = shown[0]
    assert title.startswith("Test accuracy after epoch 4: 77.50 %"), "the last, not the best"
    loss, accuracy, lr = figure.axes
    for axis, name in ((loss, "loss"), (accuracy, "accuracy")):
        lines = {line.get_label(): line.get_ydata() for line in axis.lines}
        np.testing.assert_array_equal(lines["test"], make_history()[f"test_{name}"])
        np.testing.assert_array_equal(lines["train (augmented)"], make_history()[f"train_{name}"])
        assert axis.get_xlabel() == "epoch"
        assert axis.get_ylabel()
    assert "best test: 0.5 in epoch 2" in [line.get_label() for line in loss.lines]
    assert "best test: 80 in epoch 2" in [line.get_label() for line in accuracy.lines]
    np.testing.assert_array_equal(lr.lines[0].get_ydata(), make_history()["lr"])
    assert (lr.get_xlabel(), lr.get_ylabel()) == ("step", "learning rate")


def test_history_of_a_single_epoch(config, shown):
    utils.plot_history(make_history(1), config)
    assert "40.00 %" in shown[0][1]
    loss, accuracy, _ = shown[0][0].axes
    for axis in (loss, accuracy):
        markers = {line.get_label(): line.get_marker() for line in axis.lines}
        assert markers["train (augmented)"] == ".", "no line is seen of a single point"


def test_confusion_matrix_has_true_classes_in_rows(mistaken, config, shown):
    utils.plot_confusion_matrix(*mistaken, config)
    figure, title = shown[0]
    matrix = figure.axes[0].get_images()[0].get_array()
    assert matrix.sum() == 30
    assert matrix[7, 2] == matrix[4, 9] == matrix[9, 0] == 1
    assert matrix.trace() == 27
    assert "mixed up most: 1 of 3 mistakes" in title
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[7] == "7: 66.7 %"
    assert labels[0] == "0: 100.0 %"


def test_class_without_images_has_no_accuracy(model, make_loader, config, shown):
    loader = make_loader(torch.zeros(6, 3, 32, 32), torch.tensor([1] * 6), 6)
    utils.plot_confusion_matrix(model, loader, config)
    labels = [label.get_text() for label in shown[0][0].axes[0].get_yticklabels()]
    assert [label for label in labels if "nan" not in label] in (["1: 0.0 %"], ["1: 100.0 %"])


def test_samples_are_shown_plain_and_augmented(loaders, config, shown):
    utils.plot_samples(loaders[0], config, count=6)
    pictures = get_pictures(shown[0][0])
    assert len(pictures) == 12
    dataset = loaders[0].dataset
    for picture, image in zip(pictures[:6], dataset.images[:6].numpy(), strict=True):
        np.testing.assert_array_equal(picture, image)
    assert get_titles(shown[0][0])[:6] == [config.classes[label] for label in dataset.labels[:6]]
    for picture, image in zip(pictures[6:], dataset.images[:6].numpy(), strict=True):
        assert picture.shape == (32, 32, 3)
        assert not np.allclose(picture, image / 255, atol=0.01), "the lower row is augmented"


def test_images_are_not_smoothed_or_turned(found, config, shown):
    utils.plot_misclassified(found, config)
    image = shown[0][0].axes[0].get_images()[0]
    assert image.get_interpolation() == "nearest"
    reds = image.get_array()[..., 0] > image.get_array()[..., 2]
    assert reds[:8, :8].all(), "the red square is in the upper left corner"


def test_denormalize_undoes_normalize(config):
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    pictures = utils.denormalize(utils.Normalize(config.mean, config.std)(images), config)
    expected = images.permute(0, 2, 3, 1).numpy() / 255
    np.testing.assert_allclose(pictures, expected, atol=1e-6)


# Saving and showing


def test_every_figure_is_saved_titled_and_closed(loaders, model, config, shown):
    utils.plot_samples(loaders[0], config)
    utils.find_lr(model, loaders[0], config)
    utils.plot_history(make_history(), config)
    utils.plot_confusion_matrix(model, loaders[1], config)
    found = utils.get_misclassified(model, loaders[1])
    utils.plot_misclassified(found, config)
    utils.plot_gradcam(model, found, config, target_layer=model[0])
    names = {"samples", "lr_finder", "history", "confusion_matrix", "misclassified", "gradcam"}
    files = {path.name for path in config.output_dir.iterdir()}
    assert files == {f"{name}.png" for name in names} | {"lr_finder.json"}
    assert len(shown) == 6
    assert all("not CIFAR-10" in title for _, title in shown)
    assert plt.get_fignums() == []


def test_a_full_run_has_no_caveat_in_its_titles(make_config, shown):
    utils.plot_history(make_history(), make_config("full"))
    assert shown[0][1] == "Test accuracy after epoch 4: 77.50 %"


def test_a_run_on_part_of_the_images_says_so(make_config, shown):
    utils.plot_history(make_history(), make_config("full", train_images=4096))
    assert "4,096 images only" in shown[0][1]


def test_figures_are_shown_in_a_notebook_only(config, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(1))
    utils.plot_history(make_history(), config)
    assert not calls
    assert "Figure saved: " in capsys.readouterr().out
    monkeypatch.setattr(plt, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    utils.plot_history(make_history(), config)
    assert calls
