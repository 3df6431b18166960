"""ShuffleNet V1 (3 groups) and V2 (1x) for small images."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd.models.cifar.network import CIFARNetwork, conv1x1

_STEM = 24


class GroupedUnit(nn.Module):
    """V1: grouped 1x1, shuffle, 3x3 depthwise, grouped 1x1; added to its input, at stride 2 beside it."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        outputs -= inputs if stride == 2 else 0
        width = outputs // 4
        # The 24 channels of the stem are too few to be grouped.
        first = 1 if inputs == _STEM else groups
        self.conv1 = nn.Conv2d(inputs, width, 1, groups=first, bias=False)
        self.bn1, self.relu1, self.shuffle = nn.BatchNorm2d(width), nn.ReLU(inplace=True), Shuffle(first)
        self.conv2 = _depthwise(width, stride)
        self.bn2, self.relu2 = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width, outputs, 1, groups=groups, bias=False)
        self.bn3, self.relu3 = nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,outputs,h/stride,w/stride); `relu3:input` is the value before the last ReLU."""
        y = self.shuffle(self.relu1(self.bn1(self.conv1(x))))
        y = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(y)))))
        if self.stride == 1:
            return self.relu3(y + x)
        return self.relu3(torch.cat([y, F.avg_pool2d(x, 3, self.stride, padding=1)], dim=1))


class SplitUnit(nn.Module):
    """V2 at stride 1: one half of the channels passes, the other goes through 1x1, 3x3 depthwise, 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1, self.relu1 = conv1x1(half, half), nn.BatchNorm2d(half), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = _depthwise(half, 1), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv1x1(half, half), nn.BatchNorm2d(half)
        self.relu3, self.shuffle = nn.ReLU(inplace=True), Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,C,h,w); `relu3:input` is the value before the last ReLU, not yet shuffled."""
        kept, y = x.chunk(2, dim=1)
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(y)))))
        # What passes is not negative, so the ReLU may follow the concatenation.
        return self.shuffle(self.relu3(torch.cat([kept, self.bn3(self.conv3(y))], dim=1)))


class DownUnit(nn.Module):
    """V2 at stride 2: both branches see all channels, each gives half of the output."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1, self.bn1 = _depthwise(inputs, 2), nn.BatchNorm2d(inputs)
        self.conv2, self.bn2 = conv1x1(inputs, half), nn.BatchNorm2d(half)
        self.conv3, self.bn3, self.relu3 = conv1x1(inputs, half), nn.BatchNorm2d(half), nn.ReLU(inplace=True)
        self.conv4, self.bn4 = _depthwise(half, 2), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = conv1x1(half, half), nn.BatchNorm2d(half)
        self.relu, self.shuffle = nn.ReLU(inplace=True), Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,outputs,h/2,w/2)."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = self.bn4(self.conv4(self.relu3(self.bn3(self.conv3(x)))))
        return self.shuffle(self.relu(torch.cat([left, self.bn5(self.conv5(right))], dim=1)))


class Shuffle(nn.Module):
    """Interleaves the channels of `groups` groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,C,h,w)."""
        if self.groups == 1:
            return x
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleNetV1(CIFARNetwork):
    """1x1 stem of 24 channels, stages of 4, 8, 4 units with 240, 480, 960 channels.

    Zhang et al., arXiv 1707.01083, with the stem of HobbitLong/RepDistiller@eedab9d.
    """

    RENAMES = ((r"^linear\.", "fc."),)

    stages = ("layer1", "layer2", "layer3")
    preactivations = ("layer1.3.relu3:input", "layer2.7.relu3:input", "layer3.3.relu3:input")

    def __init__(self, num_classes: int, groups: int = 3) -> None:
        super().__init__(960, num_classes)
        self.conv1, self.bn1, self.relu = conv1x1(3, _STEM), nn.BatchNorm2d(_STEM), nn.ReLU(inplace=True)
        channels = (_STEM, 240, 480, 960)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                GroupedUnit(channels[i], channels[i + 1], 2, groups),
                *(GroupedUnit(channels[i + 1], channels[i + 1], 1, groups) for _ in range(units - 1)),
            )
            for i, units in enumerate((4, 8, 4))
        )
        self.initialise()

    def forward_features(self, x: Tensor) -> Tensor:
        """See `CIFARNetwork.forward_features`."""
        return self.layer3(self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x))))))


class ShuffleNetV2(CIFARNetwork):
    """1x1 stem of 24 channels, stages of 4, 8, 4 units with 116, 232, 464 channels, 1x1 convolution to 1024.

    Ma et al., arXiv 1807.11164, with the stem of HobbitLong/RepDistiller@eedab9d.
    """

    RENAMES = ((r"^linear\.", "fc."),)

    stages = ("layer1", "layer2", "layer3")
    preactivations = ("layer1.3.relu3:input", "layer2.7.relu3:input", "layer3.3.relu3:input")

    def __init__(self, num_classes: int) -> None:
        super().__init__(1024, num_classes)
        self.conv1, self.bn1, self.relu = conv1x1(3, _STEM), nn.BatchNorm2d(_STEM), nn.ReLU(inplace=True)
        channels = (_STEM, 116, 232, 464)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                DownUnit(channels[i], channels[i + 1]),
                *(SplitUnit(channels[i + 1]) for _ in range(units - 1)),
            )
            for i, units in enumerate((4, 8, 4))
        )
        self.conv2, self.bn2, self.relu2 = conv1x1(464, 1024), nn.BatchNorm2d(1024), nn.ReLU(inplace=True)
        self.initialise()

    def forward_features(self, x: Tensor) -> Tensor:
        """See `CIFARNetwork.forward_features`."""
        x = self.layer3(self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x))))))
        return self.relu2(self.bn2(self.conv2(x)))


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


NETWORKS: dict[str, Callable[[int], CIFARNetwork]] = {
    "shufflenetv1": ShuffleNetV1,
    "shufflenetv2": ShuffleNetV2,
}
