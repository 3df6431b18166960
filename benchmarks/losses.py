"""Every loss against a straightforward form of its formula (naive_losses.py): time and peak memory.

    taskset -c 0 python benchmarks/losses.py [--only rkd,nst]

One forward and backward pass at batch 64. Time: median CPU time of one thread. Memory: highest sum of what
torch allocated above the inputs, from the profiler's list of allocations. Both forms must agree in value and
gradient with the naive form in float64.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "5")

import naive_losses as naive
import torch
import torch.nn.functional as F
from machine import machine
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vlkd import losses

RESULT = Path(__file__).parent / "results" / "losses.md"
BATCH, CLASSES, WIDTH, TOKENS, MAP = 64, 1000, 768, 196, (256, 8, 8)
SAMPLED = 8  # tokens of an image that TRG's graph takes: 512 nodes
NEGATIVES, TRAINING_SET = 16384, 50000
TEXTS = (32, 128, WIDTH)  # a batch of text blocks

Form = Callable[..., Tensor]


class Case(NamedTuple):
    """One row: the inputs, and both forms of a loss as functions of them."""

    name: str
    about: str
    tensors: list[Tensor]
    ours: Form
    naive: Form


def pair(*shape: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """A student's tensor, to be trained, and a teacher's that resembles it."""
    student = scale * torch.randn(shape)
    return student.requires_grad_(), student.detach() + 0.7 * scale * torch.randn(shape)


def logit_cases() -> Iterator[Case]:
    s, t = pair(BATCH, CLASSES, scale=4.0)
    labels, about = torch.randint(CLASSES, (BATCH,)), f"{BATCH} x {CLASSES} logits"

    def standardised(s: Tensor, t: Tensor) -> Tensor:
        return losses.kd(losses.logit_standardise(s), losses.logit_standardise(t), 2.0)

    yield Case("kd", about, [s, t], losses.kd, naive.kd)
    yield Case("dkd", about, [s, t, labels], losses.dkd, naive.dkd)
    yield Case("dist", about, [s, t], losses.dist, naive.dist)
    yield Case("logit_standardise + kd", about, [s, t], standardised, naive.standardised_kd)
    yield Case("sinkhorn", about, [s, t], losses.sinkhorn, naive.sinkhorn)


def vector_cases() -> Iterator[Case]:
    s, t = pair(BATCH, WIDTH)
    means, labels = torch.randn(CLASSES, WIDTH), torch.randint(CLASSES, (BATCH,))
    about = f"{BATCH} x {WIDTH}"
    yield Case("nd", about, [s, t, means, labels], losses.nd, naive.nd)
    yield Case("rkd", about, [s, t], losses.rkd, naive.rkd)
    yield Case("pkt", about, [s, t], losses.pkt, naive.pkt)
    yield Case("nt_xent", about, [s, t], losses.nt_xent, naive.nt_xent)


def map_cases() -> Iterator[Case]:
    s, t = pair(BATCH, *MAP)
    scale, margin = torch.full(MAP[:1], 5.0).requires_grad_(), -torch.rand(MAP[0])
    about = f"{BATCH} x {' x '.join(map(str, MAP))} map"
    for name in ("at", "fitnet", "sp", "nst", "review_kd"):
        yield Case(name, about, [s, t], getattr(losses, name), getattr(naive, name))
    yield Case("vid", about, [s, t, scale], losses.vid, naive.vid)
    yield Case("ofd", about, [s, t, margin], losses.ofd, naive.ofd)


def crd_case() -> Iterator[Case]:
    s, t = (F.normalize(x.detach()) for x in pair(BATCH, 128))
    indices = torch.randperm(TRAINING_SET)[:BATCH]
    memory = losses.CRDMemory(TRAINING_SET, 128, NEGATIVES)
    contrast = memory.draw(indices)
    losses.crd(s, t, indices, memory, contrast)  # fixes the normalising constant, as the first batch of a run
    yield Case(
        "crd",
        f"{BATCH} x 128, {NEGATIVES} negatives of {TRAINING_SET}",
        [s.requires_grad_(), t, contrast, memory.student, memory.teacher, memory.log_partition.exp()],
        lambda s, t, contrast, *_: losses.crd(s, t, indices, memory, contrast, update=False),
        naive.crd,
    )


def token_cases() -> Iterator[Case]:
    nodes = BATCH * SAMPLED
    s, t = (F.normalize(x.detach()) for x in pair(nodes, WIDTH))
    s.requires_grad_()

    def local(s: Tensor, t: Tensor) -> Tensor:
        return losses.trg_local(s, t, losses.knn_edges(t, 8))

    about = f"{nodes} x {WIDTH} tokens"
    yield Case("knn_edges + trg_local", f"{about}, 8 neighbours", [s, t], local, naive.trg_local)
    yield Case("trg_global", about, [s, t], lambda s, t: losses.trg_global(s, t, 0.1), naive.trg_global)
    s, t = pair(BATCH, TOKENS, WIDTH, scale=0.2)  # longer tokens attend to themselves alone
    about = f"{BATCH} x {TOKENS} x {WIDTH} tokens"
    yield Case("trg_contextual", about, [s, t], losses.trg_contextual, naive.trg_contextual)


def language_cases() -> Iterator[Case]:
    s, t = pair(*TEXTS)
    about = f"{' x '.join(map(str, TEXTS))} states"
    yield Case("nst_tokens", about, [s, t], losses.nst_tokens, naive.nst_tokens)

    def by_position(s: Tensor, t: Tensor) -> Tensor:
        return losses.token_contrastive(s, t, 0.1)

    yield Case("token_contrastive", f"{about}, by position", [s, t], by_position, naive.token_contrastive)


def step(form: Form, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Value and gradients."""
    value = form(*tensors)
    return value.detach(), *torch.autograd.grad(value, [x for x in tensors if x.requires_grad])


def differences(case: Case) -> tuple[float, float]:
    """Of both forms from the naive one in float64: value or gradient, relative to the (largest) right one."""
    exact = [
        x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x
        for x in case.tensors
    ]
    right = step(case.naive, exact)

    def difference(form: Form) -> float:
        found = step(form, case.tensors)
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, right, strict=True))

    return difference(case.naive), difference(case.ours)


def peak(form: Form, tensors: Sequence[Tensor]) -> int:
    """Bytes: highest sum of the allocations and releases of one pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step(form, tensors)
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def seconds(case: Case, budget: float = 1.0, most: int = 200) -> tuple[float, float]:
    """Median CPU seconds of the naive form and ours; in turns, so that a slow moment hits both."""
    times: dict[Form, list[float]] = {case.naive: [], case.ours: []}
    for _ in range(most):
        for form, spent in times.items():
            if not spent or sum(spent) + spent[-1] < budget:
                start = time.process_time()
                step(form, case.tensors)
                spent.append(time.process_time() - start)
    return statistics.median(times[case.naive]), statistics.median(times[case.ours])


def row(case: Case) -> str:
    of_naive, of_ours = differences(case)
    if not max(of_naive, of_ours) < 1e-3:
        raise SystemExit(f"{case.name}: differs by {of_ours:.1e}, naive in float32 by {of_naive:.1e}")
    slow, quick = seconds(case)
    large, small = (peak(form, case.tensors) for form in (case.naive, case.ours))
    return (
        f"| {case.name} | {case.about} | {slow * 1e3:.2f} | {quick * 1e3:.2f} | {slow / quick:.1f}x "
        f"| {large / 1e6:.2f} | {small / 1e6:.2f} | {large / small:.1f}x | {of_naive:.0e} | {of_ours:.0e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="comma-separated losses; the table is then only printed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = [
        "# Losses: ours against the formula as it reads",
        "",
        f"`taskset -c 0 python benchmarks/losses.py`. {machine()} One thread; forward and backward; median "
        "CPU time; memory that torch allocates above the inputs. Error: of value or gradient, relative, "
        "against the naive form in float64.",
        "",
        "| loss | input | naive ms | ours ms | faster | naive MB | ours MB | leaner | naive error | ours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    only = set(arguments.only.split(",")) - {""}
    for family in (logit_cases, vector_cases, map_cases, crd_case, token_cases, language_cases):
        for case in family():
            if not only or only & set(case.name.split(" + ")):
                lines.append(row(case))
                print(lines[-1], flush=True)
    if not only:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
