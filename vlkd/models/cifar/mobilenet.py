"""MobileNetV2 for small images, at half width."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from vlkd.models.cifar.network import CIFARNetwork

# Expansion, channels at full width, blocks, stride of the first.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_LAST = 1280


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1; shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.conv = nn.Sequential(
            *_convolution(inputs, width),
            *_convolution(width, width, 3, stride, groups=width),
            *_convolution(width, outputs)[:-1],
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,outputs,h/stride,w/stride)."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(CIFARNetwork):
    """Stem of stride 2, seven stages of inverted residuals, 1x1 convolution to 1280 channels; plain ReLU.

    Sandler et al., arXiv 1801.04381, with the strides of HobbitLong/RepDistiller@b13aecc, where a 32 x 32
    image ends as a 2 x 2 map. The stages end linearly, so `preactivations` are the stages themselves.
    """

    RENAMES = (
        *((rf"^blocks\.{i}\.", f"layer{i + 1}.") for i in range(len(_STAGES))),
        (r"^classifier\.0\.", "fc."),
    )

    stages = ("layer2", "layer3", "layer5", "layer7")
    preactivations = stages

    def __init__(self, num_classes: int, factor: float = 0.5) -> None:
        super().__init__(_LAST, num_classes)
        inputs = int(32 * factor)
        self.conv1 = nn.Sequential(*_convolution(3, inputs, 3, stride=2))
        for i, (expansion, channels, blocks, stride) in enumerate(_STAGES):
            stage = nn.Sequential()
            for block in range(blocks):
                outputs = int(channels * factor)
                stage.append(InvertedResidual(inputs, outputs, stride if block == 0 else 1, expansion))
                inputs = outputs
            self.add_module(f"layer{i + 1}", stage)
        self.conv2 = nn.Sequential(*_convolution(inputs, _LAST))
        self.initialise()

    def forward_features(self, x: Tensor) -> Tensor:
        """See `CIFARNetwork.forward_features`."""
        x = self.conv1(x)
        for i in range(len(_STAGES)):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return self.conv2(x)


def _convolution(
    inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


NETWORKS: dict[str, Callable[[int], CIFARNetwork]] = {"mobilenetv2": MobileNetV2}
