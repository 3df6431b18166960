"""Language models with the head of a downstream task: transformers' own heads on a student's BERT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlkd.engine.bundle import load_bundle, read_card
from vlkd.engine.hub import Zoo, resolve
from vlkd.errors import UserError
from vlkd.models.clip import weights_identity
from vlkd.models.language import (
    PREFIX,
    SIZES,
    LanguageModel,
    bert_arguments,
    build_language_model,
    restored,
    set_dropout,
)
from vlkd.models.weights import fit_weights, read_weights
from vlkd.text.word_ids import transformers_library

KIND = "finetuned"  # of bundles
HEADS = {
    "classes": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "choices": "AutoModelForMultipleChoice",
    "spans": "AutoModelForQuestionAnswering",
}
_POOLER = "pooler.dense."


@dataclass(frozen=True)
class Task:
    """head: classes, regression, choices or spans; labels: names of the classes or choices, in order."""

    head: str
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.head not in HEADS or (self.head == "classes" and len(self.labels) < 2):
            raise UserError(
                f"task: head {self.head!r} with the labels {list(self.labels)}; expected one of "
                f"{', '.join(HEADS)}, and names of the classes"
            )


class TaskModel(LanguageModel):
    """A BERT with transformers' head for a task (`model`), and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, name: str, task: Task) -> None:
        super().__init__(model, tokenizer, name)
        self.task = task

    def answers(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (B,K) of classes or choices, numbers (B,1), or logits of a span's two ends (B,2,L).

        The batch: input_ids, attention_mask, token_type_ids (B,L), with choices (B,C,L). Padding is never the
        end of a span. Raises UserError for sequences longer than the positions.
        """
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if ids.shape[-1] > self.positions:
            raise UserError(
                f"{self.name}: sequences of {ids.shape[-1]} tokens, it has {self.positions} positions; set "
                "data.length lower"
            )
        found = self.model(ids, attention_mask=mask, token_type_ids=batch["token_type_ids"])
        if self.task.head != "spans":
            return found.logits
        ends = torch.stack([found.start_logits, found.end_logits], 1)
        return ends.masked_fill(mask[:, None] == 0, torch.finfo(ends.dtype).min)

    def load(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Take a bundle's weights. Raises UserError where they do not fit."""
        state = {key.removeprefix(PREFIX): x for key, x in tensors.items() if key.startswith(PREFIX)}
        fit_weights(self.model, state, source)


def build_task_model(init: str, task: Task, tokenizer: Any = None, dropout: float | None = None) -> TaskModel:
    """A model for the task whose BERT is `init`'s, its head at random.

    init: as of vlkd.models.language.build_language_model, or a bundle of this kind, whose head is left out.
    `tokenizer`: needed by a size, else it must be the model's. Raises UserError as that function does.
    """
    start = _start(init, tokenizer, dropout)
    state = start.model.bert.state_dict() | _pooler(Path(init).expanduser())
    name = init if init in SIZES else weights_identity(init, state)
    found = TaskModel(_network(bert_arguments(start.model.config), task), start.tokenizer, name, task)
    # Not strict: a span's head needs no pooler, a model of hidden words has none.
    found.model.bert.load_state_dict(state, strict=False)
    return found


def task_of(card: Mapping[str, Any]) -> Task:
    """What the card of a bundle of this kind says that it was trained for."""
    facts = card["architecture"]["task"]
    return Task(facts["head"], tuple(facts["labels"]))


def task_model_of(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str = "bundle"
) -> TaskModel:
    """The model that a bundle holds, in eval mode. Raises UserError where it holds none."""
    if card["kind"] != KIND:
        raise UserError(f"{source}: holds a {card['kind']}, expected a bundle of kind {KIND!r}")
    facts, task = card["architecture"]["language"], task_of(card)

    def build(tokenizer: Any) -> TaskModel:
        return TaskModel(_network(facts["config"], task), tokenizer, facts["name"], task)

    return restored(build, tensors, source)


def load_task_model(path: str | Path) -> TaskModel:
    """The model of a bundle file, run folder or zoo name, in eval mode. Raises UserError."""
    file = resolve(path)
    return task_model_of(*load_bundle(file), str(file))


def task_bundle(model: TaskModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Card and tensors of the model."""
    task = asdict(model.task) | {"labels": list(model.task.labels)}
    card = {
        "kind": KIND,
        "architecture": {"language": model.architecture, "task": task},
        "input_spec": {"size": [model.positions], "vocabulary": len(model.tokenizer)},
    }
    return card, model.tensors()


def _network(arguments: Mapping[str, Any], task: Task) -> Any:
    """Random weights; names of the classes are in the config, where pipelines of transformers look."""
    library = transformers_library()
    labels = {"regression": ("score",), "classes": task.labels}.get(task.head, ())
    names = {"id2label": dict(enumerate(labels)), "label2id": {x: k for k, x in enumerate(labels)}}
    kind = {"regression": {"problem_type": "regression"}}.get(task.head, {})
    config = library.BertConfig(**arguments, **(names if labels else {}), **kind)
    return getattr(library, HEADS[task.head]).from_config(config)


def _start(init: str, tokenizer: Any, dropout: float | None) -> LanguageModel:
    """The model to begin with: of a bundle of this kind, or any language model."""
    path = Path(init).expanduser()
    # The manifest last: an installation may have none, and a size or a local file needs none.
    is_bundle = init not in SIZES and (
        not (path / "config.json").is_file() if path.exists() else init in Zoo.open().entries
    )
    if not is_bundle or read_card(resolve(init))["kind"] != KIND:
        with _quiet():
            return build_language_model(init, tokenizer, dropout)
    found = load_task_model(init)
    if dropout is not None:
        set_dropout(found.model, dropout)
    if tokenizer is not None:
        found.check_tokenizer(tokenizer, "the data")
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of weights that are missing: it is about a head that is not used."""
    logging = transformers_library().utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _pooler(folder: Path) -> dict[str, Tensor]:
    """The pooler of a transformers folder, which a model of hidden words does not read."""
    files = sorted(folder.glob("*.safetensors")) if (folder / "config.json").is_file() else []
    return {
        f"{_POOLER}{key.rsplit('.', 1)[1]}": x
        for file in files
        for key, x in read_weights(file).items()
        if _POOLER in key
    }
