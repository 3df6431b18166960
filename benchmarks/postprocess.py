"""Post-processing: strips over live queries against full-resolution class maps: time, peak memory, labels.

    python benchmarks/postprocess.py [--model NAME_OR_FILE --classes A,B,... IMAGE...]

Inputs are made: soft regions that tile the image, each with a confident class and near rivals, and weak
queries that lean to no-object. With --model, that model's outputs for the images are measured too. Every
measurement is a fresh process: CPU time of one thread, which other work on the machine disturbs least, and
the resident peak (Linux VmHWM) above the state before the call.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

RESULT = Path(__file__).parent / "results" / "postprocess.md"
SIZES = {"640 px": (640, 640), "1080p": (1080, 1920)}
CLASSES = (150, 847)
QUERIES = 100


def made_outputs(classes: int, size: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """class_logits (Q,K+1) and mask_logits (Q,h,w) at stride 4, as of a trained mask classifier."""
    import torch
    import torch.nn.functional as F

    g = torch.Generator().manual_seed(seed)
    real = int(QUERIES * 0.4)
    shape = (size[0] // 4, size[1] // 4)

    def field(n: int, cells: tuple[int, int]) -> Tensor:
        return F.interpolate(torch.randn(1, n, *cells, generator=g), shape, mode="bicubic")[0]

    regions = field(real, (6, 8))
    best = regions.topk(2, 0).values
    masks = (20 * (regions - torch.where(regions == best[0], best[1], best[0]))).clamp(-12, 12)
    masks += 0.5 * torch.randn(masks.shape, generator=g)
    weak = 4 * field(QUERIES - real, (6, 8)) - 3 + 0.5 * torch.randn(QUERIES - real, *shape, generator=g)
    logits = 1.5 * torch.randn(QUERIES, classes + 1, generator=g)
    for rows, rise in ((slice(0, real), (10, 7, 7, 7)), (slice(real, None), (6, 4))):
        block = logits[rows]
        for r in rise:
            block[torch.arange(len(block)), torch.randint(classes, (len(block),), generator=g)] += r
    logits[real:, -1] += 9
    return logits, torch.cat([masks, weak])


def memory(field: str) -> int:
    """Bytes of a field of /proc/self/status (VmHWM resident peak, VmRSS resident now)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) * 1024


def measure(file: str, form: str, size: tuple[int, int], repeats: int, out: str) -> None:
    """Child process: run one form on stored inputs, print CPU seconds and peak bytes, store the labels."""
    import torch
    from safetensors.torch import load_file, save_file

    from vlkd.models.postprocess import semantic_labels

    torch.set_num_threads(1)
    inputs = load_file(file)
    logits, masks = inputs["class_logits"], inputs["mask_logits"].clone()
    with torch.inference_mode():
        semantic_labels(logits, masks[:, :16, :16].contiguous(), (64, 64), form)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        before, seconds, peak = memory("VmRSS"), [], 0
        for _ in range(repeats):
            start = time.process_time()
            labels = semantic_labels(logits, masks, size, form)
            seconds.append(time.process_time() - start)
            peak = peak or memory("VmHWM") - before
    save_file({"labels": labels.contiguous()}, out)
    print(json.dumps({"seconds": sorted(seconds)[len(seconds) // 2], "peak": peak}))


def compare(logits: Tensor, masks: Tensor, size: tuple[int, int], folder: str) -> dict[str, float]:
    """Both forms in processes of their own: seconds, bytes and the share of pixels with equal labels."""
    from safetensors.torch import load_file, save_file

    file = f"{folder}/inputs.safetensors"
    save_file({"class_logits": logits.contiguous(), "mask_logits": masks.contiguous()}, file)
    row: dict[str, float] = {}
    labels = {}
    for form, repeats in (("full", 3), ("strips", 9)):
        out = f"{folder}/{form}.safetensors"
        task = json.dumps([file, form, size, repeats, out])
        done = subprocess.run(
            [sys.executable, __file__, "--child", task], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{form} failed ({done.returncode}; out of memory?): {done.stderr[-300:]}")
        result = json.loads(done.stdout)
        row |= {f"{form}_s": result["seconds"], f"{form}_mb": result["peak"] / 1e6}
        labels[form] = load_file(out)["labels"]
    row["agree"] = (labels["full"] == labels["strips"]).float().mean().item()
    return row


def model_outputs(model: str, classes: str, images: list[str]) -> Iterator[tuple]:
    """(name, class_logits, mask_logits, size) of a real model for every image."""
    import vlkd
    from vlkd.infer.image_io import read_image

    predictor = vlkd.load(model)
    for image in images:
        pixels = read_image(image)
        yield Path(image).name, *predictor.outputs(pixels, classes), pixels.shape[:2]


def machine() -> str:
    import torch

    cpu = next(
        (
            x.split(":")[1].strip()
            for x in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in x
        ),
        platform.processor(),
    )
    return (
        f"{cpu}, {os.cpu_count()} cores, one used; torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="also measure on this model's outputs")
    parser.add_argument("--classes", default="", help="with --model: comma-separated class names")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the table goes (Markdown)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("images", nargs="*")
    args = parser.parse_args()
    if args.child:
        return measure(*json.loads(args.child))
    cases = (
        (f"made, K={k}, {name}", *made_outputs(k, size, seed=k), size)
        for k in CLASSES
        for name, size in SIZES.items()
    )
    lines = [
        "# Post-processing: strips against full",
        "",
        machine() + f". Q={QUERIES}; medians of CPU seconds; memory: peak above the inputs.",
        "",
        "| input | full s | strips s | faster | full MB | strips MB | leaner | equal labels |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    real = model_outputs(args.model, args.classes, args.images) if args.model else ()
    with tempfile.TemporaryDirectory() as folder:
        for source in (cases, real):
            for name, logits, masks, size in source:
                r = compare(logits, masks, size, folder)
                line = (
                    f"| {name} | {r['full_s']:.2f} | {r['strips_s']:.3f} "
                    f"| {r['full_s'] / r['strips_s']:.0f}x "
                    f"| {r['full_mb']:.0f} | {r['strips_mb']:.0f} | {r['full_mb'] / r['strips_mb']:.0f}x "
                    f"| {100 * r['agree']:.2f} % |"
                )
                lines.append(line)
                print(line, flush=True)
    args.out.parent.mkdir(exist_ok=True, parents=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
