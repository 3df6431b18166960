"""A language student takes over what its teacher saw: states of tokens, and texts against videos.

States are (B,L,D): B sequences of L tokens. A mask (B,L) of bool or 0/1 says which tokens count, whatever
their values; the others get exactly no gradient, and without any token a loss is 0. A teacher gets none.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.errors import UserError
from vlkd.losses.contrastive import crd, nt_xent
from vlkd.losses.feature import neuron_mmd
from vlkd.losses.memory import CRDMemory
from vlkd.losses.precision import full

Normalise = Literal["clean", "repo"]


def nst_tokens(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, normalise: Normalise = "clean"
) -> Tensor:
    """Neuron selectivity transfer within sequences: raw states (B,L,C), (B,L,D), mask (B,L) -> scalar.

    Tokens are made unit inside; a neuron is one coordinate's L values (neuron_mmd). "clean": the whole
    squared MMD, not negative, mean over the sequences that have a token. "repo": without the constant teacher
    term, so it may be negative, sum over sequences divided by the length L. UserError when shapes do not fit.
    Source: VidLanKD (arXiv 2107.02681); zinengtang/VidLanKD@46bae35, whose weight so grows with B / L.
    """
    _check_choice("nst_tokens", "normalise", normalise, ("clean", "repo"))
    valid = _check_states("nst_tokens", student, teacher, mask, any_width=True)
    with torch.autocast(student.device.type, enabled=False):
        s, t = (F.normalize(_kept(x, mask), dim=2).mT for x in (student, teacher.detach()))
        values = neuron_mmd(s, t, teacher_term=normalise == "clean")
        return values.sum() / (valid.any(1).sum().clamp(min=1) if normalise == "clean" else student.shape[1])


def token_contrastive(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    mode: Literal["position", "flat"] = "position",
    normalise: Normalise = "clean",
    mask: Tensor | None = None,
) -> Tensor:
    """Contrast of the student's with the teacher's tokens: raw states (B,L,D), mask (B,L) -> scalar in nats.

    Both tokens of a pair are anchors, as in nt_xent. "position": the others are the batch's tokens at the
    same position; "flat": all of the batch. "clean": mean over anchors. "repo": the mean over a position's
    anchors is divided once more by their number, 2B without a mask, then averaged over positions; "flat"
    counts as one position. UserError when shapes do not fit or a word is unknown. Source: VidLanKD (arXiv
    2107.02681); zinengtang/VidLanKD@46bae35 is "position", "repo", temperature 1.
    """
    name = "token_contrastive"
    _check_choice(name, "mode", mode, ("position", "flat"))
    _check_choice(name, "normalise", normalise, ("clean", "repo"))
    valid = _check_states(name, student, teacher, mask)
    if mode == "flat":
        s, t = (full(x)[valid] for x in (student, teacher.detach()))
        if not len(s):
            return s.sum()
        return nt_xent(s, t, temperature) / (2 * len(s) if normalise == "repo" else 1)
    with torch.autocast(student.device.type, enabled=False):
        s, t = _kept(student, mask), _kept(teacher.detach(), mask)
        values = _contrast_by_position(s, t, valid, temperature)
        anchors = valid.T.repeat(1, 2)
        if normalise == "clean":
            return _mean(values, anchors)
        count = anchors.sum(1).to(values.dtype).clamp(min=1)
        return _mean((values * anchors).sum(1) / count.square(), anchors.any(1))


def soft_label(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None, temperature: float = 1.0
) -> Tensor:
    """Cross entropy with the teacher's words: logits (B,L,K), mask (B,L) -> scalar in nats, mean over tokens.

    Both softened by the temperature T, times T^2; equal logits leave the teacher's entropy. UserError when
    shapes do not fit. Source: soft labels of VidLanKD (arXiv 2107.02681); Hinton et al. 2015, section 2.
    """
    valid = _check_states("soft_label", student_logits, teacher_logits, mask)
    with torch.autocast(student_logits.device.type, enabled=False):
        # Rows are picked first: a vocabulary is wide, and most blocks have few tokens to learn from.
        s, t = (full(x)[valid] / temperature for x in (student_logits, teacher_logits.detach()))
        total = F.cross_entropy(s, t.softmax(1), reduction="sum")
        return total * (temperature**2 / max(1, len(s)))


def hidden_l2(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Squared distance of tokens made unit inside: raw states (B,L,D), mask (B,L) -> scalar in [0,4].

    Summed over D, mean over tokens. UserError when shapes do not fit.
    Source: L2 of VidLanKD (arXiv 2107.02681), as in the history of zinengtang/VidLanKD.
    """
    valid = _check_states("hidden_l2", student, teacher, mask)
    with torch.autocast(student.device.type, enabled=False):
        s, t = (F.normalize(full(x)[valid], dim=1) for x in (student, teacher.detach()))
        return (s - t).square().sum() / max(1, len(s))


def hinge_half(
    text: Tensor, video: Tensor, mask: Tensor | None, margin: float = 1.0, frames: Tensor | None = None
) -> Tensor:
    """Hinge of texts (B,L,D) with videos (B,D), unit vectors, mask (B,L) -> scalar, mean over tokens.

    max(0, margin - u.v + u.w) for each token u, v its own video, w the video half a batch away: one negative.
    In an odd batch the last row first comes twice. A batch of one gives the margin, without gradient.
    Videos of several vectors (B,T,D) as in `infonce`. UserError when shapes do not fit.
    Source: VidLanKD (arXiv 2107.02681); zinengtang/VidLanKD@46bae35.
    """
    valid = _check_videos("hinge_half", text, video, mask, frames)
    with torch.autocast(text.device.type, enabled=False):
        u, (v, some) = _kept(text, mask), _vectors(video, frames)
        if len(u) % 2:
            u, v, some, valid = (torch.cat([x, x[-1:]]) for x in (u, v, some, valid))
        half = len(v) // 2
        own, other = (
            _nearest(u @ x.mT, rows[:, None])
            for x, rows in ((v, some), (v.roll(half, 0), some.roll(half, 0)))
        )
        return _mean((margin - own + other).clamp(min=0), valid)


def hinge_all(
    text: Tensor, video: Tensor, mask: Tensor | None, margin: float = 1.0, frames: Tensor | None = None
) -> Tensor:
    """Hinge of texts (B,L,D) with videos (B,D), unit vectors, mask (B,L) -> scalar, over all wrong pairs.

    For token i of text a, u_ai, and video v_b, b other than a: max(0, margin - u_ai.v_a + u_ai.v_b), a wrong
    video, and max(0, margin - u_bi.v_b + u_ai.v_b), a wrong text, where both have a token i. The sum is
    divided by B times the number of tokens. Videos of several vectors (B,T,D) as in `infonce`. UserError when
    shapes do not fit. Source: what batchwise_hinge_rank_loss of airsplay/vokenization@e96def5 describes.
    """
    valid = _check_videos("hinge_all", text, video, mask, frames)
    with torch.autocast(text.device.type, enabled=False):
        v, some = _vectors(video, frames)
        scores = _nearest(torch.einsum("aid,btd->abit", _kept(text, mask), v), some[:, None])
        own = scores.diagonal().T
        wrong = ~torch.eye(len(text), dtype=torch.bool, device=text.device)[:, :, None] & valid[:, None]
        wrong_video = (margin - own[:, None] + scores).clamp(min=0) * wrong
        wrong_text = (margin - own + scores).clamp(min=0) * (wrong & valid)
        return (wrong_video + wrong_text).sum() / (max(1, len(text)) * valid.sum().clamp(min=1))


def infonce(
    text: Tensor,
    video: Tensor,
    mask: Tensor | None,
    temperature: Tensor | float = 0.1,
    frames: Tensor | None = None,
) -> Tensor:
    """Contrast of texts (B,L,D) with videos (B,D), unit vectors, mask (B,L) -> scalar in nats.

    For each token the cross entropy of cosines / temperature over the B videos, mean over tokens. A video
    is not told from other texts. Of a video of several vectors (B,T,D), of which `frames` (B,T) count and at
    least one must, a token is compared with the one most like it, as in FILIP (arXiv 2111.07783), Eq. 4.
    UserError when shapes do not fit. Source: CPC (arXiv 1807.03748), Eq. 4, with a token as the context.
    """
    valid = _check_videos("infonce", text, video, mask, frames)
    with torch.autocast(text.device.type, enabled=False):
        v, some = _vectors(video, frames)
        cosines = full(text)[valid] @ v.flatten(0, 1).T
        logits = _nearest(cosines.unflatten(1, some.shape), some) / temperature
        total = F.cross_entropy(logits, valid.nonzero()[:, 0], reduction="sum")
        return total / max(1, len(logits))


class MemoryCRD(CRDMemory):
    """The loss `crd` with its memory, one row for each sequence of the training set.

    Called with the student's and the teacher's outputs, (B,D) vectors or (B,L,D) states, and the sequences'
    places; what the memory keeps, its arguments and its state_dict are those of CRDMemory.
    """

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        indices: Tensor,
        contrast: Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        update: bool = True,
    ) -> Tensor:
        """Scalar in nats; indices (B,) each at most once, contrast (B,1+K), generator and update as in `crd`.

        Vectors are made unit inside. A sequence's vector is the mean of its tokens made unit; one without a
        token under mask (B,L) takes no part and keeps its row. UserError when shapes do not fit.
        """
        if student.ndim == 2 and mask is None:
            s, t = full(student), full(teacher.detach())
        else:
            some = _check_states("MemoryCRD", student, teacher, mask).any(1)
            if len(indices) != len(some):
                raise UserError(
                    f"MemoryCRD: {len(indices)} indices of {len(some)} sequences, expected one each"
                )
            s, t = (F.normalize(_kept(x, mask), dim=2).sum(1)[some] for x in (student, teacher.detach()))
            indices, contrast = indices[some], None if contrast is None else contrast[some]
            if not len(s):
                return s.sum()
        return crd(F.normalize(s), F.normalize(t), indices, self, contrast, generator, update)


def _contrast_by_position(student: Tensor, teacher: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Cross entropy of each anchor (L,2B), in nats, those without a token included."""
    s, t = (F.normalize(x, dim=2).transpose(0, 1) for x in (student, teacher))
    # Block by block, so that no gradient is made for the teacher and no state is copied.
    crossed = s @ t.mT
    cosines = torch.cat([torch.cat([s @ s.mT, crossed], 2), torch.cat([crossed.mT, t @ t.mT], 2)], 1)
    token = valid.T.repeat(1, 2)
    anchors = torch.arange(token.shape[1], device=token.device)
    # An anchor that does not count keeps all its columns: a row of -inf alone would be NaN.
    barred = (anchors[:, None] == anchors) | (token[:, :, None] & ~token[:, None])
    logits = (cosines / temperature).masked_fill(barred, float("-inf"))
    counterpart = anchors.roll(len(student)).expand(token.shape)
    return F.cross_entropy(logits.mT, counterpart, reduction="none")


def _kept(x: Tensor, mask: Tensor | None) -> Tensor:
    """States (B,L,D) in full precision, 0 where the mask says that there is no token."""
    return full(x) if mask is None else full(x).masked_fill(~mask.to(x.device).bool()[:, :, None], 0)


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    return (values * valid).sum() / valid.sum().clamp(min=1)


def _check_states(
    name: str, student: Tensor, teacher: Tensor, mask: Tensor | None, any_width: bool = False
) -> Tensor:
    """Which tokens count, (B,L) bool."""
    axes = 2 if any_width else 3
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[:axes] != teacher.shape[:axes]:
        raise UserError(
            f"{name}: student {tuple(student.shape)} and teacher {tuple(teacher.shape)}, expected two "
            f"(batch, length, width) alike in {'batch and length' if any_width else 'all three'}; give both "
            "the same tokens, and a head to the student where widths differ"
        )
    return _check_mask(name, student, mask)


def _vectors(video: Tensor, frames: Tensor | None) -> tuple[Tensor, Tensor]:
    """Videos as (B,T,D), pooled ones with T = 1, and which of their vectors count (B,T) bool."""
    if video.ndim == 2:
        return full(video)[:, None], torch.ones(len(video), 1, dtype=torch.bool, device=video.device)
    if frames is None:
        return full(video), torch.ones(video.shape[:2], dtype=torch.bool, device=video.device)
    return full(video), frames.to(video.device).bool()


def _nearest(cosines: Tensor, frames: Tensor) -> Tensor:
    """The highest of cosines (...,T) among the vectors that count (...,T)."""
    return cosines.masked_fill(~frames, float("-inf")).amax(-1)


def _check_videos(
    name: str, text: Tensor, video: Tensor, mask: Tensor | None, frames: Tensor | None
) -> Tensor:
    """Which tokens count, (B,L) bool."""
    fits = text.ndim == 3 and video.ndim in (2, 3) and video.shape[:: video.ndim - 1] == text.shape[::2]
    if not fits or (frames is not None and frames.shape != video.shape[:-1]):
        given = "" if frames is None else f", frames {tuple(frames.shape)}"
        raise UserError(
            f"{name}: texts {tuple(text.shape)} and videos {tuple(video.shape)}{given}, expected (batch, "
            "length, width) and (batch, width): one pooled video for each text, or its vectors (batch, "
            "frames, width)"
        )
    return _check_mask(name, text, mask)


def _check_mask(name: str, states: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    if mask.shape != states.shape[:2]:
        raise UserError(
            f"{name}: mask {tuple(mask.shape)}, expected {tuple(states.shape[:2])}: one flag for each token"
        )
    return mask.to(states.device).bool()


def _check_choice(name: str, key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{name}: {key} {value!r} is unknown; use {' or '.join(map(repr, known))}")
