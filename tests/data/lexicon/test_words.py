"""Nouns, their hidden attributes, sentences and the audit of what text tells."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from vlkd.data.lexicon import ATTRIBUTES, Lexicon, audit
from vlkd.errors import UserError

VALUES = {word for words in ATTRIBUTES.values() for word in words}


@pytest.mark.parametrize("nouns", [32, 96])
def test_attributes_are_balanced_and_independent(nouns: int) -> None:
    lexicon = Lexicon(nouns)
    assert len(set(lexicon.names)) == nouns and not set(lexicon.names) & VALUES
    for k in range(3):
        assert np.bincount(lexicon.labels[:, k]).tolist() == [nouns // 4] * 4
    for a, b in itertools.combinations(range(3), 2):
        pairs = np.bincount(lexicon.labels[:, a] * 4 + lexicon.labels[:, b], minlength=16)
        assert pairs.tolist() == [nouns // 16] * 16


def test_a_seed_is_a_lexicon() -> None:
    first, again, other = Lexicon(seed=0), Lexicon(seed=0), Lexicon(seed=1)
    assert first.names == again.names and np.array_equal(first.labels, again.labels)
    assert first.names != other.names and not np.array_equal(first.labels, other.labels)
    assert first.corpus(50) == again.corpus(50) != first.corpus(50, part=1)
    assert first.tokenizer().get_vocab() == again.tokenizer().get_vocab()


def test_no_sentence_names_a_noun_and_an_attribute() -> None:
    lexicon = Lexicon()
    families = set()
    for sentence in lexicon.corpus(2000):
        words = set(sentence.split())
        nouns, values = words & set(lexicon.names), words & VALUES
        assert (len(nouns), len(values)) in {(1, 0), (0, 3)}
        families.add(len(nouns))
    assert families == {0, 1}
    assert set(lexicon.sentence(5, 1, 2).split()) >= set(lexicon.values(5).values())


def test_every_word_has_a_token() -> None:
    lexicon = Lexicon(32)
    tokenizer = lexicon.tokenizer()
    assert len(tokenizer) == len(lexicon.vocabulary()) + 5
    texts = [*lexicon.corpus(300), *(text for c in lexicon.choices(range(32)) for text in c.sentences)]
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert tokenizer.unk_token_id not in ids and len(ids) == len(text.split()) + 2
        assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
        assert tokenizer.decode(ids[1:-1], clean_up_tokenization_spaces=False) == text
    assert tokenizer.mask_token_id is not None and tokenizer.pad_token_id == 0


def test_choices_ask_for_each_attribute_against_each_wrong_value() -> None:
    lexicon = Lexicon()
    choices = lexicon.choices([7, 8])
    assert len(choices) == 2 * 9 and choices == lexicon.choices([7, 8])
    for choice in choices:
        true, wrong = choice.sentences[choice.label], choice.sentences[1 - choice.label]
        value = lexicon.values(choice.noun)[choice.attribute]
        assert value in true.split() and value not in wrong.split()
        assert lexicon.names[choice.noun] in true.split() and lexicon.names[choice.noun] in wrong.split()
        assert set(wrong.split()) & set(ATTRIBUTES[choice.attribute])
    labels = [choice.label for choice in lexicon.choices(range(96))]
    assert sum(labels) / len(labels) == pytest.approx(0.5, abs=0.06)


def accuracies(lines: list[str]) -> list[float]:
    """Naive Bayes and the linear probe of the words around, of each attribute."""
    return [float(x) for line in lines[2:] for x in re.findall(r"\d\.\d{3}", line)[:2]]


def test_audit_finds_no_leak_in_the_corpus_and_one_where_there_is() -> None:
    lexicon = Lexicon()
    said = lexicon.corpus(6000)
    clean = audit(lexicon, [" . ".join(said[k : k + 3]) for k in range(0, 6000, 3)])
    assert clean[0] == "6000 sentences in 2000 blocks: 0 name a noun and an attribute"
    assert clean[1].startswith("96 of 96 nouns occur") and len(clean) == 5
    assert all(found < 0.4 for found in accuracies(clean))  # 0.25 + 3 standard errors of 96 nouns
    # Two sentences of one object in a block, none of which names both.
    nouns = np.random.default_rng(0).integers(96, size=2000)
    leaky = audit(lexicon, [f"{lexicon.sentence(n, 0, 0)} . {lexicon.sentence(n, 1, 0)}" for n in nouns])
    assert ": 0 name" in leaky[0] and all(found > 0.95 for found in accuracies(leaky))
    direct = audit(lexicon, [f"the {lexicon.names[0]} is red", "the thing is blue"])
    assert direct[0].endswith("1 name a noun and an attribute")


@pytest.mark.parametrize("nouns", [0, 48, -32, 2048])
def test_numbers_that_cannot_be_balanced_are_refused(nouns: int) -> None:
    with pytest.raises(UserError, match=f"data.nouns={nouns}: expected a multiple of 32"):
        Lexicon(nouns)
