"""Every loss of vlkd.losses as its formula reads, for comparison: clear, and what one writes first."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def kd(s: Tensor, t: Tensor, temperature: float = 4.0) -> Tensor:
    p, q = (t / temperature).softmax(1), (s / temperature).softmax(1)
    return temperature**2 * (p * (p / q).log()).sum(1).mean()


def dkd(
    s: Tensor, t: Tensor, labels: Tensor, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0
) -> Tensor:
    label = F.one_hot(labels, s.shape[1]).bool()

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        p = (x / temperature).softmax(1)
        both = torch.stack([(p * label).sum(1), (p * ~label).sum(1)], 1)
        return both, (x / temperature - 1000.0 * label).softmax(1)

    (s_both, s_others), (t_both, t_others) = parts(s), parts(t)
    tckd = (t_both * (t_both / s_both).log()).sum(1).mean()
    nckd = (t_others * (t_others.clamp(min=1e-30) / s_others.clamp(min=1e-30)).log()).sum(1).mean()
    return temperature**2 * (alpha * tckd + beta * nckd)


def dist(s: Tensor, t: Tensor, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> Tensor:
    def pearson(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)

    p, q = (s / temperature).softmax(1), (t / temperature).softmax(1)
    inter, intra = 1 - pearson(p, q).mean(), 1 - pearson(p.T, q.T).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def standardised_kd(s: Tensor, t: Tensor, temperature: float = 2.0) -> Tensor:
    def z(x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7)

    return kd(z(s), z(t), temperature)


def sinkhorn(
    s: Tensor, t: Tensor, temperature: float = 2.0, epsilon: float = 0.1, iterations: int = 20
) -> Tensor:
    p, q = (s / temperature).softmax(1), (t / temperature).softmax(1)
    cost = torch.cdist(p, q, p=1)
    plan = (-cost / epsilon).exp()
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return (plan * cost).sum()


def nd(s: Tensor, t: Tensor, means: Tensor, labels: Tensor) -> Tensor:
    terms = []
    for i in range(len(s)):
        mean = means[labels[i]]
        norm = s[i].norm() if s[i].norm() >= t[i].norm() else t[i].norm()
        terms.append(1 - s[i] @ (mean / mean.norm()) / norm)
    return torch.stack(terms).mean()


def at(s: Tensor, t: Tensor) -> Tensor:
    def attention(x: Tensor) -> Tensor:
        a = x.pow(2).mean(1).flatten(1)
        return a / a.norm(dim=1, keepdim=True)

    return (attention(s) - attention(t)).pow(2).mean()


def fitnet(s: Tensor, t: Tensor) -> Tensor:
    return (s - t).pow(2).mean()


def nst(s: Tensor, t: Tensor) -> Tensor:
    """Neuron form: the kernel of every pair of channels."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("bin,bjn->bij", a, b).pow(2)

    s, t = F.normalize(s.flatten(2), dim=2), F.normalize(t.flatten(2), dim=2)
    return kernel(t, t).mean() + kernel(s, s).mean() - 2 * kernel(s, t).mean()


def nst_tokens(s: Tensor, t: Tensor) -> Tensor:
    """Neuron form: a neuron is a coordinate of the states over the tokens."""
    return nst(F.normalize(s, dim=2).mT, F.normalize(t, dim=2).mT)


def vid(mean: Tensor, t: Tensor, log_scale: Tensor) -> Tensor:
    variance = ((1 + log_scale.exp()).log() + 1e-5)[None, :, None, None]
    return (0.5 * ((mean - t) ** 2 / variance + variance.log())).mean()


def ofd(s: Tensor, t: Tensor, margin: Tensor) -> Tensor:
    t = torch.maximum(t, margin[None, :, None, None])
    loss = (s - t) ** 2 * ((s > t) | (t > 0)).float()
    return loss.sum() / len(s)


def review_kd(s: Tensor, t: Tensor) -> Tensor:
    total, weight, weights = ((s - t) ** 2).mean(), 1.0, 1.0
    for side in (4, 2, 1):
        weight /= 2
        difference = F.adaptive_avg_pool2d(s, side) - F.adaptive_avg_pool2d(t, side)
        total, weights = total + weight * (difference**2).mean(), weights + weight
    return total / weights


def rkd(s: Tensor, t: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    """With the B x B x D differences of both sides."""

    def distances(x: Tensor) -> Tensor:
        d = (x[None] - x[:, None]).norm(dim=2)
        return d / d[d > 0].mean()

    def angles(x: Tensor) -> Tensor:
        unit = F.normalize(x[None] - x[:, None], dim=2)
        return unit @ unit.mT

    return distance_weight * F.smooth_l1_loss(distances(s), distances(t)) + angle_weight * F.smooth_l1_loss(
        angles(s), angles(t)
    )


def sp(s: Tensor, t: Tensor) -> Tensor:
    def similarity(x: Tensor) -> Tensor:
        gram = x.flatten(1) @ x.flatten(1).T
        return gram / gram.norm(dim=1, keepdim=True)

    return (similarity(s) - similarity(t)).pow(2).sum() / len(s) ** 2


def pkt(s: Tensor, t: Tensor) -> Tensor:
    def neighbours(x: Tensor) -> Tensor:
        x = x / (x.norm(dim=1, keepdim=True) + 1e-7)
        similar = (x @ x.T + 1) / 2
        return similar / similar.sum(1, keepdim=True)

    p, q = neighbours(s), neighbours(t)
    return (q * ((q + 1e-7) / (p + 1e-7)).log()).mean()


def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.5) -> Tensor:
    z = torch.cat([a, b])
    z = z / z.norm(dim=1, keepdim=True)
    weight = (z @ z.T / temperature).exp() * (1 - torch.eye(len(z)))
    positive = (z * z.roll(len(a), 0)).sum(1) / temperature
    return (weight.sum(1).log() - positive).mean()


def token_contrastive(s: Tensor, t: Tensor, temperature: float = 0.1) -> Tensor:
    """One position after the other."""
    return torch.stack([nt_xent(s[:, i], t[:, i], temperature) for i in range(s.shape[1])]).mean()


def crd(
    s: Tensor,
    t: Tensor,
    contrast: Tensor,
    student_bank: Tensor,
    teacher_bank: Tensor,
    partition: Tensor,
    temperature: float = 0.07,
) -> Tensor:
    """With the B x (1 + K) x D gathered rows of both banks; partition: student's, teacher's."""

    def side(x: Tensor, bank: Tensor, z: Tensor) -> Tensor:
        density = (bank[contrast] @ x[:, :, None]).squeeze(2).div(temperature).exp() / z
        noise = (contrast.shape[1] - 1) / len(bank)
        positive = (density[:, 0] / (density[:, 0] + noise + 1e-7)).log().sum()
        negative = (noise / (density[:, 1:] + noise + 1e-7)).log().sum()
        return -(positive + negative) / len(x)

    return side(s, teacher_bank, partition[0]) + side(t, student_bank, partition[1])


def trg_local(s: Tensor, t: Tensor, k: int = 8) -> Tensor:
    """k nearest teacher neighbours and their distribution, from the P x P x D differences of both sides."""

    def squares(x: Tensor) -> Tensor:
        return (x[:, None] - x[None]).pow(2).sum(2)

    d = squares(t)
    near = d.detach().fill_diagonal_(math.inf).topk(k, largest=False).indices
    edge = torch.zeros_like(d, dtype=torch.bool).scatter(1, near, True)
    q, p = ((-x / 2).exp().masked_fill(~edge, -math.inf).softmax(1) for x in (d, squares(s)))
    return (q[edge] * (q[edge] / p[edge]).log()).sum() / len(t)


def trg_global(s: Tensor, t: Tensor, temperature: float = 0.1) -> Tensor:
    s, t = (x / x.norm(dim=1, keepdim=True) for x in (s, t))
    weight = (s @ t.T / temperature).exp()
    return -(weight.diagonal() / weight.sum(1)).log().mean()


def trg_contextual(s: Tensor, t: Tensor) -> Tensor:
    def attention(x: Tensor) -> Tensor:
        return (x @ x.mT / math.sqrt(x.shape[2])).softmax(2)

    return (attention(s) - attention(t)).pow(2).mean()
