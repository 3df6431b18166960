"""Taps: values by module path, hooks removed, clear errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vlkd.errors import UserError
from vlkd.models.taps import Taps, check_taps


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.act = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True)
        self.unused, self.words = nn.Linear(4, 4), Words()

    def forward(self, x: Tensor) -> Tensor:
        self.words(x)
        return self.act(self.norm(self.first(x)))


class Words(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "no tensor"


def hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_input_before_an_inplace_activation_stays_as_it_was() -> None:
    torch.manual_seed(0)
    network, x = Net(), torch.randn(8, 4)
    with Taps(network, ["act:input", "act", "first"]) as taps:
        out = network(x)
    assert torch.equal(taps.values["act:input"].relu(), out)
    assert taps.values["act:input"].min() < 0
    assert torch.equal(taps.values["first"], network.first(x))
    taps.values["act:input"].sum().backward()
    assert network.first.weight.grad is not None
    assert list(taps.values) == ["act:input", "act", "first"]


def test_hooks_are_removed_also_after_an_error() -> None:
    network = Net()
    with Taps(network, ["first", "act:input"]):
        network(torch.randn(2, 4))
    assert hooks(network) == 0
    with pytest.raises(RuntimeError), Taps(network, ["first"]):
        network(torch.randn(2, 5))
    assert hooks(network) == 0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("firts", "nearest: first"),
        ("zzz", "top modules are first, norm, act"),
        ("unused", "not called"),
        ("words", "gives no tensor"),
        ("norm", "overwritten"),
    ],
)
def test_errors(path: str, message: str) -> None:
    network = Net()
    with pytest.raises(UserError, match=message) as caught, Taps(network, [path]):
        network(torch.randn(2, 4))
    assert "\n" not in str(caught.value)
    assert hooks(network) == 0


def test_check_alone() -> None:
    check_taps(Net(), ["first", "act:input"])
    with pytest.raises(UserError, match="'act:inptu'"):
        check_taps(Net(), ["act:inptu"])


def test_inference_mode() -> None:
    network = Net().eval()
    with torch.inference_mode(), Taps(network, ["first"]) as taps:
        network(torch.randn(2, 4))
    assert taps.values["first"].shape == (2, 4)
