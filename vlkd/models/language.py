"""Language models: BERT of the package transformers, by size, local folder, bundle or hub id."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vlkd.engine.bundle import load_bundle
from vlkd.engine.hub import Zoo, resolve
from vlkd.errors import UserError
from vlkd.models.clip import weights_identity
from vlkd.models.weights import fit_weights
from vlkd.text.word_ids import (
    check_same_tokenizer,
    load_tokenizer,
    tokenizer_of_text,
    tokenizer_text,
    transformers_library,
)

Model = TypeVar("Model", bound="LanguageModel")
# layers, width, heads, width of the feed-forward part, positions. small and base: VidLanKD, section 4.
SIZES = {
    "tiny": (2, 64, 2, 256, 128),
    "mini": (4, 128, 4, 512, 256),
    "small": (6, 512, 8, 2048, 512),
    "base": (12, 768, 12, 3072, 512),
}
PREFIX = "language.model."
TOKENIZER = "tokenizer"  # tensor of a bundle: the bytes of tokenizer.json
_TIED = {  # weights that are another's
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "hidden_act",
    "layer_norm_eps",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "pad_token_id",
)


class LanguageModel(nn.Module):
    """BERT with its head for masked words, and the tokenizer that it was made for.

    `model`: transformers' BertForMaskedLM; `name`: size or source, for cards and messages.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, name: str) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.name = name
        config: Any = self.model.config
        if len(tokenizer) > config.vocab_size:
            raise UserError(
                f"{name}: a vocabulary of {config.vocab_size} tokens, the tokenizer has {len(tokenizer)}; "
                "use the tokenizer that the model was trained with"
            )

    @property
    def width(self) -> int:
        """D of the states."""
        return self.model.config.hidden_size

    @property
    def positions(self) -> int:
        """The longest sequence, in tokens."""
        return self.model.config.max_position_embeddings

    @property
    def architecture(self) -> dict[str, Any]:
        """What `from_architecture` builds the same network from."""
        return {"name": self.name, "config": bert_arguments(self.model.config)}

    @property
    def identity(self) -> str:
        """name@hash16 of the present weights."""
        return weights_identity(self.name, self.model.state_dict())

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Ids (B,L), mask (B,L) of what is no padding -> states of the last layer (B,L,D).

        Raises UserError for sequences longer than the positions.
        """
        if input_ids.shape[1] > self.positions:
            raise UserError(
                f"{self.name}: sequences of {input_ids.shape[1]} tokens, it has {self.positions} positions; "
                "let the data cut them, or take a larger model"
            )
        return self.model.bert(input_ids, attention_mask=attention_mask).last_hidden_state

    def words(self, states: Tensor) -> Tensor:
        """States (...,D) -> logits over the vocabulary (...,K)."""
        return self.model.cls(states)

    def check_tokenizer(self, tokenizer: Any, name: str) -> None:
        """Raises UserError unless `tokenizer`, of what `name` says, gives every token the model's id."""
        check_same_tokenizer(tokenizer, self.tokenizer, (name, self.name))

    def tensors(self) -> dict[str, Tensor]:
        """Weights and tokenizer, as a bundle holds them; what is tied is there once."""
        kept = {f"{PREFIX}{key}": x for key, x in self.model.state_dict().items() if key not in _TIED}
        return kept | {TOKENIZER: _bytes(tokenizer_text(self.tokenizer))}

    def load(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Take the weights among what `tensors` gave. Raises UserError where they do not fit."""
        state = {key.removeprefix(PREFIX): x for key, x in tensors.items() if key.startswith(PREFIX)}
        tied = {key: state[one] for key, one in _TIED.items() if one in state}
        fit_weights(self.model, {**state, **tied}, source)


# --- how a model comes to be -------------------------------------------------------------------------------


def build_language_model(name: str, tokenizer: Any = None, dropout: float | None = None) -> LanguageModel:
    """A language model by name: a size of SIZES, a local transformers folder, a bundle, or a hub id.

    A size starts from random weights and needs `tokenizer`; a stored model brings its own, which must then be
    the same. `dropout`: of states and attention; by default 0.1, or what is stored. Raises UserError for an
    unknown name, a model that is no BERT, a tokenizer that does not fit, and a hub that cannot be reached.
    """
    if name in SIZES:
        if tokenizer is None:
            raise UserError(f"{name}: a size alone has no tokenizer; give one, or a folder or bundle")
        return _of_size(name, tokenizer, 0.1 if dropout is None else dropout)
    found = _stored(name)
    if dropout is not None:
        set_dropout(found.model, dropout)
    if tokenizer is not None:
        found.check_tokenizer(tokenizer, "the data")
    return found


def check_name(name: str) -> None:
    """Raises UserError where `build_language_model` could not know the name, without building anything."""
    transformers_library()
    if name in SIZES or Path(name).expanduser().exists() or _is_hub_id(name) or name in Zoo.open().entries:
        return
    raise UserError(
        f"{name}: no size ({', '.join(SIZES)}), no folder or bundle on this machine, no model of the zoo and "
        "no hub id of the form 'owner/name'"
    )


def bert_arguments(config: Any) -> dict[str, Any]:
    """The arguments of a BertConfig that decide what is computed."""
    return {key: getattr(config, key) for key in _KEYS}


def from_architecture(architecture: Mapping[str, Any], tokenizer: Any) -> LanguageModel:
    """A network with random weights, as the card of a bundle describes it."""
    library = transformers_library()
    config = library.BertConfig(**architecture["config"])
    return LanguageModel(library.BertForMaskedLM(config), tokenizer, architecture["name"])


def language_model_of(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str = "bundle"
) -> LanguageModel:
    """The language model that a bundle holds, in eval mode. Raises UserError where it holds none."""
    if TOKENIZER not in tensors or "config" not in card["architecture"].get("language", {}):
        raise UserError(f"{source}: holds a {card['kind']}, expected a language model")
    return restored(
        lambda tokenizer: from_architecture(card["architecture"]["language"], tokenizer), tensors, source
    )


def restored(build: Callable[[Any], Model], tensors: Mapping[str, Tensor], source: str) -> Model:
    """What `build` makes for a bundle's tokenizer, with the bundle's weights, in eval mode."""
    tokenizer = tokenizer_of_text(_text(tensors[TOKENIZER]), source)
    # What is random now is overwritten: it must not shift the random numbers of a run.
    with torch.random.fork_rng(devices=[]):
        found = build(tokenizer)
    tokenizer.model_max_length = found.positions
    found.load(tensors, source)
    return found.eval()


def load_language_model(path: str | Path) -> LanguageModel:
    """The language model of a bundle file, run folder or zoo name, in eval mode. Raises UserError."""
    file = resolve(path)
    return language_model_of(*load_bundle(file), str(file))


def set_dropout(network: nn.Module, rate: float) -> None:
    """Give a BERT this dropout, of states and of attention."""
    network.config.hidden_dropout_prob = network.config.attention_probs_dropout_prob = rate  # type: ignore[union-attr]
    for part in network.modules():
        if isinstance(part, nn.Dropout):
            part.p = rate


def bert_config(size: str, vocabulary: int, pad: int, dropout: float) -> Any:
    """A BertConfig of one of SIZES."""
    layers, width, heads, inner, positions = SIZES[size]
    return transformers_library().BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=pad,
    )


def _of_size(size: str, tokenizer: Any, dropout: float) -> LanguageModel:
    config = bert_config(size, len(tokenizer), tokenizer.pad_token_id, dropout)
    return LanguageModel(transformers_library().BertForMaskedLM(config), tokenizer, size)


def _stored(name: str) -> LanguageModel:
    path = Path(name).expanduser()
    if path.is_dir() and (path / "config.json").is_file():
        return _from_folder(path)
    if path.exists() or path.suffix == ".safetensors" or name in Zoo.open().entries:
        return load_language_model(name)
    check_name(name)
    return _from_hub(name)


def _from_folder(path: Path) -> LanguageModel:
    if not any(path.glob("*.safetensors")):
        raise UserError(
            f"{path}: holds no weights as safetensors; save them so (save_pretrained of transformers 5)"
        )
    return LanguageModel(_pretrained(str(path), offline=True), load_tokenizer(path), str(path))


def _from_hub(name: str) -> LanguageModel:
    library = transformers_library()
    offline = os.environ.get("VLKD_OFFLINE", "0") not in ("", "0")
    try:
        model = _pretrained(name, offline)
        tokenizer = library.AutoTokenizer.from_pretrained(name, local_files_only=offline)
        return LanguageModel(model, tokenizer, name)
    except OSError:
        raise _no_hub(name) from None


def _pretrained(name: str, offline: bool) -> Any:
    """The network of a folder or hub id. Raises UserError for what is no BERT, OSError for no such hub id."""
    library = transformers_library()
    try:
        config = library.AutoConfig.from_pretrained(name, local_files_only=offline)
        if config.model_type != "bert":
            raise UserError(f"{name}: a model of type {config.model_type!r}, expected 'bert'")
        return library.BertForMaskedLM.from_pretrained(
            name, config=config, local_files_only=offline, use_safetensors=True
        )
    except UserError:
        raise
    except Exception as error:
        if not Path(name).is_dir():
            raise OSError(str(error)) from None
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{name}: not a readable transformers folder ({reason[:160]})") from None


def _no_hub(name: str) -> UserError:
    return UserError(
        f"{name}: not on this machine, and the hub could not be reached; fetch it elsewhere and give the "
        "local folder (config.json, model.safetensors, tokenizer.json)"
    )


def _is_hub_id(name: str) -> bool:
    return (
        not name.startswith((".", "/", "~")) and name.count("/") < 2 and ("/" in name or name[:4] == "bert")
    )


# --- a folder of transformers ------------------------------------------------------------------------------


def save_language_model(model: LanguageModel, folder: str | Path) -> Path:
    """Writes a transformers folder (model.safetensors, config.json, tokenizer.json), whole or not at all.

    `AutoModelForMaskedLM.from_pretrained(folder)` reads it. A folder that holds anything else is refused.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise UserError(f"{folder}: holds other files; give a new folder")
    with _replacing(folder) as part:
        model.model.save_pretrained(str(part), safe_serialization=True)
        tokenizer = tokenizer_of_text(tokenizer_text(model.tokenizer), max_length=model.positions)
        tokenizer.save_pretrained(str(part))
    return folder


def export(bundle: str | Path, folder: str | Path) -> Path:
    """The transformers folder of a bundle's language model."""
    return save_language_model(load_language_model(bundle), folder)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder to write to, that takes the place of `folder` once all is written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield part
        part.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _bytes(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(text.encode("utf-8"), dtype=np.uint8).copy())


def _text(tensor: Tensor) -> str:
    return tensor.numpy().tobytes().decode("utf-8")
