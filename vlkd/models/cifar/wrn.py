"""Wide residual networks with normalisation and activation before each convolution."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from vlkd.models.cifar.network import CIFARNetwork, conv1x1, conv3x3


class PreActivation(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice; where the width changes the shortcut starts after the ReLU."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn2, self.relu2 = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width)
        self.shortcut = None if inputs == width else conv1x1(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,width,h/stride,w/stride)."""
        active = self.relu1(self.bn1(x))
        y = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return y + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(CIFARNetwork):
    """WRN-depth-factor: 3x3 stem of 16 channels, three stages of 16, 32, 64 times `factor`, no dropout.

    Zagoruyko and Komodakis, arXiv 1605.07146. The stages give sums without activation; `preactivations` are
    these after the BatchNorm that follows, as the distillation literature takes them.
    """

    RENAMES = ((r"^block(\d)\.layer\.", r"layer\1."), (r"\bconvShortcut\.", "shortcut."))

    stages = ("layer1", "layer2", "layer3")
    preactivations = ("layer2.0.relu1:input", "layer3.0.relu1:input", "relu:input")

    def __init__(self, depth: int, factor: int, num_classes: int) -> None:
        super().__init__(64 * factor, num_classes)
        blocks = (depth - 4) // 6
        widths = [16, 16 * factor, 32 * factor, 64 * factor]
        self.conv1 = conv3x3(3, widths[0])
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                PreActivation(widths[i], widths[i + 1], stride=1 if i == 0 else 2),
                *(PreActivation(widths[i + 1], widths[i + 1], stride=1) for _ in range(blocks - 1)),
            )
            for i in range(3)
        )
        self.bn1, self.relu = nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True)
        self.initialise()

    def forward_features(self, x: Tensor) -> Tensor:
        """See `CIFARNetwork.forward_features`."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.relu(self.bn1(x))


def _wrn(depth: int, factor: int) -> Callable[[int], WideResNet]:
    return lambda num_classes: WideResNet(depth, factor, num_classes)


NETWORKS: dict[str, Callable[[int], CIFARNetwork]] = {
    f"wrn_{depth}_{factor}": _wrn(depth, factor) for depth in (16, 40) for factor in (1, 2)
}
