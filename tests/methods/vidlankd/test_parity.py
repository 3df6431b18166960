"""The whole teacher and student against the released modules, in float64 (see tests/golden/README.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_cases import read
from torch import Tensor
from toy_language import TextData, VideoTextData, fit

from vlkd.methods.vidlankd import VideoTextTeacher, VidLanKD
from vlkd.methods.vidlankd.heads import build_head
from vlkd.methods.vidlankd.method import load_teacher
from vlkd.models.language import LanguageModel
from vlkd.models.video_text import VideoSize, VideoTower
from vlkd.text.word_ids import transformers_library

NEAR = {"rtol": 1e-9, "atol": 1e-13}


class FiftyWords:
    """A vocabulary of the recorded size; nothing is tokenised."""

    all_special_ids = ()

    def __len__(self) -> int:
        return 50


@pytest.fixture(params=["eager", "sdpa"])
def attention(request: Any) -> str:
    return request.param


def config(attention: str) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    made = transformers_library().BertConfig(vocab_size=50, max_position_embeddings=64, **sizes)
    made._attn_implementation = attention
    return made


def language(case: dict[str, Tensor], part: str, attention: str) -> LanguageModel:
    model = transformers_library().BertForMaskedLM(config(attention)).double()
    model.load_state_dict({name: case[f"{part}/{name}"] for name in model.state_dict()})
    return LanguageModel(model, FiftyWords(), "recorded").eval()


def video(case: dict[str, Tensor], attention: str) -> VideoTower:
    size = VideoSize(hidden=12, positions=64, pool="first", embed_twice=True)
    tower = VideoTower(24, config(attention), size).double().eval()
    names = {"input.": "video_encoder.new_video_embeddings.", "output.": "mlp_map.", "bert.": "bert."}
    state = {}
    for name, own in tower.state_dict().items():
        kind = name.split(".")[0] + "."
        prefix = "visn/" if kind == "output." else "visn/backbone."
        words = name.endswith("word_embeddings.weight")  # a table that nothing reads
        state[name] = own if words else case[prefix + names[kind] + name.removeprefix(kind)]
    tower.load_state_dict(state)
    return tower


def given(case: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The batch, and which words are hidden: their true ids are put back where the method reads them."""
    hidden = case["mlm_labels"] != -100
    words = torch.where(hidden, case["mlm_labels"], case["input_ids"])
    found = {"input_ids": words, "attention_mask": case["attention_mask"].long()}
    return found | {"indices": torch.arange(len(words))}, hidden


def test_teacher_is_the_released_one(attention: str) -> None:
    case = read("vidlankd_teacher_forward")
    method = VideoTextTeacher("tiny", compat="repo", video=VideoSize(hidden=12, positions=64))
    fit(method, VideoTextData(), limit_train_batches=1, limit_val_batches=0)
    method.language, method.video = language(case, "teacher", attention), video(case, attention)
    batch, hidden = given(case)
    batch["video"] = case["video_features"]
    batch["video_mask"] = ~case["video_mask"]  # not read: the release takes it from the last feature
    method.hide = lambda *_: (case["input_ids"], hidden)  # type: ignore[method-assign]
    with torch.no_grad():
        states = method.language(case["input_ids"], batch["attention_mask"])
        torch.testing.assert_close(states, case["teacher_seq"], **NEAR)
        torch.testing.assert_close(method.language.words(states), case["teacher_mlm_scores"], **NEAR)
        vectors = method.pairs(states, batch).video[:, 0]
        torch.testing.assert_close(vectors, case["visn_output"], **NEAR)
        losses = method.compute_losses(batch)
    torch.testing.assert_close(losses["contrast"], case["contrastive_loss"], **NEAR)
    torch.testing.assert_close(losses["mlm"], case["token_loss"], **NEAR)


def test_student_is_the_released_one_with_its_gradients(attention: str, stage1: str) -> None:
    case = read("vidlankd_student_forward")
    method = VidLanKD(stage1, "tiny", compat="repo")
    assert method.weights == {"mlm": 1.0, "nst": 1.0, "crd": 1.0}
    fit(method, TextData(), limit_train_batches=1, limit_val_batches=0)
    method.language = language(case, "student", attention)
    released = {"dense": "0", "layer_norm": "2", "decoder": "3"}
    for name, part in (("nst", "kd1"), ("crd", "kd2")):
        head = build_head("mlp", 16, 16).double()
        prefix = f"student/{part}_student_head."
        head.load_state_dict(
            {f"{k}.{x}": case[f"{prefix}{n}.{x}"] for n, k in released.items() for x in ("weight", "bias")}
        )
        method.heads[name] = head
    batch, hidden = given(case)
    method.hide = lambda *_: (case["input_ids"], hidden)  # type: ignore[method-assign]

    class Recorded(torch.nn.Module):
        """The teacher's states, as recorded."""

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return case["teacher_seq_raw"]

    method.hold("teacher", Recorded())
    losses = method.compute_losses(batch)
    for name, recorded in (("nst", "kd1_loss"), ("crd", "kd2_loss"), ("mlm", "token_loss")):
        torch.testing.assert_close(losses[name].detach(), case[recorded], **NEAR)
    total = method.weighted_sum(losses)
    torch.testing.assert_close(total.detach(), case["total"], **NEAR)
    with torch.no_grad():
        states = method.language(case["input_ids"], batch["attention_mask"])
        torch.testing.assert_close(states, case["student_seq"], **NEAR)
        for name, part in (("nst", "kd1"), ("crd", "kd2")):
            unit = F.normalize(method.heads[name](states), dim=2)
            torch.testing.assert_close(unit, case[f"{part}_head_out"], **NEAR)
    wanted = {
        "grad_kd1_head_dense_w": method.heads["nst"][0].weight,
        "grad_kd2_head_dense_w": method.heads["crd"][0].weight,
        "grad_word_emb": method.language.model.bert.embeddings.word_embeddings.weight,
    }
    found = torch.autograd.grad(total, list(wanted.values()))
    for name, gradient in zip(wanted, found, strict=True):
        torch.testing.assert_close(gradient, case[name], **NEAR)


def test_teacher_of_the_fixture_is_a_language_model(stage1: str) -> None:
    card, model = load_teacher(stage1)
    assert card["kind"] == "video_text" and model.width == 64 and not model.training
