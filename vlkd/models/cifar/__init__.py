"""Networks of the CIFAR distillation literature, by name."""

from __future__ import annotations

from collections.abc import Callable

from vlkd.models.cifar import mobilenet, resnet, shufflenet, vgg, wrn
from vlkd.models.cifar.network import CIFARNetwork

NETWORKS: dict[str, Callable[[int], CIFARNetwork]] = {
    **resnet.NETWORKS,
    **wrn.NETWORKS,
    **vgg.NETWORKS,
    **mobilenet.NETWORKS,
    **shufflenet.NETWORKS,
}

__all__ = ["NETWORKS", "CIFARNetwork"]
