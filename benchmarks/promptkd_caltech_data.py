"""What benchmarks/promptkd_caltech.py trains on: Caltech-101, CLIP class vectors, an ImageNet backbone."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlkd.data.images.module import ClassificationModuleBase, Split
from vlkd.data.images.select import Classes, class_indices, class_range, holdout_indices
from vlkd.data.images.shards import decode_image
from vlkd.text import ClassVectors

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
# One text encoder and one prompt, "a NAME". LVIS comes last: its names were encoded with their underscores.
LISTS = tuple(f"detic_a_{name}" for name in ("openimages500", "objects365", "coco80", "lvis1203"))
# Caltech's name -> the name of the same thing in a list; all other names must be equal.
RENAMED = {
    "Faces": "human face",
    "Leopards": "leopard",
    "Motorbikes": "motorcycle",
    "airplanes": "airplane",
    "binocular": "binoculars",
    "car side": "car",
    "cellphone": "mobile phone",
    "cougar body": "cougar",
    "dollar bill": "dollar",
    "electric guitar": "guitar",
    "grand piano": "piano",
    "headphone": "headphones",
    "inline skate": "roller skates",
    "octopus": "octopus (animal)",
    "panda": "giant panda",
    "revolver": "handgun",
    "rhino": "rhinoceros",
    "sea horse": "seahorse",
}
_CIFAR_MEAN_STD = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


def plain(name: str) -> str:
    """Lower case, one space between words."""
    return " ".join(name.replace("_", " ").replace("-", " ").split()).lower()


def caltech_names() -> list[str]:
    """Of all 101 classes in label order."""
    with np.load(DATA / "caltech101_subset.npz") as pack:
        return [str(name).replace("_", " ") for name in pack["class_names"]]


def matches() -> dict[str, tuple[str, str, np.ndarray]]:
    """Caltech's name -> list, name there, unit vector (512,); classes without one are left out."""
    found: dict[str, tuple[str, str, np.ndarray]] = {}
    with np.load(DATA / "clip_vitb32_text_embeddings.npz") as file:
        for key in LISTS:
            rows = {plain(str(name)): k for k, name in enumerate(file[f"{key}__names"])}
            for name in caltech_names():
                wanted = plain(RENAMED.get(name, name))
                if name not in found and wanted in rows:
                    vector = file[key][rows[wanted]].astype(np.float32)
                    shown = str(file[f"{key}__names"][rows[wanted]])
                    found[name] = key, shown, vector / np.linalg.norm(vector)
    return {name: found[name] for name in caltech_names() if name in found}


def class_vectors() -> ClassVectors:
    """Of the matched classes, in Caltech's order and under its names."""
    found = matches()
    vectors = torch.from_numpy(np.stack([vector for _, _, vector in found.values()]))
    encoder = "OpenAI CLIP ViT-B/32, as in Detic@436cda2"
    return ClassVectors(vectors, tuple(found), ("a {}",), encoder)


class PackImages:
    """Images of a JPEG pack by number; an ImageDataset."""

    def __init__(self, data: np.ndarray, offsets: np.ndarray, labels: Tensor, names: tuple[str, ...]) -> None:
        self.data, self.offsets, self.labels, self.names = data, offsets, labels, names
        self.numbers = torch.arange(len(labels))

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        """RGB (H,W,3)."""
        number = int(self.numbers[index])
        scan = self.data[self.offsets[number] : self.offsets[number + 1]].tobytes()
        return decode_image(scan, lambda: f"image {number}")

    def select(self, indices: Tensor) -> PackImages:
        """The images `indices` (M,) alone."""
        chosen = PackImages(self.data, self.offsets, self.labels[indices], self.names)
        chosen.numbers = self.numbers[indices]
        return chosen

    def fingerprint(self) -> str:
        """Short hash of names, labels, numbers and bytes."""
        digest = hashlib.sha256(repr(self.names).encode())
        for part in (self.labels.numpy(), self.numbers.numpy(), self.data):
            digest.update(part.tobytes())
        return digest.hexdigest()[:16]


class CaltechData(ClassificationModuleBase):
    """The Caltech-101 classes that have a class vector; the second half of them is novel.

    Args:
        classes: of the training images: all or base. Validation shows all.
        tuning: validate on a fifth of the training images, kept out of training, in place of the test images.
        kwargs: see ClassificationModuleBase.
    """

    def __init__(self, classes: Classes = "all", tuning: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes: Classes = classes
        self.tuning = tuning

    def build(self, split: Split) -> PackImages:
        """The split's images of the matched classes, with labels from 0."""
        kept = tuple(matches())
        label_of = {name: k for k, name in enumerate(kept)}
        part = "train" if split == "train" or self.tuning else "test"
        with np.load(DATA / "caltech101_subset.npz") as pack:
            data, offsets = pack[f"{part}_data"], pack[f"{part}_offsets"]
            old = pack[f"{part}_labels"].astype(np.int64)
        new = torch.tensor([label_of.get(name, -1) for name in caltech_names()])
        images = PackImages(data, offsets, new[torch.from_numpy(old)], kept)
        if self.tuning:
            held_out = torch.zeros(len(images), dtype=torch.bool)
            held_out[holdout_indices(images.labels, 0.2)] = True
            images = images.select((held_out == (split == "val")).nonzero().flatten())
        classes = self.classes if split == "train" else "all"
        return images.select(class_indices(images.labels, class_range(len(kept), classes)))

    def novel_labels(self) -> frozenset[int]:
        """The second half."""
        return frozenset(class_range(len(self.names), "novel"))


class MobileNet(nn.Module):
    """A MobileNetV2 1.0 with ImageNet weights: pooled features (B,1280), then a linear layer.

    Args:
        num_classes: outputs of that layer, which PromptKD does not read.
    """

    def __init__(self, num_classes: int = 1) -> None:
        super().__init__()
        self.backbone = _runner()(DATA / "teacher_mobilenetv2_imagenet.npz")
        self.head = nn.Linear(1280, num_classes)
        # A network named by its import path gets images normalised as CIFAR's; this one wants bytes.
        for key, values in zip(("mean", "std"), _CIFAR_MEAN_STD, strict=True):
            self.register_buffer(key, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) normalised -> (B,num_classes)."""
        _, pooled = self.backbone(255 * (images * self.std + self.mean), features=True)
        return self.head(pooled)


def _runner() -> Any:
    """TFLiteNet of shared/data."""
    spec = importlib.util.spec_from_file_location("tflite_net", DATA / "tflite_net.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TFLiteNet
