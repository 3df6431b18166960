import numpy as np
import pytest
from toy_video_text import WORDS, tokenizer_file

import vlkd.data.video_text.blocks as blocks_module
from vlkd.cache import cache_folder
from vlkd.data import TextBlocksData
from vlkd.data.video_text.blocks import Blocks, tokenise
from vlkd.errors import UserError
from vlkd.text.word_ids import load_tokenizer


@pytest.fixture
def corpus(tmp_path):
    """Tokenizer file and a text of three documents of 10, 3 and 25 words."""
    text = [WORDS[:10], WORDS[10:13], WORDS[13:38]]
    (tmp_path / "t.txt").write_text("\n\n".join(" ".join(words) for words in text))
    return tokenizer_file(tmp_path), str(tmp_path / "t.txt")


def words_of(blocks, tokenizer):
    return [
        tokenizer.decode(ids[mask == 1]).split() for ids, mask in (blocks.row(k) for k in range(len(blocks)))
    ]


def test_no_block_crosses_a_document(corpus):
    tokenizer = load_tokenizer(corpus[0])
    blocks = Blocks([tokenise(corpus[1], tokenizer)], tokenizer, length=9, shortest=3)
    found = words_of(blocks, tokenizer)
    assert all(words[0] == "[CLS]" and words[-1] == "[SEP]" for words in found)
    # 7 words in a block; the 3 left of the first document stay, and so do the 4 of the last.
    expected = [WORDS[:7], WORDS[7:10], WORDS[10:13], WORDS[13:20], WORDS[20:27], WORDS[27:34], WORDS[34:38]]
    assert [words[1:-1] for words in found] == expected
    ids, mask = blocks.row(1)
    assert mask.tolist() == [1] * 5 + [0] * 4 and (ids[5:] == tokenizer.pad_token_id).all()
    assert len(Blocks([tokenise(corpus[1], tokenizer)], tokenizer, length=9, shortest=4)) == 5


def test_blocks_across_documents_are_full_and_drawn_by_the_seed(corpus):
    tokenizer = load_tokenizer(corpus[0])
    stored = tokenise(corpus[1], tokenizer)
    made = [words_of(Blocks([stored], tokenizer, 9, across=True, seed=s), tokenizer) for s in (0, 0, 1, 2, 3)]
    assert made[0] == made[1] and len({str(m) for m in made}) > 1
    for found in made:
        assert len(found) == 38 // 7 and all(len(words) == 9 for words in found)
        flat = [w for words in found for w in words[1:-1]]
        assert len(set(flat)) == 35 and set(flat) <= set(WORDS[:38])
    joined = [w for words in made[0] for w in words[1:-1]]
    order = np.random.default_rng(0).permutation(3)
    parts = [WORDS[:10], WORDS[10:13], WORDS[13:38]]
    assert joined == [w for k in order for w in parts[k]][:35]


def test_tokens_are_cached_by_bytes_and_tokenizer(corpus, tmp_path, monkeypatch):
    tokenizer = load_tokenizer(corpus[0])
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    first = tokenise(corpus[1], tokenizer)
    monkeypatch.setattr(blocks_module, "_tokenised", lambda *_: pytest.fail("tokenised again"))
    again = tokenise(corpus[1], tokenizer)
    assert np.array_equal(first.ids, again.ids) and first.ends.tolist() == [10, 13, 38]
    assert len(list((cache_folder() / "tokens").iterdir())) == 1
    monkeypatch.undo()
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "t.txt").write_text("w5 w6")
    assert len(tokenise(corpus[1], tokenizer).ids) == 2
    assert tokenise(corpus[1], tokenizer, "lines").key != tokenise(corpus[1], tokenizer).key


def test_batches_in_order_of_seed_and_epoch(corpus):
    data = TextBlocksData(*corpus, val=corpus[1], length=9, shortest=3, batch_size=2, num_workers=0)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 9)
    assert batch["input_ids"].dtype == batch["indices"].dtype and batch["indices"].shape == (2,)
    loader = data.train_dataloader()
    whole = [b["indices"].tolist() for b in loader]
    assert len(whole) == 3 and whole[0] == batch["indices"].tolist()
    resumed = data.train_dataloader()
    resumed.load_state_dict({"epoch": 0, "batches": 2})
    assert [b["indices"].tolist() for b in resumed] == whole[2:]
    resumed.sampler.set_epoch(1)
    assert [b["indices"].tolist() for b in resumed] != whole
    assert [k for b in data.val_dataloader() for k in b["indices"].tolist()] == list(range(7))
    assert data.val_fingerprint() == data.val_fingerprint() and data.check() == []
    other = TextBlocksData(*corpus, val=corpus[1], length=8, shortest=3, num_workers=0)
    other.setup()
    assert other.val_fingerprint() != data.val_fingerprint()


def test_bad_input_is_one_line(corpus, tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n")
    cases = [
        (lambda: TextBlocksData(corpus[0], "absent.txt"), "absent.txt: no such text file"),
        (lambda: TextBlocksData(corpus[0], str(tmp_path / "blank.txt")), "blank.txt: holds no text"),
        (lambda: TextBlocksData(*corpus, shortest=60), "too little text for a block of 128 tokens"),
        (lambda: TextBlocksData(str(tmp_path / "none"), corpus[1]), "holds no tokenizer"),
        (lambda: TextBlocksData(corpus[0], []), "names no text file"),
        (lambda: TextBlocksData(*corpus, length=2), "data.length=2"),
        (lambda: TextBlocksData(*corpus, shortest=0), "data.shortest=0"),
    ]
    for make, says in cases:
        with pytest.raises(UserError) as error:
            make().setup()
        assert says in str(error.value) and "\n" not in str(error.value)
    data = TextBlocksData(corpus[0], [corpus[1], "absent.txt"], str(tmp_path / "blank.txt"))
    assert [line.split(": ")[1] for line in data.check()] == ["no such text file", "holds no text"]
