"""The device-resident pipeline against torchvision transforms in a DataLoader: augmented images a second.

    python benchmarks/device_pipeline.py [--data FOLDER_OR_PACK] [--device cpu] [--rounds 5]

CIFAR-10, batches of 128, no network: random crop of the image with a border of 4, horizontal flip, scaling
to [0, 1], normalisation. Both give shuffled batches (128,3,32,32) float32 on the device. The two take turns;
each round gives a ratio, and the median is reported. The clock starts when the workers run. The device
pipeline has one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from machine import machine
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from vlkd.data.images.cifar import read_cifar
from vlkd.data.images.device import DeviceAugment, DeviceImages, DeviceLoader
from vlkd.data.loader import EpochSampler

RESULT = Path(__file__).parent / "results" / "device_pipeline.md"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH, WORKERS = 128, 2


class TorchvisionImages(Dataset):
    """As torchvision.datasets.CIFAR10: a PIL image from the array, then the transforms."""

    def __init__(self, data: DeviceImages) -> None:
        self.pixels, self.labels = data.images.permute(0, 2, 3, 1).contiguous().numpy(), data.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def read_pixels(root: str | None) -> DeviceImages:
    """CIFAR-10, or noise of its size."""
    if root is not None:
        return read_cifar("cifar10", root, train=True)
    pixels = torch.randint(256, (50000, 3, 32, 32), dtype=torch.uint8)
    return DeviceImages(pixels, torch.arange(50000) % 10, tuple("abcdefghij"))


def rate(loader: Iterable, device: torch.device, warm: int, batches: int) -> float:
    """Images a second on the device, after the first `warm` batches."""
    began = 0.0
    for k, batch in enumerate(loader):
        images = batch["images"] if isinstance(batch, dict) else batch[0]
        images = images.to(device, non_blocking=True)
        if k + 1 in (warm, warm + batches):
            if device.type == "cuda":
                torch.cuda.synchronize()
            if k + 1 == warm + batches:
                break
            began = time.perf_counter()
    return BATCH * batches / (time.perf_counter() - began)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder or pack of CIFAR-10; noise of its size without")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    data = read_pixels(options.data)
    workers = DataLoader(
        TorchvisionImages(data),
        BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    resident = data.to(device)
    rows: dict[str, DeviceAugment] = {
        "device pipeline": DeviceAugment(normalise=(MEAN, STD)),
        "device pipeline, resized crop": DeviceAugment(resized_crop=(0.2, 1.0), normalise=(MEAN, STD)),
    }
    base: list[float] = []
    rates: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(options.rounds):
        base.append(rate(workers, device, 30, 100))
        for name, augment in rows.items():
            loader = DeviceLoader(resident, EpochSampler(resident, turn), BATCH, augment)
            rates[name].append(rate(loader, device, 20, 300))
    title = f"torchvision transforms, {WORKERS} workers"
    table = [f"| {title} | {statistics.median(base):,.0f} | 1 | |"]
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(found, base, strict=True)]
        spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
        rates_line = f"{statistics.median(found):,.0f} | {statistics.median(ratios):.1f} | {spread}"
        table.append(f"| {name} | {rates_line} |")
    text = "\n".join(
        [
            "# Device-resident pipeline against a DataLoader",
            "",
            f"{machine()} Device: {device}, one thread. CIFAR-10, batches of {BATCH}, "
            f"no network; {options.rounds} rounds, medians. The resized crop does more work than the others.",
            "",
            "| pipeline | images/s | ratio | ratio, all rounds |",
            "|---|---|---|---|",
            *table,
            "",
        ]
    )
    print(text)
    if device.type == "cpu":
        RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
