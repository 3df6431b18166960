"""The CIFAR networks: sizes that the literature states, tap names, any number of classes and pixels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlkd.models.cifar import NETWORKS
from vlkd.models.taps import Taps

# Millions of parameters for 100 classes of the networks that HobbitLong/RepDistiller@dc72442 defines (CRD,
# arXiv 1910.10699, and of mdistiller), as tables of the literature round them.
MILLIONS = {
    "resnet8": 0.08,
    "resnet14": 0.18,
    "resnet20": 0.28,
    "resnet32": 0.47,
    "resnet44": 0.67,
    "resnet56": 0.86,
    "resnet110": 1.74,
    "resnet8x4": 1.23,
    "resnet32x4": 7.43,
    "cifar_resnet18": 11.22,
    "cifar_resnet34": 21.33,
    "cifar_resnet50": 23.71,
    "wrn_16_1": 0.18,
    "wrn_16_2": 0.70,
    "wrn_40_1": 0.57,
    "wrn_40_2": 2.26,
    "vgg8": 3.97,
    "vgg11": 9.28,
    "vgg13": 9.46,
    "vgg16": 14.77,
    "mobilenetv2": 0.81,
    "shufflenetv1": 0.95,
    "shufflenetv2": 1.36,
}
# Widths of the embeddings that the ND repository (arXiv 2305.17007) stores or projects.
WIDTHS = {
    "resnet56": 64,
    "resnet20": 64,
    "wrn_40_2": 128,
    "wrn_40_1": 64,
    "resnet32x4": 256,
    "resnet8x4": 256,
    "cifar_resnet50": 2048,
    "mobilenetv2": 1280,
    "shufflenetv1": 960,
    "shufflenetv2": 1024,
}
SMALL = ["resnet8", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2"]


def test_every_network_is_in_the_table() -> None:
    assert set(MILLIONS) == set(NETWORKS)


@pytest.mark.parametrize("name", MILLIONS)
def test_parameters_and_width(name: str) -> None:
    with torch.device("meta"):
        network = NETWORKS[name](100)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6, 2) == MILLIONS[name]
    assert (
        network.get_classifier().in_features == network.num_features == WIDTHS.get(name, network.num_features)
    )


@pytest.mark.parametrize("name", SMALL)
def test_forward_backward_and_taps(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](7)
    images = torch.randn(2, 3, 32, 32)
    with Taps(network, [*network.stages, *network.preactivations]) as taps:
        last = network.forward_features(images)
        logits = network.forward_head(last)
    assert logits.shape == (2, 7)
    assert last.shape[1] == network.num_features
    pooled = network.forward_head(last, pre_logits=True)
    assert torch.allclose(network.fc(pooled), logits)
    assert torch.allclose(pooled, last.mean((2, 3)), atol=1e-6)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    sides = [taps.values[stage].shape[-1] for stage in network.stages]
    assert sides == sorted(sides, reverse=True)
    # What is tapped before an activation really has both signs.
    assert all(taps.values[path].min() < 0 for path in network.preactivations)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("side", [40, 64])
def test_any_size(name: str, side: int) -> None:
    network = NETWORKS[name](3).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, side, side)).shape == (1, 3)


def test_vgg_pools_a_fourth_time_from_64_pixels_on() -> None:
    network = NETWORKS["vgg8"](3).eval()
    with torch.no_grad():
        assert [network.forward_features(torch.zeros(1, 3, s, s)).shape[-1] for s in (32, 64)] == [4, 4]


def test_preactivation_is_what_the_last_relu_is_given() -> None:
    torch.manual_seed(0)
    network = NETWORKS["resnet8"](3).eval()
    with torch.no_grad(), Taps(network, ["layer2", "layer2.0.relu2:input"]) as taps:
        network(torch.randn(2, 3, 32, 32))
    assert torch.equal(taps.values["layer2"], taps.values["layer2.0.relu2:input"].relu())


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1"])
def test_initial_activations_keep_their_scale(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](10)
    with torch.no_grad():
        last = network.forward_features(torch.randn(16, 3, 32, 32))
    assert 0.2 < last.std() < 5
    assert all(bool((m.weight == 1).all()) for m in network.modules() if isinstance(m, nn.BatchNorm2d))
