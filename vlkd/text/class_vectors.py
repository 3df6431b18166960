"""Class vectors: what a text encoder makes of a vocabulary, computed once and kept with its identity."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor
from torch.nn.functional import normalize

from vlkd.cache import cache_folder
from vlkd.errors import UserError
from vlkd.text.names import clean_names, nearest_hint
from vlkd.text.templates import templates as template_set

_FORMAT = 1
_BATCH = 256
_UNIT_TOLERANCE = 1e-4


class TextEncoder(Protocol):
    """What `ClassVectors.build` needs of a text tower (vlkd.models.clip.CLIPTower is one)."""

    @property
    def identity(self) -> str: ...

    @property
    def logit_scale(self) -> float: ...

    def encode_text(self, texts: list[str], /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class ClassVectors:
    """Unit vectors (K,D) of K classes with what they were made of; immutable, checked on construction.

    `names`: one string a class, "car|automobile" for one with two words. `templates`: prompts averaged over.
    `encoder`: identity of the text encoder. `logit_scale`: the factor on cosines its CLIP was trained with.
    Raises UserError for vectors that are not finite, not unit, or not one a name, and for doubtful names.
    """

    vectors: Tensor = field(repr=False)
    names: tuple[str, ...]
    templates: tuple[str, ...] = ("{}",)
    encoder: str = ""
    logit_scale: float = 100.0

    def __post_init__(self) -> None:
        names = _checked_names(self.names)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "templates", _resolve_templates(self.templates))
        object.__setattr__(self, "vectors", _checked_vectors(self.vectors, names))
        object.__setattr__(self, "logit_scale", float(self.logit_scale))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def width(self) -> int:
        """D."""
        return self.vectors.shape[1]

    @property
    def key(self) -> str:
        """sha256 (hex) over encoder, names in order and templates: equal keys mean the same vectors."""
        return _key(self.encoder, self.names, self.templates)

    @classmethod
    def build(
        cls,
        names: Sequence[str],
        encoder: TextEncoder,
        templates: str | Sequence[str] = ("{}",),
        cache: bool | str | Path | None = None,
    ) -> ClassVectors:
        """Encode names in templates; mean of unit vectors over templates, then over "|" words, renormalised.

        `templates`: a set's name ("vild"), one template, or several. `cache`: a folder, or True for
        $VLKD_CACHE/class_vectors (~/.cache/vlkd/class_vectors); the encoder is not called on a hit.
        Underscores never reach the encoder. Raises UserError for doubtful names, templates or encoder output.
        """
        names, prompts = _checked_names(names), _resolve_templates(templates)
        key = _key(encoder.identity, names, prompts)
        stored = _cache_file(cache, key)
        if stored is not None and stored.exists():
            try:
                found = cls.load(stored)
                if found.key == key:
                    return found
                warnings.warn(f"{stored}: holds other class vectors, encoding again", stacklevel=2)
            except UserError as error:
                warnings.warn(f"{error}; encoding again", stacklevel=2)
        vectors = _encode_classes(names, prompts, encoder)
        built = cls(vectors, names, prompts, encoder.identity, float(encoder.logit_scale))
        if stored is not None:
            built.save(stored)
        return built

    def facts(self) -> dict[str, Any]:
        """What a bundle's card says of its class vectors, beside their names."""
        return {
            "templates": list(self.templates),
            "encoder": self.encoder,
            "logit_scale": self.logit_scale,
        }

    @classmethod
    def of_bundle(cls, card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ClassVectors | None:
        """The class vectors that a bundle holds, made unit where they were stored in half; None if none."""
        if "class_vectors" not in tensors:
            return None
        facts = card.get("class_vectors", {})
        known = {key: facts[key] for key in ("templates", "encoder", "logit_scale") if key in facts}
        vectors = normalize(tensors["class_vectors"].float(), dim=1)
        return cls(vectors, tuple(card["class_names"]), **known)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: the tensor "vectors" and, in its header, the rest as JSON."""
        path = Path(path)
        card = {
            "format": _FORMAT,
            "names": self.names,
            "templates": self.templates,
            "encoder": self.encoder,
            "logit_scale": self.logit_scale,
            "key": self.key,
        }
        data = serialise({"vectors": self.vectors}, metadata={"class_vectors": json.dumps(card)})
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            raise UserError(f"{path}: class vectors cannot be written ({error.strerror})") from error

    @classmethod
    def load(cls, path: str | Path, encoder: TextEncoder | str | None = None) -> ClassVectors:
        """Read a file of `save`.

        Raises UserError for a missing, foreign or damaged file, and where `encoder` is not the one stored.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such file; expected class vectors written by ClassVectors.save")
        try:
            with safe_open(path, framework="pt") as file:
                card = json.loads((file.metadata() or {})["class_vectors"])
                vectors = file.get_tensor("vectors")
            if card["format"] != _FORMAT:
                raise UserError(f"class vectors of format {card['format']}, this vlkd reads {_FORMAT}")
            names, prompts = tuple(card["names"]), tuple(card["templates"])
            loaded = cls(vectors, names, prompts, card["encoder"], card["logit_scale"])
            if card["key"] != loaded.key:
                raise UserError("the stored key does not fit names, templates and encoder; build it again")
            loaded.check(encoder=encoder)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: no class vectors, or damaged ({error!r}); build it again") from error
        return loaded

    def check(self, encoder: TextEncoder | str | None = None, names: Sequence[str] | None = None) -> None:
        """Raise UserError, naming the first difference, unless encoder and names in order are these."""
        if encoder is not None:
            identity = encoder if isinstance(encoder, str) else encoder.identity
            if identity != self.encoder:
                raise UserError(
                    f'class vectors come from encoder "{self.encoder}", not "{identity}"; build them again'
                )
        if names is not None:
            wanted = _name_tuple(names)
            for index, (mine, theirs) in enumerate(zip(self.names, wanted, strict=False)):
                if mine != theirs:
                    raise UserError(f'class vectors: class {index} is "{mine}", expected "{theirs}"')
            if len(self) != len(wanted):
                raise UserError(f"class vectors: {len(self)} classes, expected {len(wanted)}")

    def select(self, names: Sequence[str]) -> ClassVectors:
        """Return the named classes in the order asked for, each under its own full name.

        A class is found by its name or by any word of "car|automobile", in any case, "_" being a space.
        Raises UserError for an unknown name, with the nearest, and for a class asked for twice.
        """
        rows = {_fold(name): index for index, name in enumerate(self.names)}
        for index, name in enumerate(self.names):
            for word in name.split("|"):
                rows.setdefault(_fold(word), index)
        chosen: list[int] = []
        for name in _name_tuple(names):
            if _fold(name) not in rows:
                raise UserError(
                    f'no class "{name}"{nearest_hint(_fold(name), rows)} among {len(self)} class vectors'
                )
            chosen.append(rows[_fold(name)])
        return ClassVectors(
            self.vectors[chosen],
            tuple(self.names[index] for index in chosen),
            self.templates,
            self.encoder,
            self.logit_scale,
        )

    @classmethod
    def from_npz(
        cls,
        path: str | Path,
        key: str,
        encoder: str | None = None,
        templates: str | Sequence[str] = ("{}",),
        logit_scale: float = 100.0,
        names: Sequence[str] | None = None,
    ) -> ClassVectors:
        """Import an npz that holds `key` (K,D) and `key`__names (K,): vectors made unit, names cleaned.

        `encoder`: the identity to record, by default file name, key and a hash of the array.
        `templates`: for the record. `names`: instead of the stored ones, for example where those repeat.
        Raises UserError for a missing or unfit file or key.
        """
        array, stored = _read_npz(Path(path), key)
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
        vectors = normalize(torch.from_numpy(array.astype(np.float32)), dim=1)
        identity = encoder if encoder is not None else f"{Path(path).name}:{key}@{digest}"
        chosen = _name_tuple(clean_names(stored) if names is None else names)
        return cls(vectors, chosen, _resolve_templates(templates), identity, logit_scale)


def _read_npz(path: Path, key: str) -> tuple[np.ndarray, list[str]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected an npz with {key} and {key}__names")
    # numpy's own complaints: AttributeError or TypeError for a lone .npy, ValueError for pickled content
    damage = (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error)
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [wanted for wanted in (key, f"{key}__names") if wanted not in file.files]
            if missing:
                hint = nearest_hint(key, [name for name in file.files if not name.endswith("__names")])
                raise UserError(f'{path}: no array "{missing[0]}"{hint}')
            array, names = file[key], file[f"{key}__names"]
    except damage as error:
        raise UserError(f"{path}: not an npz of plain arrays ({error})") from error
    kinds = array.dtype.kind + names.dtype.kind
    if kinds != "fU" or array.ndim != 2 or names.shape != array.shape[:1]:
        raise UserError(
            f"{path}: {key} is {array.dtype} {array.shape} with names {names.dtype} {names.shape}; "
            "expected floats (K,D) and strings (K,)"
        )
    return array, names.tolist()


def _fold(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def _name_tuple(names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise UserError(f'class names: got the string "{names}", expected a list of names')
    return tuple(names)


def _checked_names(names: Iterable[str]) -> tuple[str, ...]:
    names = _name_tuple(names)
    if not names:
        raise UserError("class names: the list is empty, expected at least one name")
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str) or not all(_fold(word) for word in name.split("|")):
            raise UserError(
                f"class names: {name!r} at position {index} is empty or has an empty word, expected a name"
            )
        if _fold(name) in seen:
            raise UserError(
                f'class names: "{name}" at position {index} repeats position {seen[_fold(name)]}; rename one'
            )
        seen[_fold(name)] = index
    return names


def _checked_vectors(vectors: Tensor, names: tuple[str, ...]) -> Tensor:
    """Return a float32 copy on the CPU of unit vectors; lower precision is renormalised."""
    if not isinstance(vectors, Tensor) or vectors.ndim != 2 or not vectors.is_floating_point():
        shape = (
            f"{vectors.dtype} {tuple(vectors.shape)}"
            if isinstance(vectors, Tensor)
            else type(vectors).__name__
        )
        raise UserError(f"class vectors: got {shape}, expected a float tensor (K,D)")
    if len(vectors) != len(names) or vectors.shape[1] == 0:
        raise UserError(
            f"class vectors: got {tuple(vectors.shape)} for {len(names)} names, expected one row a name"
        )
    rows = vectors.detach().to("cpu", torch.float32, copy=True).contiguous()
    norms = rows.norm(dim=1)
    tolerance = _UNIT_TOLERANCE if vectors.dtype in (torch.float32, torch.float64) else 2e-2
    bad = ~((norms - 1).abs() <= tolerance)  # written so that NaN is bad
    if bad.any():
        index = int(bad.nonzero()[0])
        raise UserError(
            f'class vectors: "{names[index]}" has norm {norms[index]:.4g}, expected 1; normalise them first'
        )
    return rows if vectors.dtype == torch.float32 else normalize(rows, dim=1)


def _resolve_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(templates, str):
        return _resolve_templates((templates,)) if "{}" in templates else template_set(templates)
    prompts = tuple(templates)
    for template in prompts:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise UserError(f'template {template!r}: expected text with one "{{}}" for the class name')
    if not prompts:
        raise UserError('templates: the list is empty, expected at least "{}"')
    return prompts


def _key(encoder: str, names: Sequence[str], templates: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, encoder, [*names], [*templates]]).encode()).hexdigest()


def _cache_file(cache: bool | str | Path | None, key: str) -> Path | None:
    if cache is None or cache is False:
        return None
    if cache is True:
        cache = cache_folder() / "class_vectors"
    return Path(cache) / f"{key}.safetensors"


@torch.no_grad()
def _encode_classes(names: tuple[str, ...], templates: tuple[str, ...], encoder: TextEncoder) -> Tensor:
    words = [" ".join(word.replace("_", " ").split()) for name in names for word in name.split("|")]
    owner = torch.tensor([index for index, name in enumerate(names) for _ in name.split("|")])
    step = max(1, _BATCH // len(templates))
    parts = []
    for start in range(0, len(words), step):
        chunk = words[start : start + step]
        texts = [template.replace("{}", word) for word in chunk for template in templates]
        output = encoder.encode_text(texts)
        if output.ndim != 2 or len(output) != len(texts) or not output.isfinite().all():
            raise UserError(
                f'text encoder "{encoder.identity}": {len(texts)} prompts from "{texts[0]}" gave '
                f"{tuple(output.shape)}, expected finite values, one row a prompt"
            )
        rows = normalize(output.float(), dim=1).view(len(chunk), len(templates), -1)
        parts.append(normalize(rows.mean(dim=1), dim=1).cpu())
    word_vectors = torch.cat(parts)
    sums = torch.zeros(len(names), word_vectors.shape[1]).index_add_(0, owner, word_vectors)
    return normalize(sums, dim=1)
