"""Tokenizers of language models: built from a corpus or read from a folder, the same in data and models."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from vlkd.errors import UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FILE = "tokenizer.json"


def transformers_library() -> Any:
    """The package `transformers`, imported when it is first needed, its progress bars off.

    Raises UserError where it is missing.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(
            'the package transformers is missing; language models need it: pip install "vlkd[language]"'
        ) from None
    transformers.utils.logging.disable_progress_bar()
    return transformers


def build_tokenizer(
    texts: Iterable[str],
    kind: Literal["words", "pieces"] = "words",
    size: int = 30522,
    lower: bool = True,
    max_length: int = 512,
) -> Any:
    """A tokenizer as BERT's (PreTrainedTokenizerFast) from a corpus: [CLS] text [SEP], ids from 0.

    words: every word of the corpus, the frequent first, other words are [UNK]; pieces: WordPiece, which has
    pieces for any word. `size`: the most tokens, special ones included. The same texts in the same order give
    the same words; of pieces the trainer breaks ties at random, so a few may differ: store what was built.
    Raises UserError for an empty corpus and a size too small.
    """
    if kind not in ("words", "pieces"):
        raise UserError(f"tokenizer: kind {kind!r} is unknown; use 'words' or 'pieces'")
    if size <= len(SPECIAL):
        raise UserError(f"tokenizer: size {size}, expected more than the {len(SPECIAL)} special tokens")
    transformers_library()
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(
        models.WordPiece(unk_token="[UNK]") if kind == "pieces" else models.WordLevel(unk_token="[UNK]")
    )
    _like_bert(tokenizer, lower)
    common: dict[str, Any] = {"vocab_size": size, "special_tokens": list(SPECIAL), "show_progress": False}
    trainer = trainers.WordPieceTrainer(**common) if kind == "pieces" else trainers.WordLevelTrainer(**common)
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() <= len(SPECIAL):
        raise UserError("tokenizer: the corpus has no word; give texts to build it from")
    _add_ends(tokenizer)
    if kind == "pieces":
        from tokenizers import decoders

        tokenizer.decoder = decoders.WordPiece()
    return _wrapped(tokenizer, max_length)


def load_tokenizer(folder: str | Path, max_length: int | None = None) -> Any:
    """The tokenizer of a local transformers folder (tokenizer.json or vocab.txt), or of its tokenizer.json.

    Raises UserError where there is none, it cannot be read, or it has no mask or padding token.
    """
    path = Path(folder).expanduser()
    library = transformers_library()
    if path.is_file() and path.suffix == ".json":
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a tokenizer ({error})") from None
        return tokenizer_of_text(text, str(path), max_length or 512)
    if not any((path / name).is_file() for name in (FILE, "vocab.txt")):
        raise UserError(f"{path}: holds no tokenizer; expected {FILE} or vocab.txt of a transformers folder")
    try:
        found = library.AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path}: its tokenizer cannot be read ({reason[:160]})") from None
    if max_length:
        found.model_max_length = max_length
    return _checked(found, str(path))


def tokenizer_text(tokenizer: Any) -> str:
    """What tokenizer.json of the tokenizer holds, without the padding and truncation of its last use."""
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy.to_str()


def tokenizer_of_text(text: str, source: str = FILE, max_length: int = 512) -> Any:
    """Inverse of `tokenizer_text`. Raises UserError, naming `source`, where it is no tokenizer of a BERT."""
    transformers_library()
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{source}: not a tokenizer ({reason[:120]})") from None
    # Checked first: what is missing would be added as further words.
    if lacking := [word for word in SPECIAL if tokenizer.token_to_id(word) is None]:
        raise UserError(f"{source}: a tokenizer without {', '.join(lacking)}; expected one as of BERT")
    return _wrapped(tokenizer, max_length)


def check_same_tokenizer(tokenizer: Any, other: Any, names: tuple[str, str]) -> None:
    """Raises UserError, at the first token that differs, unless both give a token the same id."""
    mine, theirs = ({place: word for word, place in x.get_vocab().items()} for x in (tokenizer, other))
    if mine == theirs:
        return
    first = next(k for k in itertools.count() if mine.get(k) != theirs.get(k))
    raise UserError(
        f"tokenizer of {names[0]} ({len(mine)} tokens) is not that of {names[1]} ({len(theirs)} tokens): "
        f"token {first} is {mine.get(first)!r} and {theirs.get(first)!r}; use one tokenizer for both"
    )


def ordinary_ids(tokenizer: Any) -> list[int]:
    """Ids of the tokens that are no special ones, in order."""
    special = set(tokenizer.all_special_ids)
    return [place for place in range(len(tokenizer)) if place not in special]


def _like_bert(tokenizer: Any, lower: bool) -> None:
    from tokenizers import normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def _add_ends(tokenizer: Any) -> None:
    from tokenizers import processors

    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )


def _wrapped(tokenizer: Any, max_length: int) -> Any:
    keys = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return transformers_library().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **dict(zip(keys, SPECIAL, strict=True)),
    )


def _checked(tokenizer: Any, source: str) -> Any:
    words = tokenizer.get_vocab()
    lacking = [
        key
        for key in ("mask_token", "pad_token")
        if getattr(tokenizer, key) is None or getattr(tokenizer, key) not in words
    ]
    if lacking or not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(
            f"{source}: a tokenizer without {', '.join(lacking) or FILE}; expected one as of BERT"
        )
    return tokenizer
