"""RAFT from a file: sizes, determinism, and files that are no RAFT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vlkd.errors import UserError
from vlkd.models.flow import build_flow


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("raft") / "raft.safetensors"
    save_file(raft_small().state_dict(), path)
    return path


def test_flow_has_the_images_size_and_is_torchvisions(weights: Path) -> None:
    from torchvision.models.optical_flow import raft_small

    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 130, 150, 3), dtype=np.uint8)
    found = build_flow(weights)(first, second)
    assert found.shape == (130, 150, 2)
    torch.manual_seed(0)
    network = raft_small().eval()
    padded = [np.pad(f, ((0, 6), (0, 2), (0, 0)), mode="edge") for f in (first, second)]
    pair = [torch.from_numpy(f).permute(2, 0, 1)[None] / 127.5 - 1 for f in padded]
    with torch.no_grad():
        expected = network(*pair, num_flow_updates=20)[-1][0, :, :130, :150]
    np.testing.assert_allclose(found, expected.permute(1, 2, 0).numpy(), atol=1e-4)


def test_small_images_are_padded(weights: Path) -> None:
    image = np.zeros((20, 36, 3), np.uint8)
    assert build_flow(weights)(image, image).shape == (20, 36, 2)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not weights of this RAFT"):
        build_flow(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no such weights file"):
        build_flow(tmp_path / "absent.pth")
