"""Residual networks for small images: the thin three-stage family, the four-stage one without max-pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from vlkd.models.cifar.network import CIFARNetwork, conv1x1, conv3x3


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut; `relu2:input` is the sum before its ReLU."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)
        self.relu1, self.relu2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,width,h/stride,w/stride)."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut; `relu3:input` is the sum before its ReLU."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1, self.bn1 = conv1x1(inputs, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv1x1(width, outputs), nn.BatchNorm2d(outputs)
        self.relu1, self.relu2, self.relu3 = (nn.ReLU(inplace=True) for _ in range(3))
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,4 width,h/stride,w/stride)."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        return self.relu3(self.bn3(self.conv3(y)) + self.downsample(x))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


class ResNet(CIFARNetwork):
    """Stem of one 3x3 convolution at full size, then `layer1`, `layer2`, ..., each after the first halving.

    He et al., arXiv 1512.03385, section 4.2, with 1x1 convolutions in the shortcuts, as in
    HobbitLong/RepDistiller@dc72442.
    """

    RENAMES = ((r"\bshortcut\.", "downsample."), (r"^linear\.", "fc."))

    def __init__(
        self,
        block: type[Basic] | type[Bottleneck],
        depths: Sequence[int],
        stem: int,
        widths: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__(widths[-1] * block.expansion, num_classes)
        self.conv1, self.bn1, self.relu = conv3x3(3, stem), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
        inputs = stem
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = [block(inputs, width, stride=1 if i == 0 else 2)]
            inputs = width * block.expansion
            blocks += [block(inputs, width, stride=1) for _ in range(depth - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        last = "relu2" if block is Basic else "relu3"
        self.stages = tuple(f"layer{i + 1}" for i in range(len(depths)))
        self.preactivations = tuple(
            f"layer{i + 1}.{depth - 1}.{last}:input" for i, depth in enumerate(depths)
        )
        self.initialise()

    def forward_features(self, x: Tensor) -> Tensor:
        """See `CIFARNetwork.forward_features`."""
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x


def _thin(depth: int, factor: int = 1) -> Callable[[int], ResNet]:
    blocks = ((depth - 2) // 6,) * 3
    # The "x4" nets of the literature widen the stem by two only.
    stem, widths = (16, (16, 32, 64)) if factor == 1 else (32, (16 * factor, 32 * factor, 64 * factor))
    return lambda num_classes: ResNet(Basic, blocks, stem, widths, num_classes)


def _wide(block: type[Basic] | type[Bottleneck], depths: Sequence[int]) -> Callable[[int], ResNet]:
    return lambda num_classes: ResNet(block, depths, 64, (64, 128, 256, 512), num_classes)


NETWORKS: dict[str, Callable[[int], CIFARNetwork]] = {
    **{f"resnet{depth}": _thin(depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": _thin(depth, 4) for depth in (8, 32)},
    "cifar_resnet18": _wide(Basic, (2, 2, 2, 2)),
    "cifar_resnet34": _wide(Basic, (3, 4, 6, 3)),
    "cifar_resnet50": _wide(Bottleneck, (3, 4, 6, 3)),
}
