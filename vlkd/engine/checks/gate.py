"""The teacher gate: before training the teacher is scored and compared with its recorded score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from vlkd.engine.resume import random_state, set_random_state
from vlkd.errors import UserError
from vlkd.methods.base import Distiller

# Options of data modules that decide which images are scored; all others change how they are seen, and that
# is what the gate is there to notice.
WHICH = (
    "kind",
    "split",
    "val_split",
    "val_limit",
    "val_scenes",
    "val_images",
    "val_pairs",
    "val_handling",
    "world_seed",
)


class TeacherGate(Callback):
    """Scores the teacher at the start of a run that is not resumed; a low score ends the run.

    Args:
        data: the config's "data" section.
        tolerance: how much lower than recorded a score may be.
        known: result of an earlier gate with the same config but for the seed; nothing is scored again.
    """

    def __init__(
        self, data: Mapping[str, Any], tolerance: float = 0.01, known: dict[str, Any] | None = None
    ) -> None:
        self.data = data
        self.tolerance = tolerance
        self.result = known
        self.known = known is not None

    def state_dict(self) -> dict[str, Any]:
        return {"result": self.result}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.result, self.known = state["result"], True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Distiller)
        if trainer.global_step:
            return
        if not self.known:
            self.result = self._score(trainer, pl_module)
        if self.result is None:
            return
        if trainer.is_global_zero:
            print(line(self.result) + (" (scored in an earlier seed)" if self.known else ""), flush=True)
        refuse(self.result, self.tolerance)

    def _score(self, trainer: Trainer, method: Distiller) -> dict[str, Any] | None:
        record = method.teacher_record()
        if record is None and "teacher" not in method.held_names():
            return None
        record = record or {}
        data: LightningDataModule = trainer.datamodule  # type: ignore[attr-defined]
        scores: dict[str, float] = {}
        loader = None
        if trainer.enable_validation:
            before = random_state()
            with torch.no_grad(), trainer.precision_plugin.val_step_context():
                loader = ValidationBatches(trainer, data.val_dataloader())
                scores = method.score_teacher(loader)
            set_random_state(before)
        # Every process scores its own, equally large share of the images.
        scores = {name: _mean(trainer, value) for name, value in scores.items()}
        reason = None
        if loader is None:
            reason = "this run has no validation"
        elif not scores:
            reason = f"{type(method).__name__} has no score for it on {type(data).__name__}"
        elif loader.stopped:
            reason = "only a part of the validation images was scored"
        elif not same_images(record, validation_images(self.data, data)):
            reason = f"recorded on other images, {record.get('data') or 'see its card'}"
        known = {name: float(v) for name, v in (record.get("scores") or {}).items() if name in scores}
        return {
            "name": record.get("name") or "",
            "scores": scores,
            "recorded": known,
            "compared": bool(known) and reason is None,
            "reason": reason,
        }


def _mean(trainer: Trainer, value: float) -> float:
    number = torch.tensor(float(value), device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(number, reduce_op="mean"))


class ValidationBatches:
    """Validation batches on the method's device, no more of them than the trainer's limit_val_batches."""

    def __init__(self, trainer: Trainer, loader: Any) -> None:
        self.trainer, self.loader = trainer, loader
        count = len(loader) if hasattr(loader, "__len__") else math.inf
        limit = trainer.limit_val_batches
        self.batches = min(
            count, limit if isinstance(limit, int) or math.isinf(count) else int(count * limit)
        )
        self.stopped = False

    def __iter__(self) -> Iterator[Any]:
        for place, batch in enumerate(self.loader):
            if place >= self.batches:
                self.stopped = True
                return
            yield self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def line(result: Mapping[str, Any]) -> str:
    """The result of a gate in one line."""
    name = f"teacher {result['name']}".strip()
    if not result["scores"]:
        return f"{name}: not scored ({result['reason']})"
    parts = []
    for score, value in result["scores"].items():
        known = result["recorded"].get(score)
        parts.append(f"{score} {value:.4f} ({'unrecorded' if known is None else f'recorded {known:.4f}'})")
    unlike = f"; not compared: {result['reason']}" if result["recorded"] and not result["compared"] else ""
    return f"{name}: {', '.join(parts)}{unlike}"


def refuse(result: Mapping[str, Any], tolerance: float) -> None:
    """Raises UserError when a compared score is below its record by more than the tolerance, or no number."""
    for score, value in result["scores"].items():
        known = result["recorded"].get(score)
        if result["compared"] and known is not None and not value >= known - tolerance:
            raise UserError(
                f"teacher {result['name']}: {score} {value:.4f}, recorded {known:.4f}; likely another "
                "normalisation, image size or class order than it was trained with. Mend that, or train all "
                "the same with --no-gate (or a larger --gate-tolerance)"
            )


def validation_images(section: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """What tells on which images a score was measured, for the card and to compare with one.

    Class path of the data module, its options that choose the images, and its `val_fingerprint()` if any.
    """
    given = section.get("init_args") or {}
    found = {"class_path": section["class_path"], **{key: given[key] for key in WHICH if key in given}}
    if hasattr(data, "val_fingerprint"):
        found["fingerprint"] = data.val_fingerprint()
    return found


def same_images(record: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether a teacher's record holds nothing that speaks against its being measured on these images."""
    known: dict[str, Any] = dict(record.get("validation") or {})
    if not known and record.get("data"):
        known = {"class_path": record["data"]}
    if "fingerprint" in known and "fingerprint" in found:
        return known["fingerprint"] == found["fingerprint"]
    return all(known[key] == found[key] for key in known if key in found)
