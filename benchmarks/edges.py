"""Count how often the brightest of GradCAM's cells lies at the edge of the image.

    python -m benchmarks.edges

It looks at all mistakes of models/resnet18.pt on the test images, for the predicted class, and at
as many right answers, drawn by chance: what is as frequent there does not explain mistakes. No GPU
is needed, and two CPU cores take about three minutes.
"""

import argparse
import sys

import torch
from torch import Tensor, nn

import utils
from benchmarks import common, verify


def get_maps(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return GradCAM's maps (N, H, W) of layer3[-1] for one label each, as small as they are.

    In utils.explain they are enlarged, which blurs a bright cell, but less so at the edge.
    """
    outputs = []
    hook = model.layer3[-1].register_forward_hook(lambda layer, _, output: outputs.append(output))
    with hook:
        logits = model(images)
    (maps,) = outputs
    scores = logits.gather(1, labels[:, None])
    (gradients,) = torch.autograd.grad(scores.sum(), maps)
    weights = gradients.mean((2, 3), keepdim=True)
    return (weights * maps).sum(1).relu()


def count_at_edge(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Return in how many images (N, 3, H, W) the cell that speaks most for the label is at the
    edge of the map."""
    count = 0
    for part, part_labels in zip(images.split(50), labels.split(50), strict=True):
        maps = get_maps(model, part, part_labels)
        inside = maps[:, 1:-1, 1:-1].amax((1, 2))
        count += (maps.amax((1, 2)) > inside).sum().item()
    return count


def main():
    """Print the two shares."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        row, weights = utils.read_result(common.ROOT)
        model, test_loader = verify.prepare(row, weights)
    except (OSError, ValueError) as error:  # no weights, no row, or no CIFAR-10
        sys.exit(str(error))

    mistakes = utils.get_misclassified(model, test_loader)
    is_right = torch.ones(len(test_loader.dataset), dtype=torch.bool)
    is_right[mistakes.indices.cpu()] = False
    right = is_right.nonzero().flatten()
    torch.manual_seed(0)
    chosen = right[torch.randperm(len(right))[: len(mistakes.indices)]]
    groups = {
        "mistakes": (mistakes.images, mistakes.predictions),
        "right answers": test_loader.dataset.__getitems__(chosen),
    }
    for name, (images, labels) in groups.items():
        count = count_at_edge(model, images, labels)
        share = 100 * count / len(images)
        print(f"at the edge in {count} of {len(images)} {name} ({share:.0f} %)")


if __name__ == "__main__":
    main()
