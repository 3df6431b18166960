"""The student of stage 2: which network, which of its parts learn, what of it needs to be saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlkd.errors import UserError
from vlkd.methods.promptkd.base import check_names
from vlkd.models.clip import weights_identity
from vlkd.models.open_classifier import OpenClassifier, ProjectorSize, build_open_classifier
from vlkd.models.prompted import PromptSize

Trained = Literal["prompts", "projector", "all"]
LOSSES = ("kd", "ce")


def build_student(arguments: Mapping[str, Any], width: int | None) -> OpenClassifier:
    """The student that arguments of PromptKD describe, to class vectors of `width`.

    width: None where the teacher is not there yet; then all is built and checked but the projector's end.
    Raises UserError for whatever does not fit.
    """
    if arguments["trained"] == "prompts" and arguments["prompts"] is None:
        raise UserError("model.trained=prompts: there are none; choose projector or all")
    projector = arguments["projector"]
    if width is None and projector is None:
        projector = ProjectorSize(1)
    student = build_open_classifier(
        arguments["student"],
        width or 1,
        arguments["student_pretrained"],
        arguments["prompts"],
        projector,
        arguments["image_size"],
        arguments["student_arguments"],
    )
    train_parts(student, arguments["trained"])
    return student


def check_options(arguments: Mapping[str, Any]) -> None:
    """Raises UserError for values that cannot be, whatever teacher and data are."""
    for weights in (arguments["weights"] or {}, *(arguments["weights_of"] or {}).values()):
        check_names(weights, LOSSES)
    if arguments["micro_batch"] is not None and arguments["micro_batch"] < 1:
        raise UserError(f"model.micro_batch={arguments['micro_batch']}: expected at least 1, or null for all")
    if arguments["temperature"] <= 0:
        raise UserError(f"model.temperature={arguments['temperature']}: expected a number above 0")


def from_plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a config as PromptKD takes them: sizes as what they are."""
    kinds = {"prompts": PromptSize, "projector": ProjectorSize}
    sizes = {key: kind(**arguments[key]) for key, kind in kinds.items() if isinstance(arguments[key], dict)}
    return {**arguments, **sizes}


def train_parts(student: OpenClassifier, trained: Trained) -> None:
    """Freezes what does not learn: prompts and projector do, the projector alone, or all."""
    for name, parameter in student.named_parameters():
        part = "prompts" if ".prompts." in name else name.split(".")[0]
        if trained != "all" and part not in (trained, "projector"):
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in student.parameters()):
        raise UserError(f"model.trained={trained}: nothing to train; choose all, or give a projector")


def frozen_tensors(student: OpenClassifier, trained: Trained) -> dict[str, Tensor]:
    """What never changes: the tower's own tensors unless it is trained, by name in the student."""
    if trained == "all":
        return {}
    state = student.state_dict()
    return {k: x for k, x in state.items() if k.startswith("tower.") and ".prompts." not in k}


def frozen_identity(student: OpenClassifier, trained: Trained) -> str:
    """Hash of what never changes."""
    return weights_identity("frozen", frozen_tensors(student, trained))


def has_batch_norm(*parts: nn.Module | None) -> bool:
    """Whether a part's output depends on which images share a batch."""
    modules = (module for part in parts if part is not None for module in part.modules())
    return any(isinstance(module, _BatchNorm) for module in modules)


def tower_row(part: str, spec: Any, width: int, scale: float) -> dict[str, Any]:
    """A row of the dry run for an image tower and the `width` of its vectors."""
    size = "x".join(map(str, spec.size))
    return {"part": part, "input": size, "tower": spec.width, "width": width, "logit scale": round(scale, 3)}
