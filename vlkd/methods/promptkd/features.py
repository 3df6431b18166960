"""What the teacher says of stored crops: computed once a data set, kept on disk, read by image and view."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from vlkd.cache import cache_folder, cache_key, store


class Teacher(Protocol):
    """What is asked of a teacher."""

    spec: Any

    @property
    def identity(self) -> str: ...

    def encode_image(self, images01: Tensor, /) -> Tensor: ...


class Crops(Protocol):
    """What is asked of a data module (vlkd.data.images.ClassificationModuleBase)."""

    views: int | None

    def train_fingerprint(self, augmented: bool = True) -> str: ...

    def train_pass(self, augmented: bool, view: int = 0) -> Iterator[dict[str, Tensor]]: ...


class TeacherFeatures:
    """Unit vectors (N,D) of the teacher for each view of N training images.

    One file a view, keyed by the teacher's weights, its input and the fingerprint of images and crops: an
    interrupted pass goes on with the first view that is missing, and other crops or weights have other files.
    """

    def __init__(self, views: list[Tensor]) -> None:
        self.views = views

    def rows(self, indices: Tensor, views: Tensor) -> Tensor:
        """(B,D) of images (B,) at views (B,), on the device of `indices`."""
        device, indices, views = indices.device, indices.cpu(), views.cpu()
        found = torch.empty(len(indices), self.views[0].shape[1])
        for view in views.unique().tolist():
            chosen = views == view
            found[chosen] = self.views[view][indices[chosen]]
        return found.to(device)

    @staticmethod
    def paths(teacher: Teacher, data: Crops) -> list[Path]:
        """The file of each view."""
        parts = {"format": 1, "teacher": teacher.identity, "spec": teacher.spec.to_dict()}
        parts["data"] = data.train_fingerprint(augmented=True)
        keys = [cache_key(**parts, view=view) for view in range(data.views or 0)]
        return [cache_folder() / "promptkd" / f"{key[:24]}.safetensors" for key in keys]

    @classmethod
    def build(cls, teacher: Teacher, data: Crops, device: torch.device) -> TeacherFeatures:
        """Compute what is not stored yet, on `device`; read the rest."""
        paths = cls.paths(teacher, data)
        for view, path in enumerate(paths):
            if not path.is_file():
                title = f"teacher features, view {view + 1} of {len(paths)}"
                store(path, {"vectors": _encode(teacher, data, view, device, title)}, {})
        return cls.load(paths)

    @classmethod
    def wait(cls, paths: list[Path]) -> TeacherFeatures:
        """As load, once another process of this machine has written all views."""
        while not all(path.is_file() for path in paths):
            time.sleep(0.5)
        return cls.load(paths)

    @classmethod
    def load(cls, paths: list[Path]) -> TeacherFeatures:
        """The stored views; pages are read from disk as they are used."""
        views = []
        for path in paths:
            with safe_open(path, framework="pt") as stored:
                views.append(stored.get_tensor("vectors"))
        return cls(views)


@torch.inference_mode()
def _encode(teacher: Teacher, data: Any, view: int, device: torch.device, title: str) -> Tensor:
    from rich.console import Console
    from rich.progress import track

    total = -(-len(data.train_dataset) // data.val_batch_size)
    batches = track(
        data.train_pass(augmented=True, view=view), title, total, console=Console(stderr=True), transient=True
    )
    return torch.cat([teacher.encode_image(batch["images"].to(device)).float().cpu() for batch in batches])
