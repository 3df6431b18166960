"""VGG for small images: BatchNorm after every convolution, one dense layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vlkd.models.cifar.network import CIFARNetwork

_WIDTHS = (64, 128, 256, 512, 512)


class VGG(CIFARNetwork):
    """Five stages of 3x3 convolutions, halved after the first three, and after the fourth from 64 pixels on.

    Simonyan and Zisserman, arXiv 1409.1556, in the form of HobbitLong/RepDistiller@dc72442, which pools a
    32 x 32 image to 4 x 4 (and adds the fourth pooling for images of exactly 64 pixels).
    """

    RENAMES = (
        *((rf"^block{i}\.", f"layer{i + 1}.") for i in range(len(_WIDTHS))),
        (r"^classifier\.", "fc."),
    )

    stages = tuple(f"layer{i + 1}" for i in range(len(_WIDTHS)))

    def __init__(self, depths: Sequence[int], num_classes: int) -> None:
        super().__init__(_WIDTHS[-1], num_classes)
        inputs = 3
        for stage, depth, width in zip(self.stages, depths, _WIDTHS, strict=True):
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers += [
                    nn.Conv2d(inputs, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                inputs = width
            self.add_module(stage, nn.Sequential(*layers))
        self.preactivations = tuple(
            f"{stage}.{3 * depth - 1}:input" for stage, depth in zip(self.stages, depths, strict=True)
        )
        self.initialise()

    def forward_features(self, x: Tensor) -> Tensor:
        """See `CIFARNetwork.forward_features`."""
        halved = 4 if x.shape[-2] >= 64 else 3
        for i, stage in enumerate(self.stages):
            x = self.get_submodule(stage)(x)
            if i < halved:
                x = F.max_pool2d(x, 2)
        return x


def _vgg(*depths: int) -> Callable[[int], VGG]:
    return lambda num_classes: VGG(depths, num_classes)


NETWORKS: dict[str, Callable[[int], CIFARNetwork]] = {
    "vgg8": _vgg(1, 1, 1, 1, 1),
    "vgg11": _vgg(1, 1, 2, 2, 2),
    "vgg13": _vgg(2, 2, 2, 2, 2),
    "vgg16": _vgg(2, 2, 3, 3, 3),
}
