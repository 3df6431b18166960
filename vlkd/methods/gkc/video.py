"""GKC on clips: a student whose query i is object i through a video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlkd.engine.bundle import load_bundle
from vlkd.engine.hub import resolve
from vlkd.errors import UserError
from vlkd.methods.gkc.clips import TrackSteadiness, match_clips
from vlkd.methods.gkc.criterion import Matches
from vlkd.methods.gkc.method import GKC, valid_mask
from vlkd.metrics import ConsistencyMetric
from vlkd.models.segmentor import Prediction, Segmentor

_WINDOW = 8
_FREE = ("backbone", "size", "memory")  # arguments in which a student may differ from what it starts from


class VideoGKC(GKC):
    """GKC with one assignment of queries to objects for a whole clip (arXiv 2303.09181; 2112.10764).

    Batches are those of vlkd.data.VideoClipData. Losses, their names and weights are GKC's, over all frames.
    Scores are of whole videos, frame by frame, each frame with the memory of the one before.

    Args:
        student: the network that is trained; with `memory: true` its queries carry on from frame to frame.
        init: bundle of an image student to start from (name in the zoo or file); None starts anew.
        kwargs: see GKC.
    """

    def __init__(self, student: Segmentor, init: str | None = None, **kwargs: Any) -> None:
        if init is not None:
            start_from(student, init)
        super().__init__(student, **kwargs)

    @property
    def protocol(self) -> dict[str, Any]:
        """Adds how the frames of a video are linked."""
        linked = "queries carry on from the frame before" if self._remembers else "each frame on its own"
        return {**super().protocol, "frames": linked}

    @property
    def _remembers(self) -> bool:
        return bool(self.student.arguments["memory"])

    def _levels(self, batch: dict[str, Any]) -> list[Prediction]:
        return self.student.clip(batch["images"], batch["frames"], valid_mask(batch))

    def _matched(
        self, logits: Tensor, prediction: Prediction, targets: list[dict[str, Any]], count: float
    ) -> tuple[Matches, dict[str, Tensor]]:
        return match_clips(self.criterion, logits, prediction, targets, count)

    # --- scores --------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Empty counts."""
        super().on_validation_epoch_start()
        void = self.trainer.datamodule.void  # type: ignore[attr-defined]
        self.consistency = ConsistencyMetric([_WINDOW], void=void, sync_on_compute=False)
        self.steadiness = TrackSteadiness()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Label one video frame by frame."""
        labels: list[Tensor] = []
        masks: list[Tensor] = []
        memory: Tensor | None = None
        for t in range(batch["frames"]):
            frame = {key: batch[key][t : t + 1] for key in ("images", "sizes", "semantic")}
            prediction = self.student(frame["images"], memory=memory)[-1]
            memory = prediction.memory if self._remembers else None
            labels += self.evaluation.update(self.student, prediction, frame)
            masks.append(prediction.mask_logits)
        if bool(self.repeated(batch_idx, 1)):
            return
        height, width = labels[0].shape
        self.consistency.update(batch["semantic"][:, :height, :width], torch.stack(labels))
        isthing = torch.tensor(self.trainer.datamodule.isthing, device=self.device)  # type: ignore[attr-defined]
        self.steadiness.update(torch.cat(masks), batch["targets"], isthing)

    def on_validation_epoch_end(self) -> None:
        """mIoU as GKC, VC8 where a video is long enough, and how often a thing keeps its query."""
        scores = self.evaluation.scores(self.sum_over_processes)
        for name in ("total", "correct", "counted", "correct_counted"):
            setattr(self.consistency, name, self.sum_over_processes(getattr(self.consistency, name)).cpu())
        if int(self.consistency.counted):
            scores |= self.consistency.compute()
        same, pairs = self.sum_over_processes(self.steadiness.counts).tolist()
        if pairs:
            scores["same_query"] = same / pairs
        self.log_scores(scores)


def start_from(student: Segmentor, name: str) -> None:
    """Copies the weights of an image student's bundle; what carries the queries on keeps its own.

    Raises UserError for a bundle of another kind and for a student of another architecture.
    """
    path = resolve(name)
    card, tensors = load_bundle(path)
    if card.get("kind") != "segmentor":
        raise UserError(f"model.init={name}: the bundle holds a {card.get('kind')!r}: expected a segmentor")
    for key, value in student.arguments.items():
        if key not in _FREE and card["architecture"].get(key, value) != value:
            raise UserError(
                f"model.student.{key}={value}: {name} has {card['architecture'][key]}; give the student the "
                "same arguments as model.init, but for memory"
            )
    weights = {k.removeprefix("student."): v for k, v in tensors.items() if k.startswith("student.")}
    fresh = {k: v for k, v in student.state_dict().items() if k.startswith("decoder.propagation.")}
    try:
        student.load_state_dict({**fresh, **weights})
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(f"model.init={name}: the weights do not fit model.student: {detail}") from None
