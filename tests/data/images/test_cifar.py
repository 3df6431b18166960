"""CIFAR from packs, from torchvision's layout, and the real packs."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from vlkd.data.images import cifar
from vlkd.data.images.cifar import read_cifar
from vlkd.errors import UserError

NAMES = ["air_plane", *"bcdefghij"]


def jpeg(colour: int, size: tuple[int, int] = (32, 32)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (colour, 0, 0)).save(stream, "JPEG")
    return stream.getvalue()


def write_pack(path: Path, images: list[bytes], labels: list[int], names: list[str] = NAMES) -> Path:
    whole = images[0]
    cut = whole.index(b"\xff\xda")
    scans = [image[cut:] for image in images]
    arrays = {"header": np.frombuffer(whole[:cut], np.uint8), "class_names": np.array(names)}
    for split in ("train", "test"):
        arrays[f"{split}_data"] = np.frombuffer(b"".join(scans), np.uint8)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, scans)])
        arrays[f"{split}_labels"] = np.array(labels, np.uint8)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_a_pack_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pack(tmp_path / "cifar10.npz", [jpeg(60), jpeg(120), jpeg(200)], [3, 0, 9])
    data = read_cifar("cifar10", path, train=True)
    assert data.names == ("air plane", *NAMES[1:]) and data.labels.tolist() == [3, 0, 9]
    assert data.images.shape == (3, 3, 32, 32) and data.images.dtype == torch.uint8
    assert [abs(int(x[0, 5, 5]) - c) < 4 for x, c in zip(data.images, (60, 120, 200), strict=True)] == [
        True
    ] * 3
    assert np.array_equal(data.image(1), data.images[1].permute(1, 2, 0).numpy())
    monkeypatch.setattr(cifar, "decode_image", lambda *_: pytest.fail("decoded again"))
    again = read_cifar("cifar10", tmp_path, train=False)
    assert torch.equal(again.images, data.images)


def test_faults_of_packs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.npz: no such pack"):
        read_cifar("cifar10", tmp_path / "none.npz", train=True)
    bad = tmp_path / "cifar10.npz"
    bad.write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"cifar10\.npz: no image pack"):
        read_cifar("cifar10", tmp_path, train=True)
    np.savez(bad, class_names=np.array(NAMES))
    with pytest.raises(UserError, match=r"expected arrays class_names, train_data"):
        read_cifar("cifar10", tmp_path, train=True)
    write_pack(bad, [jpeg(9), jpeg(8)], [0, 10])
    with pytest.raises(UserError, match="a train label is 10; expected 0 to 9"):
        read_cifar("cifar10", bad, train=True)
    write_pack(bad, [jpeg(9), jpeg(8)], [0])
    with pytest.raises(UserError, match="1 train labels for 2 images"):
        read_cifar("cifar10", bad, train=True)
    write_pack(bad, [jpeg(7, (16, 16))], [0])
    with pytest.raises(UserError, match="train image 0: 16x16 pixels, expected 32x32"):
        read_cifar("cifar10", bad, train=True)
    write_pack(bad, [jpeg(6)], [0])
    with pytest.raises(UserError, match=r"10 classes, but cifar100 has 100; set data\.kind"):
        read_cifar("cifar100", bad, train=True)


def test_torchvision_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    with pytest.raises(UserError, match=r"missing or damaged; expected cifar-10-batches-py/.*download=true"):
        read_cifar("cifar10", tmp_path, train=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    known = {}
    for name, content in {
        "data_batch_1": {"data": pixels, "labels": [4, 2]},
        "test_batch": {"data": pixels[:1], "labels": [1]},
        "batches.meta": {"label_names": NAMES},
    }.items():
        (folder / name).write_bytes(pickle.dumps(content))
        known[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", known["data_batch_1"]]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", known["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": known["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    data = read_cifar("cifar10", tmp_path, train=True)
    assert data.labels.tolist() == [4, 2] and data.names[0] == "air plane"
    assert np.array_equal(data.images.numpy(), pixels.reshape(2, 3, 32, 32))
    assert len(read_cifar("cifar10", tmp_path, train=False)) == 1


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("kind", "classes", "mean"),
    [("cifar10", 10, (0.4914, 0.4822, 0.4465)), ("cifar100", 100, (0.5071, 0.4865, 0.4409))],
)
def test_the_real_packs(kind: str, classes: int, mean: tuple[float, ...], shared_data: Path) -> None:
    test = read_cifar(kind, shared_data, train=False)
    assert test.images.shape == (10000, 3, 32, 32) and len(test.names) == classes
    assert torch.bincount(test.labels).tolist() == [10000 // classes] * classes
    # The published means are of the training set; the test set's differ by less than a hundredth.
    found = test.images.float().mean((0, 2, 3)) / 255
    assert torch.allclose(found, torch.tensor(mean), atol=0.01)
