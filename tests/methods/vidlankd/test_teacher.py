"""Stage 1: losses, what is trained, retrieval, the released behaviour, the bundle, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from toy_language import FRAMES, WIDTH, VideoTextData, batch, fit, trainer

import vlkd
from vlkd.engine.bundle import save_bundle
from vlkd.errors import UserError
from vlkd.losses import hinge_all, hinge_half, infonce
from vlkd.methods.vidlankd import VideoTextTeacher, VidLanKD
from vlkd.methods.vidlankd.retrieval import Pairs, retrieval_scores
from vlkd.models.video_text import VideoSize

SMALL = VideoSize(hidden=12, positions=6)


def make(**options: Any) -> VideoTextTeacher:
    torch.manual_seed(0)
    return VideoTextTeacher(**{"language": "tiny", "video": SMALL, "lr": 1e-3, **options})


def gradients(method: VideoTextTeacher, data: Any = None) -> tuple[set[str], set[str]]:
    """Names of parameters with a gradient, and of those that moved."""
    got: set[str] = set()
    before: dict[str, torch.Tensor] = {}
    method.on_train_start = lambda: before.update(  # type: ignore[method-assign]
        {n: p.detach().clone() for n, p in method.named_parameters()}
    )
    method.on_after_backward = lambda: got.update(  # type: ignore[method-assign]
        n for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    )
    fit(method, data or VideoTextData(), limit_val_batches=0)
    return got, {n for n, p in method.named_parameters() if not torch.equal(p, before[n])}


@pytest.mark.parametrize("pool", ["mean", "first", "frames"])
def test_both_towers_are_trained(pool: Any) -> None:
    method = make(video=VideoSize(hidden=12, positions=FRAMES, pool=pool))
    got, moved = gradients(method)
    intended = {n for n, p in method.named_parameters() if p.requires_grad}
    assert got == intended == moved
    assert {n for n, _ in method.named_parameters()} - intended == {
        "video.bert.embeddings.word_embeddings.weight"
    }
    assert any(n.startswith("video.input.0") for n in got)


@pytest.mark.parametrize(
    ("options", "without"),
    [
        ({"compat": "repo"}, "video."),
        ({"weights": {"mlm": 1.0}}, "video."),
        ({"weights": {"contrast": 1.0}}, "language.model.cls."),
    ],
)
def test_what_is_not_trained_gets_no_gradient(options: dict[str, Any], without: str) -> None:
    method = make(**options)
    got, moved = gradients(method)
    assert got == moved == {n for n, p in method.named_parameters() if p.requires_grad}
    assert got and not any(n.startswith(without) for n in got)


@pytest.mark.parametrize("contrast", ["hinge_half", "hinge_all", "infonce"])
def test_losses_are_their_formulas(contrast: Any) -> None:
    method = make(contrast=contrast, margin=0.5, temperature=0.2, dropout=0.0)
    fit(method, VideoTextData(), limit_train_batches=1, limit_val_batches=0)
    method.eval()
    given = batch(video=True)
    given["video_mask"][2] = False
    with torch.no_grad():
        ids, hidden = method.hide(given)
        found = method.compute_losses(given)
        states = method.language.model.bert(ids, attention_mask=given["attention_mask"]).last_hidden_state
        logits = method.language.model(ids, attention_mask=given["attention_mask"]).logits
        some = torch.tensor([0, 1, 3, 4, 5])
        video = method.video(given["video"][some], given["video_mask"][some])  # type: ignore[misc]
    labels = torch.where(hidden, given["input_ids"], -100)
    torch.testing.assert_close(found["mlm"], F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    loss: Any = {"hinge_half": hinge_half, "hinge_all": hinge_all, "infonce": infonce}[contrast]
    setting = 0.2 if contrast == "infonce" else 0.5
    expected = loss(F.normalize(states[some], dim=2), video, given["attention_mask"][some], setting)
    torch.testing.assert_close(found["contrast"], expected)


def test_frames_are_masked_by_the_mask_and_not_by_a_feature() -> None:
    clean, repo = make(dropout=0.0), make(compat="repo", dropout=0.0)
    for method in (clean, repo):
        fit(method, VideoTextData(), limit_train_batches=1, limit_val_batches=0)
        method.eval()
    given = batch(video=True)
    given["video_mask"][:] = True
    changed = {**given, "video": given["video"].clone()}
    changed["video"][:, 1, -1] = 0.0  # a valid second whose last feature is 0
    with torch.no_grad():
        states = torch.zeros(6, 9, 64)
        assert repo.pairs(states, changed).video.isfinite().all()
        mean = clean.pairs(states, changed).video
        masked = {**changed, "video_mask": given["video_mask"].clone()}
        masked["video_mask"][:, 1] = False
        assert not torch.allclose(mean, clean.pairs(states, masked).video, atol=1e-4)
        other = {**changed, "video": changed["video"].clone()}
        other["video"][:, 1, :-1] += 1.0
        assert torch.allclose(repo.pairs(states, changed).video, repo.pairs(states, other).video, atol=1e-6)
        assert not torch.allclose(mean, clean.pairs(states, other).video, atol=1e-4)


def test_padding_of_videos_and_texts_changes_nothing() -> None:
    method = make(dropout=0.0)
    fit(method, VideoTextData(), limit_train_batches=1, limit_val_batches=0)
    method.eval()
    given = batch(video=True)
    longer = {
        **given,
        "video": F.pad(given["video"], (0, 0, 0, 1), value=3.0),
        "video_mask": F.pad(given["video_mask"], (0, 1)),
        "input_ids": F.pad(given["input_ids"], (0, 3)),
        "attention_mask": F.pad(given["attention_mask"], (0, 3)),
    }
    with torch.no_grad():
        for name, loss in method.compute_losses(given).items():
            torch.testing.assert_close(method.compute_losses(longer)[name], loss, rtol=1e-5, atol=1e-6)


def test_it_learns_to_find_the_video() -> None:
    method = make(lr=3e-3, dropout=0.0, weights={"contrast": 1.0, "mlm": 0.1})
    data = VideoTextData(batch_size=24, items=240)
    before = fit(method, data, limit_train_batches=1).callback_metrics
    after = fit(method, data, max_epochs=25).callback_metrics
    assert after["score/text_to_video_R@1"] >= 0.5 > before["score/text_to_video_R@1"]
    assert after["score/text_to_video_median_rank"] < before["score/text_to_video_median_rank"]
    assert method.protocol["retrieval gallery"] == "10 videos, one text each"
    assert {"score/perplexity", "score/mlm_accuracy", "score/token_to_video_R@1"} <= after.keys()


def test_retrieval_is_counted_as_said() -> None:
    generator = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(7, 4, 5, generator=generator), dim=2)
    video = F.normalize(torch.randn(7, 3, 5, generator=generator), dim=2)
    mask, frames = (torch.rand(7, n, generator=generator) > 0.4 for n in (4, 3))
    mask[:, 0] = frames[:, 0] = True
    found = retrieval_scores(Pairs(text, mask, video, frames))

    def best(token: torch.Tensor) -> list[float]:
        return [max(float(token @ v) for v in w[f]) for w, f in zip(video, frames, strict=True)]

    token = [[best(u) for u in tokens[m]] for tokens, m in zip(text, mask, strict=True)]
    table = torch.tensor([[sum(row[b] for row in rows) / len(rows) for b in range(7)] for rows in token])
    for name, scores in (("text_to_video", table), ("video_to_text", table.T)):
        ranks = [1 + sum(float(x) >= float(row[k]) for j, x in enumerate(row) if j != k)
                 for k, row in enumerate(scores)]  # fmt: skip
        assert found[f"{name}_R@1"] == pytest.approx(sum(r == 1 for r in ranks) / 7)
        assert found[f"{name}_R@5"] == pytest.approx(sum(r <= 5 for r in ranks) / 7)
        assert found[f"{name}_median_rank"] == sorted(ranks)[3]
    hits = [max(row) == row[k] for k, rows in enumerate(token) for row in rows]
    assert found["token_to_video_R@1"] == pytest.approx(sum(hits) / len(hits))
    same = Pairs(text[:1].expand(7, 4, 5), mask, video[:1].expand(7, 3, 5), torch.ones_like(frames))
    assert retrieval_scores(same)["text_to_video_R@5"] == 0.0  # what all share tells nothing


def test_bf16_keeps_the_losses_in_full_precision() -> None:
    method = make()
    seen: list[torch.dtype] = []
    method.on_train_batch_end = lambda outputs, *_: seen.append(outputs["loss"].dtype)  # type: ignore[method-assign]
    found = fit(method, VideoTextData(), precision="bf16-mixed").callback_metrics
    assert set(seen) == {torch.float32}
    assert all(x.isfinite() for x in found.values())


@pytest.mark.parametrize("options", [{}, {"compat": "repo"}, {"contrast": "hinge_all"}])
def test_bundle_holds_both_towers(options: dict[str, Any], tmp_path: Path) -> None:
    method = make(**options)
    scores = fit(method, VideoTextData()).callback_metrics
    card, tensors = method.bundle()
    path = save_bundle(
        tmp_path / "t.safetensors", {"name": "t", "method": "vidlankd", "protocol": {"a": 1}, **card}, tensors
    )
    assert "language.model.cls.predictions.decoder.weight" not in tensors
    loaded = VidLanKD.from_bundle(path)
    assert isinstance(loaded, VideoTextTeacher) and loaded.protocol == {"a": 1}
    assert (loaded.compat, loaded.contrast) == (method.compat, method.contrast)
    again = trainer().validate(loaded, VideoTextData(), verbose=False)[0]
    assert again.keys() == {k for k in scores if k.startswith("score/")}
    assert again == pytest.approx({k: float(scores[k]) for k in again}, rel=1e-5)
    model = vlkd.load(str(path))
    given = batch()
    with torch.no_grad():
        states = model(given["input_ids"], given["attention_mask"])
    torch.testing.assert_close(states, method.encode(given["input_ids"], given["attention_mask"]))


class Blind(VideoTextData):
    video_width = None


class Other(VideoTextData):
    video_width = WIDTH + 1


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({"weights": {"mml": 1.0}}, None, r"model\.weights\.mml: no such loss; there are mlm, contrast"),
        ({"weights": {}}, None, r"model\.weights: empty"),
        ({"language": "tinny"}, None, "tinny: no size"),
        ({"compat": "both"}, None, "expected clean or repo"),
        ({"compat": "repo", "contrast": "infonce"}, None, "the release has hinge_half alone"),
        ({"temperature": 0.0}, None, "model.temperature=0.0"),
        ({"dropout": 1.0}, None, "model.dropout=1.0"),
        ({}, Blind, "Blind: has no video_width"),
        ({}, Other, rf"features of 9 numbers|expected \(B,T,{WIDTH + 1}\)"),
        ({"video": VideoSize(hidden=12, positions=3)}, None, "video of 5 frames, the tower has 3 positions"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        fit(make(**options), (data or VideoTextData)())
    assert "\n" not in str(error.value)


def test_sizes_of_the_video_tower_are_checked() -> None:
    with pytest.raises(UserError, match=r"model\.video\.pool=max"):
        VideoSize(pool="max")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"model\.video: hidden 0"):
        VideoSize(hidden=0)
