"""What the user's words are to a model: class vectors, stored ones or made by a text encoder at first use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.errors import UserError
from vlkd.infer.inputs import Classes, parse_classes, shortened
from vlkd.text.class_vectors import ClassVectors, TextEncoder
from vlkd.text.names import nearest_hint
from vlkd.text.templates import templates as template_set

_KEPT_LISTS = 16


class Words:
    """Lists of class names and their vectors, each list encoded once.

    `text` may be a function that fetches an encoder when a name is met that `class_vectors` lacks;
    `templates` are the prompts for new names: a set's name, one template, or several; None: the name alone.
    """

    def __init__(
        self,
        class_vectors: ClassVectors | None,
        text: TextEncoder | Callable[[], TextEncoder] | None,
        templates: str | Sequence[str] | None,
        device: torch.device,
    ) -> None:
        if class_vectors is None and text is None:
            raise UserError(
                "Predictor: neither class vectors nor a text encoder: give one, so that names have meaning"
            )
        self.class_vectors, self.device = class_vectors, device
        self.templates = _prompts(templates)
        self._text = text
        self._lists: OrderedDict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = OrderedDict()

    def __call__(self, classes: Classes | None) -> tuple[tuple[str, ...], Tensor]:
        """Names as given (None: the model's own) and their vectors (K,D) on the device.

        Raises UserError for an empty or repeating list, and for names without vectors or text encoder.
        """
        if classes is None:
            if self.class_vectors is None:
                raise UserError(
                    "classes: none were given and this model has no class list of its own: name some"
                )
            names = self.class_vectors.names
        else:
            names = parse_classes(classes)
        key = names, self.templates
        if key not in self._lists:
            vectors = self.class_vectors.vectors if classes is None else self._encode(names)  # type: ignore[union-attr]
            self._lists[key] = vectors.to(self.device)
            if len(self._lists) > _KEPT_LISTS:
                self._lists.popitem(last=False)
        self._lists.move_to_end(key)
        return names, self._lists[key]

    @torch.inference_mode()
    def _encode(self, names: tuple[str, ...]) -> Tensor:
        stored = self.class_vectors
        if stored and set(names) <= set(stored.names) and stored.templates == self.templates:
            return stored.select(names).vectors
        if self._text is None:
            return self._stored(names)
        if not hasattr(self._text, "encode_text"):
            self._text = self._text()
        return ClassVectors.build(names, self._text, self.templates).vectors  # type: ignore[arg-type]

    def _stored(self, names: tuple[str, ...]) -> Tensor:
        """Mean of the stored vectors of each class's words."""
        assert self.class_vectors is not None
        rows = []
        for name in names:
            words = name.split("|")
            try:
                rows.append(
                    F.normalize(
                        torch.cat([self.class_vectors.select([w]).vectors for w in words]).mean(0), dim=0
                    )
                )
            except UserError:
                known = self.class_vectors.names
                raise UserError(
                    f'"{name}" is not among the {len(known)} model classes{nearest_hint(name, known)}, '
                    f"and it has no text encoder for new words: use its names ({shortened(known)}), "
                    "or a bundle with text"
                ) from None
        return torch.stack(rows)


def _prompts(templates: str | Sequence[str] | None) -> tuple[str, ...]:
    if templates is None:
        return ("{}",)
    if not isinstance(templates, str):
        return tuple(templates)
    return (templates,) if "{}" in templates else template_set(templates)
