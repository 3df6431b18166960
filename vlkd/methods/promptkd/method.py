"""PromptKD, stage 2: a small image tower learns a teacher's answers over stored class vectors (CVPR 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlkd.engine.bundle import load_bundle, read_card
from vlkd.errors import UserError
from vlkd.losses import kd
from vlkd.methods.base import Distiller, Optimizer, recorded
from vlkd.methods.promptkd.base import Choose, PromptDistiller
from vlkd.methods.promptkd.features import TeacherFeatures
from vlkd.methods.promptkd.scores import SplitHits
from vlkd.methods.promptkd.source import Source, class_vectors_of, load_source, text_of
from vlkd.methods.promptkd.student import (
    Trained,
    build_student,
    check_options,
    from_plain,
    frozen_identity,
    frozen_tensors,
    has_batch_norm,
    tower_row,
)
from vlkd.models.open_classifier import (
    OpenClassifier,
    ProjectorSize,
    class_logits,
    open_classifier_from_card,
)
from vlkd.models.prompted import PromptSize, text_encoder
from vlkd.text import ClassVectors


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, kd_weight: float = 1000.0
) -> Tensor:
    """kd_weight T^2 KL(teacher || student), its sum divided by B x K: logits (B,K) -> scalar.

    The weight of the mean over the batch is kd_weight / K. UserError when the shapes differ.
    Source: zhengli97/PromptKD@ec244f7.
    """
    return kd_weight * kd(student_logits, teacher_logits, temperature, reduction="mean")


class PromptKD(PromptDistiller):
    """A student learns, from unlabelled images, a teacher's answers over class vectors that are made once.

    Losses: `kd`, and `ce` on labels (of base classes alone where the data has novel ones). The student's text
    half is never used.

    Args:
        student: CLIP model whose image tower learns (see build_clip), or a network: "timm:NAME", a CIFAR
        family name, "package.module:Class".
        student_pretrained: tag or file, with an open_clip architecture; weights file of another network.
        student_arguments: arguments of another network's constructor.
        image_size: pixels that such a network works at.
        teacher: bundle of stage 1 (prompts), of a CLIP model or of an open classifier; run folder; zoo or
        open_clip name. null: no teacher, `ce` alone, with class_vectors.
        teacher_pretrained: tag or file, with an open_clip architecture.
        class_vectors: file of stored class vectors (ClassVectors.save) in place of the teacher's; they must
        be of its encoder.
        template_set: prompts of the class vectors; null for the bare name, or for those of stage 1. A teacher
        that learned prompts for its text half takes none.
        prompts: visual prompts of the student; null for towers that take none.
        projector: from the student's width to that of the class vectors; null only where they agree.
        trained: prompts (and the projector), the projector alone, or all.
        weights: factors of kd and ce; null for kd 1000, or what weights_of has.
        weights_of: weights for single data sets, by the name that the data module has as `dataset`.
        reduction: of kd: "mean" over batch and classes (the published weights), or "batchmean".
        temperature: of kd.
        cache_teacher: store the teacher's vectors of all crops before the first step; needs data.views.
        micro_batch: images that go through the student's tower at once, with the result and the gradients of
        the whole batch; null for all.
        ship_text: put the teacher's text half into the bundle, so that new names can be asked for.
        lr: see PromptDistiller.
        weight_decay: see PromptDistiller.
        backbone_lr_scale: of the tower's own weights, where they are trained.
        warmup_epochs: see PromptDistiller.
        warmup_lr: see PromptDistiller.
        optimizer: see PromptDistiller.
        choose: see PromptDistiller.
    """

    _table: Tensor

    def __init__(
        self,
        student: str | OpenClassifier = "ViT-B-16",
        student_pretrained: str | None = None,
        student_arguments: dict[str, Any] | None = None,
        image_size: int | None = None,
        teacher: str | None = None,
        teacher_pretrained: str | None = None,
        class_vectors: str | None = None,
        template_set: str | None = None,
        prompts: PromptSize | None = PromptSize(),  # noqa: B008 (frozen)
        projector: ProjectorSize | None = ProjectorSize(),  # noqa: B008
        trained: Trained = "prompts",
        weights: dict[str, float] | None = None,
        weights_of: dict[str, dict[str, float]] | None = None,
        reduction: Literal["mean", "batchmean"] = "mean",
        temperature: float = 1.0,
        cache_teacher: bool = False,
        micro_batch: int | None = None,
        ship_text: bool = True,
        lr: float = 0.005,
        weight_decay: float = 5e-4,
        backbone_lr_scale: float = 1.0,
        warmup_epochs: int = 1,
        warmup_lr: float = 1e-5,
        optimizer: Optimizer = "sgd",
        choose: Choose = "last",
    ) -> None:
        arguments = dict(locals())
        chosen = {"kd": 1000.0} if weights is None else weights
        super().__init__(
            chosen, lr, weight_decay, backbone_lr_scale, warmup_epochs, warmup_lr, optimizer, choose
        )
        check_options(arguments)
        # What a config says for all data sets counts for those with weights of their own too.
        self.weights_of = dict(weights_of or {}) if weights is None else {}
        self.teacher: Source | None = load_source(teacher, teacher_pretrained) if teacher else None
        if self.teacher:
            self.hold("teacher", self.teacher.model)
        self.given = ClassVectors.load(class_vectors) if class_vectors else None
        self.template_set, self.reduction, self.temperature = template_set, reduction, temperature
        self.cache_teacher, self.micro_batch, self.ship_text = cache_teacher, micro_batch, ship_text
        self.trained = trained
        self.features: TeacherFeatures | None = None
        self.vectors: ClassVectors | None = None
        ready = isinstance(student, OpenClassifier)
        self.student: OpenClassifier = student if ready else build_student(arguments, self._width())  # type: ignore[assignment]

    @classmethod
    def check_before_teacher(cls, arguments: Mapping[str, Any]) -> None:
        """Values, files and the student itself, before stage 1 spends its time."""
        given = from_plain(arguments)
        check_options(given)
        if given["class_vectors"]:
            ClassVectors.load(given["class_vectors"])
        build_student(given, None)

    def _width(self) -> int:
        """Of the class vectors."""
        if self.given:
            return self.given.width
        if not self.teacher:
            raise UserError("model.teacher: missing; give a teacher, or class_vectors and weights: {ce: 1.0}")
        model = self.teacher.model
        return model.width if isinstance(model, OpenClassifier) else model.spec.width

    # --- data ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Class vectors of the data's names, keyed; what the teacher says of stored crops.

        Raises UserError for class vectors of another encoder or without one of the names, and for batches
        whose BatchNorm would not be that of one process.
        """
        super().setup(stage)
        self.vectors = self._class_vectors()
        self.register_buffer("_table", self.vectors.vectors, persistent=False)
        if stage != "fit":
            return
        self._check_batches()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.weights = self.weights_of.get(getattr(data, "dataset", ""), self.weights)
        if "ce" in self.weights:
            self._check_labels(data)
        if "kd" in self.weights and not self.teacher:
            raise UserError("model.weights.kd: needs a teacher; set model.teacher, or weights: {ce: 1.0}")
        if self.cache_teacher and not data.views:
            raise UserError("model.cache_teacher: crops must come again; set data.views, for example to 4")

    def _class_vectors(self) -> ClassVectors:
        device = self.trainer.strategy.root_device
        found = class_vectors_of(self.teacher, self.given, self.names, self.template_set, device)
        if self.given and self.given.names != self.names and self.trainer.is_global_zero:
            known = len(self.given)
            print(f"class vectors: {len(self.names)} of {known} names, in the data's order", flush=True)
        return found

    def _check_batches(self) -> None:
        parts = self.trainer.accumulate_grad_batches
        tower = self.student.tower if self.trained == "all" else None
        if parts > 1 and has_batch_norm(self.student.projector, tower):
            raise UserError(
                f"trainer.accumulate_grad_batches={parts}: BatchNorm would see one part at a time; set "
                "data.batch_size to the whole batch and model.micro_batch to a part (same result), or "
                "model.projector.layers=1"
            )
        if self.micro_batch and has_batch_norm(tower):
            raise UserError("model.micro_batch: the tower has BatchNorm that is trained; set it to null")

    def _check_labels(self, data: Any) -> None:
        seen = {int(k) for k in data.train_labels.unique()}
        wrong = sorted(k for k in seen if not 0 <= k < len(self.names) or k in self.novel)
        if wrong:
            raise UserError(
                f"model.weights.ce: training images have the label {wrong[0]}, which is no base class; set "
                "data.classes=base"
            )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """As in Distiller; before the first one, the teacher looks at all crops where they are stored."""
        # Not in setup: the gate and the dry run come first, and a wrong teacher would have looked for hours.
        if self.cache_teacher and self.teacher and self.features is None:
            self.features = self._stored_features()
        return super().training_step(batch, batch_idx)

    def _stored_features(self) -> TeacherFeatures:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        model = self.held("teacher")
        if self.trainer.local_rank == 0:
            return TeacherFeatures.build(model, data, self.device)
        return TeacherFeatures.wait(TeacherFeatures.paths(model, data))

    # --- losses --------------------------------------------------------------------------------------------

    def compute_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """kd over all classes; ce over the base classes (all, where none is novel)."""
        # The teacher first: its pass then does not come on top of what the student keeps for its gradients.
        answers = self.teacher_logits(batch) if "kd" in self.weights else None
        unit = self.student.project(self._embedded(batch["images"]))
        logits = class_logits(unit, self._table, self.student.logit_scale)
        losses = {}
        if answers is not None:
            losses["kd"] = kd(logits, answers, self.temperature, self.reduction)
        if "ce" in self.weights:
            novel = torch.tensor(sorted(self.novel), dtype=torch.long, device=logits.device)
            losses["ce"] = F.cross_entropy(logits.index_fill(1, novel, float("-inf")), batch["labels"])
        return losses

    def _embedded(self, images01: Tensor) -> Tensor:
        """What the student's tower gives (B,D'); in parts, computed again for their gradients."""
        if self.micro_batch is None or len(images01) <= self.micro_batch or not torch.is_grad_enabled():
            return self.student.tower(images01)
        parts = images01.split(self.micro_batch)
        return torch.cat([checkpoint(self.student.tower, part, use_reentrant=False) for part in parts])

    @torch.no_grad()
    def teacher_logits(self, batch: dict[str, Tensor]) -> Tensor:
        """The teacher's logits (B,K) over the same class vectors, of the same crops."""
        model = self.held("teacher")
        if self.features is not None and "views" in batch:
            unit = self.features.rows(batch["indices"], batch["views"]).to(self._table.device)
        else:
            unit = model.encode_image(batch["images"])
        return class_logits(unit, self._table, model.logit_scale)

    def parameter_groups(self) -> dict[str, Any]:
        """Projector and prompts, and the tower's own weights as "backbone"."""
        groups: dict[str, Any] = {"new": [], "backbone": []}
        for name, parameter in self.student.named_parameters():
            own = name.startswith("tower.") and ".prompts." not in name
            groups["backbone" if own else "new"].append(parameter)
        return groups

    def learned(self) -> dict[str, Tensor]:
        """What is trained, and the running statistics."""
        kept = {n for n, p in self.student.named_parameters() if p.requires_grad}
        kept |= {n for n, _ in self.student.named_buffers()}
        return {name: x for name, x in self.student.state_dict().items() if name in kept}

    def describe(self, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Inputs and widths of both towers, and what the weight of kd amounts to."""
        assert self.vectors is not None
        models = {"student": self.student} | ({"teacher": self.teacher.model} if self.teacher else {})
        rows = [tower_row(part, m.spec, self.vectors.width, m.logit_scale) for part, m in models.items()]
        rows.append({"part": "class vectors", "width": self.vectors.width, "classes": len(self.vectors)})
        if "kd" in self.weights:
            weight = self.weights["kd"] / (len(self.vectors) if self.reduction == "mean" else 1)
            rows.append({"part": "kd", "classes": len(self.vectors), "batch-mean weight": round(weight, 4)})
        return rows

    # --- scores --------------------------------------------------------------------------------------------

    def logits(self, images01: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] -> the student's logits (B,K)."""
        return self.student(images01, self._table)

    @property
    def protocol(self) -> dict[str, Any]:
        """As in the base; labels, teacher, class vectors."""
        if self.recorded_protocol:
            return self.recorded_protocol
        assert self.vectors is not None
        card = self.teacher.card if self.teacher else {}
        found = {
            **super().protocol,
            "labels": "used in training" if "ce" in self.weights else "not used",
            "teacher": card.get("name", self.vectors.encoder) if self.teacher else "none",
            "class vectors": self.vectors.encoder,
        }
        before = card.get("protocol", {})
        if "images of training" in before:
            found["teacher's images"] = f"{before['images of training']}, labels {before.get('labels')}"
        return found

    def teacher_record(self) -> dict[str, Any] | None:
        """The teacher's card, as far as the gate needs it."""
        return recorded(self.teacher.card) if self.teacher and self.teacher.card else None

    def score_teacher(self, loader: Any) -> dict[str, float]:
        """The teacher's scores on validation batches of all processes, over the class vectors of this run."""
        self._place_held()
        model, hits = self.held("teacher"), SplitHits(len(self.names), self.novel)
        table, whole = self._table.to(self.device), getattr(loader, "loader", loader)
        for number, batch in enumerate(loader):
            images, labels = batch["images"].to(self.device), batch["labels"].to(self.device)
            repeated = self.repeated(number, len(labels), whole).to(self.device)
            logits = class_logits(model.encode_image(images), table, model.logit_scale)
            hits.update(logits, labels.masked_fill(repeated, -1))
        return hits.scores(self.sum_over_processes)

    # --- checkpoint ----------------------------------------------------------------------------------------

    @cached_property
    def _frozen(self) -> str:
        return frozen_identity(self.student, self.trained)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A frozen tower is not stored again and again, its hash is."""
        super().on_save_checkpoint(checkpoint)
        for name in frozen_tensors(self.student, self.trained):
            checkpoint["state_dict"].pop(f"student.{name}", None)
        checkpoint["frozen"] = self._frozen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Inverse of on_save_checkpoint. Raises UserError where the tower has other weights by now."""
        super().on_load_checkpoint(checkpoint)
        if checkpoint.get("frozen") != self._frozen:
            raise UserError(
                "model.student: its weights are not those the run began with; put them back, or begin anew"
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As of nn.Module; what a checkpoint leaves out stays as it is."""
        kept = {f"student.{name}": x for name, x in frozen_tensors(self.student, self.trained).items()}
        return super().load_state_dict({**kept, **state_dict}, *args, **kwargs)

    # --- bundle --------------------------------------------------------------------------------------------

    def bundle(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Image tower, prompts, projector, class vectors; where it is shipped, the teacher's text half."""
        assert self.vectors is not None
        card: dict[str, Any] = {
            "kind": "open_classifier",
            "architecture": self.student.architecture,
            "input_spec": self.student.spec.to_dict(),
            "class_names": list(self.vectors.names),
            "novel": sorted(self.names[k] for k in self.novel),
            "class_vectors": self.vectors.facts(),
        }
        tensors = {f"student.{name}": x for name, x in self.student.state_dict().items()}
        tensors["class_vectors"] = self.vectors.vectors
        text = text_of(self.teacher) if self.ship_text and self.teacher else None
        if text is not None:
            card["text"] = text[0]
            tensors |= text[1]
        return card, tensors

    @classmethod
    def from_bundle(cls, path: str | Path) -> Distiller:
        """The student of a bundle, ready to be scored; the teacher is not needed. Also prompts of stage 1."""
        if read_card(path)["kind"] == "prompts":
            from vlkd.methods.promptkd.teacher import PromptTeacher

            return PromptTeacher.from_bundle(path)
        card, tensors = load_bundle(path)
        method = _Scored(open_classifier_from_card(card, tensors, str(path)), trained="all")
        method.given = ClassVectors.of_bundle(card, tensors)
        if "text" in card:
            method.text = text_encoder(card["text"], tensors, str(path))
        method.recorded_protocol = card.get("protocol")
        return method


class _Scored(PromptKD):
    """A student from its bundle: names that its class vectors lack are encoded where it has a text half."""

    text: Any = None

    def _class_vectors(self) -> ClassVectors:
        assert self.given is not None
        if self.text is None or set(self.names) <= set(self.given.names):
            return super()._class_vectors()
        return ClassVectors.build(self.names, self.text, self.given.templates)
