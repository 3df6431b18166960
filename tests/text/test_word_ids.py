"""Tokenizers of language models: what they make of text, that they come back, errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vlkd.errors import UserError
from vlkd.text.word_ids import (
    SPECIAL,
    build_tokenizer,
    check_same_tokenizer,
    load_tokenizer,
    ordinary_ids,
    tokenizer_of_text,
    tokenizer_text,
)

TEXTS = ["The dax rolls.", "the red ball; the dax!", "a dax floats"]


def test_words_get_ids_by_frequency_after_the_special_ones() -> None:
    found = build_tokenizer(TEXTS)
    assert [found.convert_ids_to_tokens(k) for k in range(7)] == [*SPECIAL, "dax", "the"]
    assert (found.pad_token_id, found.mask_token_id, found.model_max_length) == (0, 4, 512)
    ids = found("The DAX sings").input_ids
    assert found.convert_ids_to_tokens(ids) == ["[CLS]", "the", "dax", "[UNK]", "[SEP]"]
    assert found("a", "dax").token_type_ids == [0, 0, 0, 1, 1]
    assert ordinary_ids(found) == list(range(5, len(found)))
    assert tokenizer_text(build_tokenizer(TEXTS)) == tokenizer_text(found)
    assert len(build_tokenizer(TEXTS, size=7)) == 7


def test_pieces_cover_other_words() -> None:
    found = build_tokenizer(["low lower lowest new newer newest"] * 4, kind="pieces", size=40)
    tokens = found.tokenize("lowest newes")
    assert "[UNK]" not in tokens and any(token.startswith("##") for token in tokens)
    assert found.decode(found("lower newest").input_ids, skip_special_tokens=True) == "lower newest"


def test_case_is_kept_on_request() -> None:
    found = build_tokenizer(["The the"], lower=False)
    assert found("The").input_ids != found("the").input_ids


def test_a_tokenizer_comes_back_as_it_was(tmp_path: Path) -> None:
    found = build_tokenizer(TEXTS, max_length=64)
    before = tokenizer_text(found)
    found("a dax", padding="max_length", max_length=9, truncation=True)
    assert tokenizer_text(found) == before  # its last use is no part of it
    found.save_pretrained(str(tmp_path / "folder"))
    (tmp_path / "one.json").write_text(before)
    for back in (
        tokenizer_of_text(before),
        load_tokenizer(tmp_path / "folder"),
        load_tokenizer(tmp_path / "one.json"),
    ):
        check_same_tokenizer(back, found, ("one", "other"))
        assert back("the dax").input_ids == found("the dax").input_ids
        assert back.mask_token_id == 4
    assert load_tokenizer(tmp_path / "folder", max_length=32).model_max_length == 32


def test_a_vocabulary_file_of_bert_is_read(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "dax", "##es"]) + "\n")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    found = load_tokenizer(tmp_path)
    assert found("Daxes").input_ids == [2, 5, 6, 3]


def test_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "bytes.json").write_bytes(b"\xff")
    (tmp_path / "maskless.json").write_text(
        tokenizer_text(build_tokenizer(TEXTS)).replace("[MASK]", "[OTHER]")
    )
    one, other = build_tokenizer(TEXTS), build_tokenizer(TEXTS[:2])
    calls = [
        (lambda: build_tokenizer([]), "the corpus has no word"),
        (lambda: build_tokenizer(TEXTS, size=5), "size 5, expected more than the 5 special tokens"),
        (lambda: build_tokenizer(TEXTS, kind="letters"), "kind 'letters' is unknown"),  # type: ignore[arg-type]
        (lambda: load_tokenizer(tmp_path), "holds no tokenizer; expected tokenizer.json or vocab.txt"),
        (lambda: load_tokenizer(tmp_path / "bad.json"), r"bad\.json: not a tokenizer"),
        (lambda: load_tokenizer(tmp_path / "bytes.json"), r"bytes\.json: not a tokenizer"),
        (lambda: load_tokenizer(tmp_path / "maskless.json"), "a tokenizer without .MASK.; expected"),
        (lambda: check_same_tokenizer(one, other, ("a", "b")), r"tokenizer of a \(\d+ tokens\) is not"),
    ]
    for call, message in calls:
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r'pip install "vlkd\[language\]"'):
        build_tokenizer(TEXTS)
