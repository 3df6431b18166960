import json
import struct
from pathlib import Path

import pytest
import torch

from vlkd.engine.bundle import bundle_name, load_bundle, read_card, save_bundle
from vlkd.errors import UserError

CARD = {"kind": "clip", "name": "toy", "architecture": {"width": 3}, "scores": {"top1": 0.5}}


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {"model.weight": torch.randn(5, 3), "model.count": torch.arange(4)}


def test_round_trip(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = save_bundle(tmp_path / "new" / "toy.safetensors", CARD, tensors)
    card, loaded = load_bundle(path)
    assert card == {"format": 1, **CARD}
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert [item.name for item in path.parent.iterdir()] == ["toy.safetensors"]


def test_half_stores_floats_as_float16_only(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    _, loaded = load_bundle(save_bundle(tmp_path / "h.safetensors", CARD, tensors, half=True))
    assert loaded["model.weight"].dtype == torch.float16
    assert loaded["model.count"].dtype == torch.int64
    torch.testing.assert_close(loaded["model.weight"].float(), tensors["model.weight"], atol=2e-3, rtol=1e-3)


def test_views_and_shared_tensors_can_be_saved(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    path = save_bundle(tmp_path / "v.safetensors", CARD, {"a": base.t(), "b": base, "c": base[1:]})
    _, loaded = load_bundle(path)
    assert torch.equal(loaded["a"], base.t()) and torch.equal(loaded["c"], base[1:])


def test_name_follows_the_content(tensors: dict[str, torch.Tensor]) -> None:
    name = bundle_name("student", tensors)
    assert name.startswith("student-") and len(name) == len("student-12345678.safetensors")
    assert bundle_name("student", dict(reversed(tensors.items()))) == name
    other = {**tensors, "model.weight": tensors["model.weight"] + 1e-3}
    assert bundle_name("student", other) != name


def test_card_is_read_without_the_tensors(
    tmp_path: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_bundle(tmp_path / "toy.safetensors", CARD, tensors)
    monkeypatch.setattr("safetensors.torch.load_file", lambda *_, **__: pytest.fail("tensors were read"))
    assert read_card(path)["name"] == "toy"


@pytest.mark.parametrize("kept", [0, 5, 30, -1, -30])
def test_truncated_file_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], kept: int) -> None:
    path = save_bundle(tmp_path / "toy.safetensors", CARD, tensors)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"toy\.safetensors: "):
        load_bundle(path)
    with pytest.raises(UserError, match=r"toy\.safetensors: "):
        read_card(path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    plain = tmp_path / "plain.safetensors"
    save_file({"a": torch.zeros(2)}, plain)
    with pytest.raises(UserError, match="without a vlkd card"):
        read_card(plain)
    noise = tmp_path / "noise.safetensors"
    noise.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))
    with pytest.raises(UserError, match="not a safetensors file"):
        read_card(noise)
    odd = tmp_path / "odd.safetensors"
    header = json.dumps([1, 2]).encode()
    odd.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError, match="without a vlkd card"):
        read_card(odd)
    with pytest.raises(UserError, match="cannot be read"):
        read_card(tmp_path / "absent.safetensors")


def test_newer_format_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = save_bundle(tmp_path / "toy.safetensors", {**CARD, "format": 2}, tensors)
    with pytest.raises(UserError, match="format 2, expected 1"):
        load_bundle(path)


def test_incomplete_or_unserialisable_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lacks kind"):
        save_bundle(tmp_path / "a.safetensors", {"name": "a", "architecture": {}}, {})
    with pytest.raises(UserError, match="not plain JSON"):
        save_bundle(tmp_path / "a.safetensors", {**CARD, "x": torch.zeros(1)}, {})
    assert not list(tmp_path.iterdir())
