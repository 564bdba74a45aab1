"""ResNet18 and ResNet34 for 32 x 32 images (He et al., 2015, https://arxiv.org/abs/1512.03385).

The ImageNet stem, a 7 x 7 convolution of stride 2 and a max-pool, would shrink a 32 x 32 image to
8 x 8 before the first block. Here a 3 x 3 convolution keeps all 32 x 32 positions, and three of the
four stages halve them: 32 -> 32 -> 16 -> 8 -> 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut.

    Maps (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()  # the identity, wherever the shape stays the same
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """A 3 x 3 stem, four stages of basic blocks, global average pooling and one linear layer.

    Maps float images (N, 3, 32, 32) to logits (N, num_classes); num_blocks holds the number of
    blocks in each of the four stages.
    """

    def __init__(self, num_blocks: tuple[int, int, int, int], num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self._make_stage(64, 64, num_blocks[0], stride=1)
        self.layer2 = self._make_stage(64, 128, num_blocks[1], stride=2)
        self.layer3 = self._make_stage(128, 256, num_blocks[2], stride=2)
        self.layer4 = self._make_stage(256, 512, num_blocks[3], stride=2)
        self.linear = nn.Linear(512, num_classes)

    @staticmethod
    def _make_stage(in_channels: int, out_channels: int, num_blocks: int, stride: int):
        first = BasicBlock(in_channels, out_channels, stride)
        rest = [BasicBlock(out_channels, out_channels) for _ in range(num_blocks - 1)]
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer1(out)
        out = self.layer2(out)
        out = self.layer3(out)
        out = self.layer4(out)
        out = torch.flatten(F.adaptive_avg_pool2d(out, 1), 1)
        return self.linear(out)


def ResNet18(num_classes: int = 10) -> ResNet:
    """Build the ResNet with two blocks per stage: 11,173,962 parameters for 10 classes."""
    return ResNet((2, 2, 2, 2), num_classes)


def ResNet34(num_classes: int = 10) -> ResNet:
    """Build the ResNet with 3, 4, 6 and 3 blocks: 21,282,122 parameters for 10 classes."""
    return ResNet((3, 4, 6, 3), num_classes)
