"""Language models by size, folder, bundle and hub id; the folder for transformers; errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from toy_language import batch, tokenizer

from vlkd.engine.bundle import save_bundle
from vlkd.errors import UserError
from vlkd.models.language import (
    SIZES,
    LanguageModel,
    build_language_model,
    check_name,
    export,
    load_language_model,
    save_language_model,
)


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    return build_language_model("tiny", tokenizer()).eval()  # type: ignore[return-value]


def bundle(model: LanguageModel, path: Path) -> Path:
    card = {"kind": "language", "name": "m", "architecture": {"language": model.architecture}}
    return save_bundle(path, card, model.tensors())


def logits(model: LanguageModel) -> torch.Tensor:
    given = batch()
    with torch.no_grad():
        return model.words(model(given["input_ids"], given["attention_mask"]))


@pytest.mark.parametrize("size", ["tiny", "mini"])
def test_sizes_are_built_from_random_weights(size: str) -> None:
    found = build_language_model(size, tokenizer(), dropout=0.2)
    layers, width, heads, inner, positions = SIZES[size]
    config = found.model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (
        layers,
        width,
        heads,
    )
    assert (config.intermediate_size, found.positions, found.width) == (inner, positions, width)
    assert config.vocab_size == len(tokenizer()) and config.hidden_dropout_prob == 0.2
    decoder = found.model.cls.predictions.decoder.weight
    assert decoder is found.model.bert.embeddings.word_embeddings.weight


def test_sizes_of_the_paper() -> None:
    assert SIZES["small"] == (6, 512, 8, 2048, 512)
    assert SIZES["base"] == (12, 768, 12, 3072, 512)


def test_padding_does_not_change_states(model: LanguageModel) -> None:
    given = batch()
    ids, mask = given["input_ids"], given["attention_mask"]
    with torch.no_grad():
        states = model(ids, mask)
        other = model(torch.where(mask.bool(), ids, 7), mask)
    torch.testing.assert_close(states[mask.bool()], other[mask.bool()])


def test_a_bundle_gives_the_model_back_and_draws_no_random_number(
    model: LanguageModel, tmp_path: Path
) -> None:
    path = bundle(model, tmp_path / "m.safetensors")
    assert not any("decoder" in name for name in load_file(path))
    state = torch.get_rng_state()
    found = load_language_model(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not found.training and found.identity == model.identity
    assert torch.equal(logits(found), logits(model))
    assert torch.equal(logits(build_language_model(str(path), tokenizer()).eval()), logits(model))  # type: ignore[arg-type]


def test_the_folder_is_read_by_transformers_and_by_us(model: LanguageModel, tmp_path: Path) -> None:
    folder = export(bundle(model, tmp_path / "m.safetensors"), tmp_path / "folder")
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in folder.iterdir())
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(str(folder)).eval()
    words = transformers.AutoTokenizer.from_pretrained(str(folder))
    text = words("w1 w2 [MASK]", return_tensors="pt")
    assert words.model_max_length == 128 and text["input_ids"][0, 3] == words.mask_token_id
    given = batch()
    with torch.no_grad():
        found = theirs(given["input_ids"], attention_mask=given["attention_mask"]).logits
    torch.testing.assert_close(found, logits(model), rtol=0, atol=0)
    ours = build_language_model(str(folder), tokenizer(), dropout=0.0)
    assert all(part.p == 0.0 for part in ours.modules() if isinstance(part, torch.nn.Dropout))
    torch.testing.assert_close(logits(ours.eval()), logits(model))  # type: ignore[arg-type]


def test_a_folder_is_replaced_whole(model: LanguageModel, tmp_path: Path) -> None:
    folder = save_language_model(model, tmp_path / "folder")
    (folder / "stale.txt").write_text("")
    save_language_model(model, folder)
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]  # no part is left behind
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="mine: holds other files; give a new folder"):
        save_language_model(model, other)


def test_wrong_names_and_folders_are_one_line(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLKD_OFFLINE", "1")
    folder = save_language_model(model, tmp_path / "folder")
    pickled, roberta, broken = (tmp_path / name for name in ("pickled", "roberta", "broken"))
    for path in (pickled, roberta, broken):
        save_language_model(model, path)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    config = json.loads((roberta / "config.json").read_text())
    (roberta / "config.json").write_text(json.dumps({**config, "model_type": "roberta"}))
    (broken / "model.safetensors").write_bytes(b"1234")
    larger = tokenizer([f"w{k}" for k in range(30)])
    clip = save_bundle(
        tmp_path / "c.safetensors", {"kind": "clip", "name": "c", "architecture": {}}, {"a": torch.ones(1)}
    )
    calls = [
        (lambda: build_language_model("tiny"), "tiny: a size alone has no tokenizer"),
        (lambda: build_language_model("tinny", tokenizer()), r"tinny: no size \(tiny, mini, small, base\)"),
        (lambda: check_name("./nowhere"), "nowhere: no size"),
        (lambda: build_language_model("owner/name"), "owner/name: not on this machine, and the hub"),
        (lambda: build_language_model(str(pickled)), "pickled: holds no weights as safetensors"),
        (lambda: build_language_model(str(roberta)), "roberta: a model of type 'roberta', expected 'bert'"),
        (lambda: build_language_model(str(broken)), "broken: not a readable transformers folder"),
        (lambda: build_language_model(str(folder), larger), r"tokenizer of the data \(35 tokens\) is not"),
        (lambda: build_language_model(str(clip)), "holds a clip, expected a language model"),
        (lambda: LanguageModel(model.model, larger, "m"), "m: a vocabulary of 29 tokens, the tokenizer"),
    ]
    for call, message in calls:
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
