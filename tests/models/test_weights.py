"""Weights files: wrappers, prefixes, other projects' names, one-line errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vlkd.errors import UserError
from vlkd.models.cifar import NETWORKS
from vlkd.models.weights import load_weights, read_weights


def fresh(name: str = "resnet8", classes: int = 5) -> Any:
    return NETWORKS[name](classes)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("wrapper", ["", "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "student.network."])
def test_wrappers_and_prefixes(tmp_path: Path, wrapper: str, prefix: str) -> None:
    source, target = fresh(), fresh()
    state: Any = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save({wrapper: state, "epoch": 240} if wrapper else state, tmp_path / "a.pth")
    assert not same(source, target)
    load_weights(target, tmp_path / "a.pth")
    assert same(source, target)


def test_half_safetensors(tmp_path: Path) -> None:
    source, target = fresh(), fresh()
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()},
        tmp_path / "a.safetensors",
    )
    load_weights(target, tmp_path / "a.safetensors")
    assert target.fc.weight.dtype == torch.float32
    assert torch.equal(target.fc.weight, source.fc.weight.half().float())


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("wrn_16_1", "block2.layer.0.convShortcut.weight", "layer2.0.shortcut.weight"),
        ("wrn_16_1", "block1.layer.1.bn2.running_mean", "layer1.1.bn2.running_mean"),
        ("vgg8", "block0.0.weight", "layer1.0.weight"),
        ("vgg8", "block4.1.weight", "layer5.1.weight"),
        ("vgg8", "classifier.bias", "fc.bias"),
        ("mobilenetv2", "blocks.3.1.conv.4.weight", "layer4.1.conv.4.weight"),
        ("mobilenetv2", "classifier.0.weight", "fc.weight"),
        ("shufflenetv1", "linear.weight", "fc.weight"),
        ("shufflenetv2", "linear.bias", "fc.bias"),
        ("cifar_resnet18", "layer2.0.shortcut.1.weight", "layer2.0.downsample.1.weight"),
    ],
)
def test_names_of_repdistiller(tmp_path: Path, name: str, theirs: str, ours: str) -> None:
    source = fresh(name)
    state = source.state_dict()
    state[theirs] = torch.full_like(state.pop(ours), 3)
    torch.save({"model": state}, tmp_path / "a.pth")
    load_weights(source, tmp_path / "a.pth")
    assert bool((source.state_dict()[ours] == 3).all())


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    state = fresh().state_dict()
    value = state.pop("conv1.weight")
    torch.save(state, file)
    with pytest.raises(UserError, match=r"a\.pth.*missing conv1\.weight$"):
        load_weights(fresh(), file)
    torch.save({**state, "conv1.weight": value, "extra": value}, file)
    with pytest.raises(UserError, match=r"unexpected extra$"):
        load_weights(fresh(), file)
    torch.save({**state, "conv1.weight": value[:, :1]}, file)
    with pytest.raises(UserError, match=r"of another shape conv1\.weight$"):
        load_weights(fresh(), file)
    torch.save(fresh("resnet8", 100).state_dict(), file)
    with pytest.raises(UserError, match="weights of 100 classes, the network has 5"):
        load_weights(fresh(), file, head="fc")
    torch.save(fresh("wrn_16_1").state_dict(), file)
    with pytest.raises(UserError, match=r"and \d+ more") as caught:
        load_weights(fresh(), file)
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such weights file"):
        read_weights(tmp_path / "none.pth")
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(UserError, match="not readable"):
            read_weights(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "b.pth")
    with pytest.raises(UserError, match="holds no weights"):
        read_weights(tmp_path / "b.pth")


class Payload:
    def __reduce__(self) -> Any:
        return print, ("unpickled",)


def test_no_code_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": fresh().state_dict(), "opt": Payload()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="not readable"):
        read_weights(tmp_path / "a.pth")
    assert "unpickled" not in capsys.readouterr().out
