"""Stage 2: objectives against their formulas, what is trained, baseline, bundle, folder, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from toy_language import LENGTH, TextData, VideoTextData, batch, fit, tokenizer, trainer

import vlkd
from vlkd.engine.bundle import save_bundle
from vlkd.errors import UserError
from vlkd.losses import crd, hidden_l2, nst_tokens, soft_label, token_contrastive
from vlkd.methods.vidlankd import VidLanKD
from vlkd.methods.vidlankd.heads import heads_of
from vlkd.models.language import LanguageModel, build_language_model

EVERY = ("mlm", "soft_label", "hidden", "nst", "contrastive", "crd")
CRD = {"crd": {"negatives": 7}}


def make(teacher: str | None, **options: Any) -> VidLanKD:
    torch.manual_seed(0)
    return VidLanKD(teacher, **{"language": "tiny", "lr": 1e-3, **options})


def begun(method: VidLanKD, data: Any = None) -> VidLanKD:
    """After one step, in eval mode."""
    fit(method, data, limit_train_batches=1, limit_val_batches=0)
    return method.eval()  # type: ignore[return-value]


def save(method: Any, path: Path) -> Path:
    card, tensors = method.bundle()
    common = {"name": path.stem, "method": "vidlankd", "protocol": method.protocol, "scores": {}}
    return save_bundle(path, {**common, **card}, tensors)


@pytest.fixture
def wide(tmp_path: Path) -> str:
    """A teacher of width 128."""
    torch.manual_seed(1)
    model = build_language_model("mini", tokenizer())
    card = {"kind": "language", "name": "wide", "architecture": {"language": model.architecture}}
    return str(save_bundle(tmp_path / "wide.safetensors", card, model.tensors()))


# --- losses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["mlp", "linear", "none"])
@pytest.mark.parametrize("mode", ["flat", "position"])
def test_objectives_are_their_formulas(stage1: str, head: Any, mode: str) -> None:
    options = {**CRD, "contrastive": {"mode": mode, "temperature": 0.3}, "soft_label": {"temperature": 2.0}}
    method = begun(make(stage1, head=head, weights=dict.fromkeys(EVERY, 1.0), options=options))
    given, teacher = batch(), method.held("teacher")
    mask = given["attention_mask"].bool()
    assert not mask.all()
    torch.manual_seed(3)
    with torch.no_grad():
        found = method.compute_losses(given)
        ids, hidden = method.hide(given)
        assert hidden.any() and not torch.equal(ids, given["input_ids"])
        states, target = (m(ids, given["attention_mask"]) for m in (method.language, teacher))
        s = {name: part(states) for name, part in method.heads.items()}
        logits, answers = method.language.words(states), teacher.words(target)
        torch.manual_seed(3)
        means = [
            [F.normalize(x, dim=1)[m].sum(0) for x, m in zip(y, mask, strict=True)]
            for y in (s["crd"], target)
        ]
        units = [F.normalize(torch.stack(rows), dim=1) for rows in means]
        assert method.memory is not None
        expected = {
            "mlm": F.cross_entropy(logits[hidden], given["input_ids"][hidden]),
            "soft_label": soft_label(logits, answers, hidden, 2.0),
            "hidden": hidden_l2(s["hidden"], target, mask),
            "nst": nst_tokens(s["nst"], target, mask),
            "contrastive": token_contrastive(s["contrastive"], target, 0.3, mode, mask=mask),  # type: ignore[arg-type]
            "crd": crd(*units, given["indices"], method.memory, None, None, False),
        }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_soft_labels_of_all_tokens(stage1: str) -> None:
    options = {"soft_label": {"tokens": "all"}}
    method = begun(make(stage1, weights={"soft_label": 1.0}, options=options))
    given = batch()
    with torch.no_grad():
        ids, _ = method.hide(given)
        logits, answers = (
            m.words(m(ids, given["attention_mask"])) for m in (method.language, method.held("teacher"))
        )
        expected = soft_label(logits, answers, given["attention_mask"])
        torch.testing.assert_close(method.compute_losses(given)["soft_label"], expected)


def test_released_losses_have_no_mask_and_its_scales(stage1: str) -> None:
    method = begun(make(stage1, compat="repo"))
    given = batch()
    with torch.no_grad():
        ids, _ = method.hide(given)
        states, target = (m(ids, given["attention_mask"]) for m in (method.language, method.held("teacher")))
        found = method.compute_losses(given)
        nst = nst_tokens(method.heads["nst"](states), target, None, "repo")
        contrast = token_contrastive(method.heads["crd"](states), target, 1.0, "position", "repo")
    torch.testing.assert_close(found["nst"], nst)
    torch.testing.assert_close(found["crd"], contrast)
    assert method.memory is None and method.protocol["compat"] == "repo"


def test_padding_changes_no_loss(stage1: str) -> None:
    method = begun(make(stage1, weights=dict.fromkeys(EVERY, 1.0), options=CRD))
    given = batch()
    longer = {k: F.pad(x, (0, 4)) if x.ndim == 2 else x for k, x in given.items()}
    values = []
    for each in (given, longer):
        torch.manual_seed(1)
        with torch.no_grad():
            values.append(method.compute_losses(each))
    for name in EVERY:
        torch.testing.assert_close(values[1][name], values[0][name], rtol=1e-4, atol=1e-6, msg=name)


# --- what is trained ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights",
    [("mlm",), EVERY, ("nst",), ("hidden", "crd"), ("soft_label",), ("mlm", "contrastive")],
    ids="+".join,
)
def test_every_intended_parameter_is_trained_and_no_other(stage1: str, weights: tuple[str, ...]) -> None:
    method = make(stage1, weights=dict.fromkeys(weights, 1.0), options=CRD if "crd" in weights else None)
    got: set[str] = set()
    method.on_after_backward = lambda: got.update(  # type: ignore[method-assign]
        n for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    )
    if method.held_names():
        before = {k: v.clone() for k, v in method.held("teacher").state_dict().items()}
    fit(method, limit_val_batches=0)
    intended = {n for n, p in method.named_parameters() if p.requires_grad}
    assert got == intended
    words = any("cls.predictions.transform" in n for n in got)
    assert words == bool({"mlm", "soft_label"} & set(weights))
    compared = {"hidden", "nst", "contrastive", "crd"} & set(weights)
    assert {n.split(".")[1] for n in got if n.startswith("heads.")} == compared
    assert {n.split(".")[0] for n in method.state_dict()} <= {"language", "heads", "memory", "_mask_seed"}
    if method.held_names():
        after = method.held("teacher").state_dict()
        assert not method.held("teacher").training and all(
            torch.equal(v, after[k]) for k, v in before.items()
        )


def test_the_baseline_starts_like_the_student_and_hides_the_same_words(stage1: str) -> None:
    alone, taught = make(None, weights={"mlm": 1.0}), make(stage1)
    weights, hidden = [], []
    for method in (alone, taught):
        torch.manual_seed(4)
        fit(method, limit_train_batches=0, limit_val_batches=0)
        weights.append(method.language.state_dict())
        hidden.append(method.hide(batch())[0])
    assert not alone.held_names() and alone.protocol["teacher"] == "none, text alone"
    assert taught.protocol["teacher"] == "toy-teacher"
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())
    assert torch.equal(*hidden)


def test_the_student_learns_the_teachers_states(stage1: str) -> None:
    method = make(stage1, weights={"hidden": 1.0}, lr=3e-3, dropout=0.0)
    seen: list[float] = []
    method.on_train_batch_end = lambda outputs, *_: seen.append(float(outputs["loss"]))  # type: ignore[method-assign]
    fit(method, max_epochs=10, limit_val_batches=0)
    assert sum(seen[-4:]) < 0.5 * sum(seen[:4])


@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_widths_may_differ(wide: str, head: Any) -> None:
    weights = dict.fromkeys(("mlm", "hidden", "nst", "contrastive", "crd", "soft_label"), 1.0)
    method = make(wide, head=head, weights=weights, options=CRD)
    found = fit(method).callback_metrics
    assert all(x.isfinite() for x in found.values())
    assert method.describe(batch())[1]["width"] == 128
    only_nst = make(wide, head="none", weights={"nst": 1.0})
    fit(only_nst, limit_val_batches=0)
    with pytest.raises(UserError, match="the student is 64 wide, the teacher 128; choose mlp, or linear"):
        fit(make(wide, head="none"))


def test_bf16_keeps_the_losses_in_full_precision(stage1: str) -> None:
    method = make(stage1, weights=dict.fromkeys(EVERY, 1.0), options=CRD)
    seen: list[torch.dtype] = []
    method.on_train_batch_end = lambda outputs, *_: seen.append(outputs["loss"].dtype)  # type: ignore[method-assign]
    found = fit(method, precision="bf16-mixed").callback_metrics
    assert set(seen) == {torch.float32} and all(x.isfinite() for x in found.values())
    assert method.memory is not None and method.memory.student.dtype == torch.float32


# --- scores, bundle ----------------------------------------------------------------------------------------


class Probed(TextData):
    def probe_scores(self, encode: Any) -> dict[str, float]:
        given = batch(count=2)
        with torch.inference_mode(False), torch.enable_grad():
            states = encode(given["input_ids"], given["attention_mask"])
            torch.nn.Linear(states.shape[2], 2)(states).sum().backward()  # a probe may be trained
        assert states.shape == (2, LENGTH, 64)
        return {"P1": 0.5}


def test_scores_are_perplexity_accuracy_and_probes(stage1: str) -> None:
    method = make(stage1, dropout=0.0)
    found = fit(method, Probed()).callback_metrics
    nats, hits = [], []
    method.eval()
    with torch.no_grad():
        for each in Probed.val_dataloader(begun_data()):
            ids, hidden = method.hide(each, training=False)
            logits = method.language.words(method.language(ids, each["attention_mask"]))[hidden]
            nats.append(F.cross_entropy(logits, each["input_ids"][hidden], reduction="none"))
            hits.append(logits.argmax(1) == each["input_ids"][hidden])
    assert float(found["score/perplexity"]) == pytest.approx(float(torch.cat(nats).mean().exp()), rel=1e-5)
    assert float(found["score/mlm_accuracy"]) == pytest.approx(float(torch.cat(hits).float().mean()))
    assert found["score/P1"] == 0.5 and method.training is False
    scored = method.score_teacher(begun_data().val_dataloader())
    assert 0 <= scored["mlm_accuracy"] <= 1 and method.teacher_record() == {"name": "toy-teacher"}


def begun_data() -> TextData:
    data = TextData()
    data.setup("fit")
    return data


def test_bundle_has_the_student_its_tokenizer_and_heads(stage1: str, tmp_path: Path) -> None:
    method = make(stage1, weights={"mlm": 1.0, "nst": 1.0, "contrastive": 1.0})
    scores = fit(method).callback_metrics
    path = save(method, tmp_path / "student.safetensors")
    loaded = VidLanKD.from_bundle(path)
    assert loaded.protocol == method.protocol
    again = trainer().validate(loaded, TextData(), verbose=False)[0]
    assert again == pytest.approx({k: float(scores[k]) for k in again}, rel=1e-5)
    model = vlkd.load(str(path))
    assert isinstance(model, LanguageModel) and model.identity == method.language.identity
    assert model.tokenizer("w3 w4 what").input_ids == tokenizer()("w3 w4 what").input_ids
    card, tensors = method.bundle()
    heads = heads_of(card, tensors)
    assert heads.keys() == {"nst", "contrastive"}
    x = torch.randn(2, 64)
    assert torch.equal(heads["nst"](x), method.heads["nst"](x))
    assert make(str(path), weights={"nst": 1.0}).held("teacher").identity == method.language.identity


# --- errors ------------------------------------------------------------------------------------------------


class Renamed(TextData):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.tokenizer = tokenizer([f"x{k}" for k in range(24)])


class NoTokens(VideoTextData):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.tokenizer = None


class Endless(TextData):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.train_set = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({"weights": {"mlm": 1.0, "nts": 1.0}}, TextData, r"model\.weights\.nts: no such loss; there are"),
        ({"weights": {}}, TextData, r"model\.weights: empty"),
        ({"compat": "repo", "weights": {"hidden": 1.0}}, TextData, "the release runs mlm, nst, crd alone"),
        ({"compat": "released"}, TextData, "expected clean or repo"),
        ({"head": "big"}, TextData, r"model\.head=big"),
        ({"options": {"nst": {"a": 1}}}, TextData, r"model\.options\.nst: has no settings"),
        ({"options": {"crd": {"k": 1}}}, TextData, r"model\.options\.crd\.k: no such setting; there are neg"),
        ({"options": {"contrastive": {"mode": "all"}}}, TextData, "mode=all: expected flat or position"),
        ({"options": {"crd": {"momentum": 1.0}}}, TextData, "momentum=1.0: expected a number in"),
        ({"options": {"contrastive": {"temperature": 0}}}, TextData, "temperature=0: expected a number"),
        ({"language": "tny"}, TextData, "tny: no size"),
        ({}, NoTokens, "NoTokens: has no tokenizer; VidLanKD takes data of token ids"),
        ({}, Renamed, r"tokenizer of the data .* not that of tiny .*: token \d+ is 'x\d+' and 'w\d+'; use"),
        ({"weights": {"crd": 1.0}}, Endless, "Endless: has no train_set; crd must know"),
    ],
)
def test_wrong_options_are_one_line(stage1: str, options: dict[str, Any], data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        fit(make(stage1, **options), data(), limit_train_batches=0)
    assert "\n" not in str(error.value)


def test_a_teacher_is_needed_and_must_be_a_language_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.teacher: missing; .* weights: \{mlm: 1.0\}"):
        make(None)
    path = save_bundle(
        tmp_path / "c.safetensors", {"kind": "clip", "name": "c", "architecture": {}}, {"a": torch.ones(1)}
    )
    with pytest.raises(UserError, match=r"c\.safetensors: holds a clip, expected a language model"):
        make(str(path))


def test_sequences_longer_than_the_positions_are_one_line(stage1: str) -> None:
    method = begun(make(stage1))
    ids = torch.ones(1, 129, dtype=torch.long)
    with pytest.raises(UserError, match="tiny: sequences of 129 tokens, it has 128 positions"):
        method.language(ids)
