"""What the networks for small images share: timm's protocol, one linear head, initialisation, tap names."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn


class CIFARNetwork(nn.Module):
    """A convolutional classifier: `forward_features` -> map, mean over the map, `fc`.

    `stages` and `preactivations` are tap paths (see `vlkd.models.classifier.Classifier.outputs`) of the
    stages' outputs and of the values before their last ReLU, shallowest first. `RENAMES` (pattern,
    replacement) turns the keys of RepDistiller's and mdistiller's checkpoints into ours.
    """

    RENAMES: ClassVar[tuple[tuple[str, str], ...]] = ()

    stages: tuple[str, ...]
    preactivations: tuple[str, ...]

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.num_features = width
        self.num_classes = num_classes
        self.fc = nn.Linear(width, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised images (B,3,H,W) -> last map (B,D,h,w), after its ReLU."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last map (B,D,h,w) -> logits (B,K), or with `pre_logits` their input (B,D)."""
        pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B,3,H,W) -> logits (B,K)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Linear:
        """The last linear layer."""
        return self.fc

    def initialise(self) -> None:
        """Kaiming normal for convolutions (fan out, as for a ReLU), one and zero for normalisations."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution that keeps the size at stride 1, without bias."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias."""
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)
