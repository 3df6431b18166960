"""FineTune: every task learns and is scored; what it starts from; whole runs, their bundle and folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
import yaml
from commands import assert_one_line, train_in_processes
from exactness import assert_resume_is_exact
from toy_downstream import TASKS, build, tokenizer, write
from toy_language import fit

import vlkd
from vlkd.data import LexiconChoicesData
from vlkd.data.lexicon import ATTRIBUTES
from vlkd.engine.bundle import read_card, save_bundle
from vlkd.engine.cli import main
from vlkd.errors import UserError
from vlkd.methods.finetune import FineTune
from vlkd.methods.vidlankd.teacher import language_bundle
from vlkd.models.language import LanguageModel, build_language_model, save_language_model
from vlkd.models.language_task import Task, build_task_model
from vlkd.text.word_ids import build_tokenizer


def student(folder: Path, words: Any = None) -> Path:
    """The bundle of a language model of random weights."""
    torch.manual_seed(3)
    card, tensors = language_bundle(build_language_model("tiny", words or tokenizer()))
    return save_bundle(folder / "student.safetensors", {"name": "toy", **card}, tensors)


def folder_of_tokenizer(folder: Path) -> str:
    tokenizer().save_pretrained(str(folder / "tokenizer"))
    return str(folder / "tokenizer" / "tokenizer.json")


# --- tasks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_trained_and_scored(task: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = FineTune(str(student(tmp_path)), dropout=0.0, lr=1e-3)
    made = fit(method, build(write(task, tmp_path)), max_steps=2, max_epochs=None)
    scores = {k: float(v) for k, v in made.callback_metrics.items() if k.startswith("score/")}
    assert scores and all(-1 <= value <= 1 for value in scores.values())
    assert torch.isfinite(made.callback_metrics["loss/task"])
    method.compute_losses(next(iter(made.datamodule.train_dataloader())))["task"].backward()  # type: ignore
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize(("task", "epochs"), [("glue_sst2", 40), ("glue_stsb", 120), ("squad2", 100)])
def test_what_is_trained_on_is_learned(task: str, epochs: int, tmp_path: Path) -> None:
    """Validation on the training questions, which the model has seen often enough."""
    torch.manual_seed(0)
    found = build(write(task, tmp_path), batch_size=8)
    read = found.read
    found.read = lambda split, problems: read("train", problems)
    method = FineTune("tiny", dropout=0.0, lr=3e-3, warmup=0.0)
    found.tokenizer = tokenizer()
    options = {"max_epochs": epochs, "check_val_every_n_epoch": epochs}
    scores = fit(method, found, **options).callback_metrics
    name = {"glue_stsb": "pearson", "squad2": "f1"}.get(task, "accuracy")
    assert scores[f"score/{name}"] > 0.9, scores


def test_losses_are_of_the_labels() -> None:
    torch.manual_seed(0)
    words = tokenizer()
    found = {key: words(["the cat", "the dog slept"], padding=True, return_tensors="pt")[key] for key in KEYS}
    labels = torch.tensor([2, 0])
    method = FineTune(build_task_model("tiny", Task("classes", ("a", "b", "c")), words, 0.0))
    logits = method.language.model(**found).logits
    loss = method.compute_losses({**found, "labels": labels})["task"]
    torch.testing.assert_close(loss, -(logits.log_softmax(1)[[0, 1], labels]).mean())

    method = FineTune(build_task_model("tiny", Task("regression"), words, 0.0))
    guess = method.language.model(**found).logits[:, 0]
    loss = method.compute_losses({**found, "labels": torch.tensor([1.5, 4.0])})["task"]
    torch.testing.assert_close(loss, ((guess - torch.tensor([1.5, 4.0])) ** 2).mean())

    method = FineTune(build_task_model("tiny", Task("spans"), words, 0.0))
    ends = method.language.answers(found)
    assert (ends[0, :, found["attention_mask"][0] == 0] < -1e30).all()
    loss = method.compute_losses({**found, "labels": torch.tensor([[1, 2], [0, 0]])})["task"]
    expected = [F.cross_entropy(ends[:, k], torch.tensor([[1, 2], [0, 0]])[:, k]) for k in (0, 1)]
    torch.testing.assert_close(loss, sum(expected) / 2)


KEYS = ("input_ids", "attention_mask", "token_type_ids")


def test_rate_rises_for_a_part_of_the_run_and_falls_to_nothing(tmp_path: Path) -> None:
    method = FineTune("tiny", warmup=0.25, lr=1.0)
    rates: list[float] = []
    method.on_train_batch_start = lambda *_: rates.append(method.trainer.optimizers[0].param_groups[0]["lr"])  # type: ignore
    found = build(write("glue_sst2", tmp_path), batch_size=2)
    found.tokenizer = tokenizer()
    fit(method, found, max_epochs=2, limit_val_batches=0)
    assert rates == pytest.approx([1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


# --- what it starts from -----------------------------------------------------------------------------------


def test_every_start_gives_the_same_encoder(tmp_path: Path) -> None:
    path = student(tmp_path)
    model = vlkd.load(str(path))
    folder = save_language_model(model, tmp_path / "folder")
    task = Task("classes", ("0", "1"))
    for init in (str(path), str(folder)):
        found = build_task_model(init, task)
        for name, tensor in model.model.bert.state_dict().items():
            assert torch.equal(found.model.bert.state_dict()[name], tensor), name
        assert found.name.startswith(f"{init}@")
        assert found.model.config.id2label == {0: "0", 1: "1"}


def test_the_pooler_of_a_folder_and_of_a_task_is_kept(tmp_path: Path) -> None:
    first = build_task_model("tiny", Task("classes", ("0", "1")), tokenizer())
    folder = save_language_model(first, tmp_path / "folder")
    card, tensors = FineTune(first).bundle()
    path = save_bundle(tmp_path / "first.safetensors", {"name": "first", **card}, tensors)
    pooler = first.model.bert.pooler.dense.weight
    for init in (str(folder), str(path)):
        found = build_task_model(init, Task("choices", ("0", "1")))
        assert torch.equal(found.model.bert.pooler.dense.weight, pooler)
        assert not torch.equal(found.model.classifier.weight, first.model.classifier.weight[:1])


def test_a_start_on_this_machine_needs_no_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = student(tmp_path)
    monkeypatch.setenv("VLKD_ZOO", str(tmp_path / "nowhere"))
    for init in ("tiny", str(path)):
        assert build_task_model(init, Task("regression"), tokenizer()).positions == 128


def test_a_start_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    section = write("glue_sst2", tmp_path)
    other = student(tmp_path, build_tokenizer(["other words"]))
    with pytest.raises(UserError, match=r"tokenizer of the data \(\d+ tokens\) is not that of tiny"):
        fit(FineTune(str(other)), build(section, tokenizer=folder_of_tokenizer(tmp_path)))
    with pytest.raises(UserError, match=r"data\.tokenizer: missing; model\.init=tiny is a size alone"):
        fit(FineTune("tiny"), build(section))
    with pytest.raises(UserError, match=r"data\.length=200: .* has 128 positions"):
        fit(FineTune(str(student(tmp_path))), build(section, length=200))
    with pytest.raises(UserError, match=r"trained for classes \(a, b\), GLUE sst2 asks for classes \(0, 1\)"):
        fit(FineTune(build_task_model("tiny", Task("classes", ("a", "b")), tokenizer())), build(section))
    with pytest.raises(UserError, match="nosuch: no size"):
        FineTune("nosuch")
    for wrong in ({"warmup": 1.0}, {"dropout": -0.1}):
        with pytest.raises(UserError, match=f"model.{next(iter(wrong))}="):
            FineTune("tiny", **wrong)


# --- whole runs --------------------------------------------------------------------------------------------


def config(task: str, folder: Path, init: str, **trainer: Any) -> Path:
    model = {"class_path": "vlkd.methods.finetune.FineTune", "init_args": {"init": init, "lr": 1e-3}}
    options = {"max_epochs": 2, "accelerator": "cpu", "gradient_clip_val": 1.0, **trainer}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"model": model, "data": write(task, folder), "trainer": options}))
    return path


@pytest.mark.parametrize("step", [1, 2])
def test_resume_is_exact(step: int, tmp_path: Path) -> None:
    assert_resume_is_exact(config("piqa", tmp_path, str(student(tmp_path))), tmp_path, step)


def test_a_run_leaves_a_bundle_and_a_folder_that_score_alike(tmp_path: Path) -> None:
    path, run = config("glue_mnli", tmp_path, str(student(tmp_path))), tmp_path / "run"
    assert main(["train", str(path), "--run", str(run)]) == 0
    (bundle,) = run.glob("student-*.safetensors")
    card = read_card(bundle)
    assert card["kind"] == "finetuned" and card["method"] == "finetune"
    assert card["protocol"]["task"] == "GLUE mnli" and "student.safetensors@" in card["protocol"]["init"]
    assert card["scores"].keys() == {"accuracy_matched", "accuracy_mismatched"}

    words = {"text": "the cat slept", "text_pair": "the dog is red"}
    given = tokenizer()(**words, return_tensors="pt")
    model = vlkd.load(str(bundle))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(str(run / "transformers")).eval()
    with torch.no_grad():
        assert torch.equal(theirs(**given).logits, model.answers(given))
    assert theirs.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}

    (tmp_path / "student.safetensors").unlink()  # the bundle needs it no more
    assert main(["test", str(bundle), "--out", str(tmp_path / "a")]) == 0
    assert main(["test", str(bundle), "--data.task=ax", "--out", str(tmp_path / "b")]) == 0
    a, b = (yaml.safe_load((tmp_path / n / "record.json").read_text()) for n in "ab")
    assert a["scores"] == pytest.approx(card["scores"]) and a["protocol"] == card["protocol"]
    assert "mcc_world_knowledge" in b["scores"] and b["protocol"]["task"] == "GLUE ax"


def test_a_config_scores_a_run_and_a_bundle(tmp_path: Path) -> None:
    path, run = config("tracie", tmp_path, str(student(tmp_path))), tmp_path / "run"
    assert main(["train", str(path), "--run", str(run), "--no-dry-run"]) == 0
    (bundle,) = run.glob("student-*.safetensors")
    for name, weights in (("a", run), ("b", bundle)):
        assert main(["test", str(path), "--ckpt", str(weights), "--out", str(tmp_path / name)]) == 0
        found = yaml.safe_load((tmp_path / name / "record.json").read_text())["scores"]
        assert found == pytest.approx(read_card(bundle)["scores"])


def test_a_bundle_of_another_task_with_as_many_classes_is_not_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, out = tokenizer(), str(tmp_path / "out")
    method = FineTune(build_task_model("tiny", Task("classes", ("no", "yes")), words))
    card, tensors = method.bundle()
    path = save_bundle(tmp_path / "other.safetensors", {"name": "other", **card}, tensors)
    given = config("tracie", tmp_path, str(student(tmp_path)))
    assert main(["test", str(given), "--ckpt", str(path), "--out", out]) == 2
    message = "trained for classes (no, yes), the data ask for classes (contradiction, entailment)"
    assert_one_line(capsys.readouterr().err, message)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without it")
def test_two_processes_learn_and_score_as_one(tmp_path: Path) -> None:
    path = config("glue_mnli", tmp_path, str(student(tmp_path)))
    options = ["--model.dropout=0.0", "--no-dry-run"]
    assert main(["train", str(path), "--run", str(tmp_path / "one"), "--data.batch_size=8", *options]) == 0
    more = ("--data.batch_size=4", "--trainer.devices=2", "--trainer.strategy=ddp")
    train_in_processes(path, tmp_path / "two", *more, *options)
    one, two = (torch.load(tmp_path / n / "last.ckpt", weights_only=True) for n in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 2
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], tensor, atol=2e-5, rtol=1e-3)
    cards = [read_card(next((tmp_path / n).glob("student-*.safetensors"))) for n in ("one", "two")]
    assert cards[0]["scores"] == pytest.approx(cards[1]["scores"], abs=1e-6)


# --- P3 ----------------------------------------------------------------------------------------------------


def knowing_student(found: LexiconChoicesData) -> LanguageModel:
    """A model in whose word vectors each noun is the sum of the words that describe it."""
    torch.manual_seed(0)
    words, lexicon = found.tokenizer, found.world.lexicon
    model = build_language_model("tiny", words, 0.0)
    table = model.model.bert.embeddings.word_embeddings.weight.data
    codes = {word: torch.randn(table.shape[1]) for values in ATTRIBUTES.values() for word in values}
    for word, code in codes.items():
        table[words.convert_tokens_to_ids(word)] = code
    for noun, name in enumerate(lexicon.names):
        total = sum(codes[word] for word in lexicon.values(noun).values())
        table[words.convert_tokens_to_ids(name)] = total  # type: ignore[assignment]
    return model


def test_p3_finds_what_a_student_knows_of_nouns_it_was_not_trained_on(tmp_path: Path) -> None:
    found = LexiconChoicesData()
    scores = {}
    for name, model in (
        ("knows", knowing_student(found)),
        ("does not", build_language_model("tiny", found.tokenizer, 0.0)),
    ):
        card, tensors = language_bundle(model)
        path = save_bundle(tmp_path / f"{name}.safetensors", {"name": name, **card}, tensors)
        torch.manual_seed(0)
        method = FineTune(str(path), lr=2e-3)
        made = fit(method, LexiconChoicesData(), max_epochs=8, check_val_every_n_epoch=8)
        scores[name] = float(made.callback_metrics["score/P3"])
    assert scores["knows"] > 0.65 and scores["does not"] < 0.55, scores
