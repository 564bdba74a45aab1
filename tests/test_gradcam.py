"""GradCAM, on networks whose answer is known, and on layers that it cannot explain."""

import numpy as np
import pytest
import torch
from torch import nn

import utils
from models.resnet import ResNet18


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
    with pytest.raises(ValueError, match=r"maps \(N, C, H, W\).*once"):
        utils.plot_gradcam(twice, found, config, target_layer=layer)


def test_maps_that_are_too_coarse_are_told_and_no_mistake_is_a_sentence(
    found, config, shown, capsys
):
    model = ResNet18()
    with pytest.raises(ValueError, match=r"4 x 4.*model\.layer3\[-1\].*8 x 8"):
        utils.plot_gradcam(model, found, config, target_layer=model.layer4[-1])
    with pytest.raises(ValueError, match="maps"):
        utils.plot_gradcam(model, found, config, target_layer=model.linear)
    nothing = utils.Misclassified(*(column[:0] for column in found))
    utils.plot_misclassified(nothing, config)
    utils.plot_gradcam(model, nothing, config, target_layer=model.layer3[-1])
    assert capsys.readouterr().out.count("no misclassified images to show") == 2
    assert not shown
