"""ClassifierDistiller: what the methods share that distil one image classifier into another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd.errors import UserError
from vlkd.methods.base import Distiller, Optimizer, Schedule, recorded
from vlkd.methods.terms import Pair, Term, build_term
from vlkd.metrics import accuracy, class_hits, shot_groups
from vlkd.models.classifier import Classifier, Outputs, build_classifier, load_classifier


class ClassifierDistiller(Distiller):
    """A student classifier learns from labels and from the outputs of a frozen teacher.

    Args:
        student: CIFAR family name ("resnet8x4"), "timm:NAME", "package.module:Class", or a Classifier.
        teacher: bundle file, run folder or zoo name; with `teacher_weights` or `teacher_arguments` a name as
        for the student; None to train the student alone (how a teacher is made).
        num_classes: classes of the student; None takes the teacher's.
        weights: factor of each loss; the keys say which losses are used (`ce`, and see vlkd.methods.terms).
        options: further arguments of a loss by its name, for example {kd: {temperature: 2}}.
        warmup: epochs over which a loss' factor rises linearly from zero, by name.
        student_arguments: arguments of the student's constructor.
        teacher_weights: weights file of a teacher that is given by name.
        teacher_arguments: arguments of the teacher's constructor.
        student_taps: module paths whose outputs the losses between maps compare, shallow first.
        teacher_taps: the same in the teacher, in the same order.
        image_size: pixels that a student given by name works at; None is its own (32 for CIFAR networks).
        lr: see Distiller.
        weight_decay: see Distiller.
        warmup_steps: see Distiller.
        schedule: see Distiller.
        optimizer: see Distiller.
        nesterov: see Distiller.
        milestones: see Distiller.
    """

    def __init__(
        self,
        student: str | Classifier = "resnet8",
        teacher: str | None = None,
        num_classes: int | None = None,
        weights: dict[str, float] | None = None,
        options: dict[str, dict[str, Any]] | None = None,
        warmup: dict[str, float] | None = None,
        student_arguments: dict[str, Any] | None = None,
        teacher_weights: str | None = None,
        teacher_arguments: dict[str, Any] | None = None,
        student_taps: Sequence[str] = (),
        teacher_taps: Sequence[str] = (),
        image_size: int | None = None,
        lr: float = 0.05,
        weight_decay: float = 5e-4,
        warmup_steps: int = 0,
        schedule: Schedule = "step",
        optimizer: Optimizer = "sgd",
        nesterov: bool = True,
        milestones: Sequence[float] = (0.625, 0.75, 0.875),
    ) -> None:
        chosen = weights or {"ce": 1.0}
        super().__init__(
            chosen, lr, weight_decay, warmup_steps, 1.0, schedule, optimizer, nesterov, milestones
        )
        self.warmup = dict(warmup or {})
        self.recorded_protocol: dict[str, Any] | None = None
        self.teacher_card: dict[str, Any] = {}
        if teacher is not None:
            self._hold_teacher(teacher, num_classes, teacher_weights, teacher_arguments)
            num_classes = num_classes or self.teacher.num_classes
        if isinstance(student, str):
            if num_classes is None:
                raise UserError("model.num_classes: give it, as there is no teacher to take it from")
            student = build_classifier(student, num_classes, image_size, arguments=student_arguments)
        self.student = student
        if self.has_teacher and self.teacher.num_classes != student.num_classes:
            raise UserError(
                f"model.teacher {teacher}: has {self.teacher.num_classes} classes, the student "
                f"{student.num_classes}; both must have the data's"
            )
        self.student_taps, self.teacher_taps = tuple(student_taps), tuple(teacher_taps)
        self.terms: Any = nn.ModuleDict(self._build_terms(options or {}))

    # --- networks ------------------------------------------------------------------------------------------

    def _hold_teacher(self, name: str, num_classes: int | None, weights: str | None, arguments: Any) -> None:
        if weights is None and arguments is None:
            classifier, self.teacher_card = load_classifier(name)
        elif num_classes is None:
            raise UserError(f"model.num_classes: give it; the teacher {name} has no card that tells")
        else:
            classifier = build_classifier(name, num_classes, None, weights, arguments)
        self.hold("teacher", classifier)

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher at all."""
        return "teacher" in self._held

    @property
    def teacher(self) -> Classifier:
        """The frozen teacher."""
        return self.held("teacher")

    def teacher_outputs(self, images: Tensor) -> Outputs:
        """What the teacher says of images01 (B,3,H,W), without gradients."""
        with torch.no_grad():
            return self.teacher.outputs(images, self.teacher_taps)

    def shipped(self) -> Classifier:
        """The classifier that is scored and goes into the bundle."""
        return self.student

    # --- losses --------------------------------------------------------------------------------------------

    def _build_terms(self, options: Mapping[str, dict[str, Any]]) -> dict[str, nn.Module]:
        names = [name for name in self.weights if name != "ce"]
        for name in (*options, *self.warmup):
            if name not in self.weights:
                raise UserError(
                    f"model.options/warmup.{name}: no such loss in model.weights {[*self.weights]}"
                )
        for name, epochs in self.warmup.items():
            if epochs <= 0:
                raise UserError(f"model.warmup.{name}={epochs}: expected a number of epochs above 0")
        if "ce" in options:
            raise UserError("model.options.ce: the cross entropy takes no options")
        self._check_taps()
        if not names:
            return {}
        if not self.has_teacher:
            raise UserError(f"model.teacher: missing; the losses {names} need one")
        pair = self._probe()
        return {name: self.build_term(name, pair, dict(options.get(name, {}))) for name in names}

    def build_term(self, name: str, pair: Pair, options: dict[str, Any]) -> Term:
        """The loss called `name`; a method with losses of its own extends this."""
        return build_term(name, pair, options)

    def _check_taps(self) -> None:
        for part, taps in (("student", self.student_taps), ("teacher", self.teacher_taps)):
            if len(set(taps)) < len(taps):
                raise UserError(f"model.{part}_taps: {', '.join(taps)}: each path may stand there once")
        self.student.check_taps(self.student_taps)
        if self.has_teacher:
            self.teacher.check_taps(self.teacher_taps)

    def _probe(self) -> Pair:
        """Outputs of both networks for an empty image: widths and grids for projectors."""
        if len(self.student_taps) != len(self.teacher_taps):
            raise UserError(
                f"model.student_taps has {len(self.student_taps)} paths and model.teacher_taps "
                f"{len(self.teacher_taps)}; they are compared pairwise"
            )
        images = torch.zeros(2, 3, *self.student.spec.size)
        training = self.student.training
        self.student.eval()
        with torch.no_grad():
            pair = Pair(self.student.outputs(images, self.student_taps), self.teacher_outputs(images))
        self.student.train(training)
        return pair

    def setup(self, stage: str) -> None:
        """Compare the class lists of data, student and teacher; make what depends on the data's size.

        Raises UserError when they differ: a teacher with other classes, or in other order, teaches nonsense.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        names = tuple(getattr(data, "names", ()))
        if names and len(names) != self.student.num_classes:
            raise UserError(f"the data have {len(names)} classes, the student {self.student.num_classes}")
        known = tuple(self.teacher_card.get("class_names", ()))
        if names and known and names != known:
            k = next((k for k, pair in enumerate(zip(names, known, strict=False)) if pair[0] != pair[1]), 0)
            raise UserError(
                f"model.teacher {self.teacher_card.get('name')}: its class {k} is {known[k]!r}, that of the "
                f"data is {names[k]!r}; the class lists must agree in order"
            )
        self.class_names = names
        if stage == "fit":
            self._check_labels(data)
            if "crd" in self.terms and self.trainer.world_size > 1:
                raise UserError("model.weights.crd: its memory belongs to one process; train on one device")
            device = self.trainer.strategy.root_device
            for module in self._held.values():
                module.to(device)
            for term in self.terms.values():
                term.prepare(data, device)

    @property
    def uses_labels(self) -> list[str]:
        """Names of the losses that read labels."""
        return [
            name
            for name in self.weights
            if name == "ce" or (name in self.terms and self.terms[name].reads_labels)
        ]

    def _check_labels(self, data: Any) -> None:
        labels = getattr(data, "train_labels", None)
        if labels is None:
            labels = getattr(getattr(data, "train_dataset", None), "labels", None)
        if not self.uses_labels or labels is None or not len(labels):
            return
        low, high, count = int(labels.min()), int(labels.max()), self.student.num_classes
        if low < 0 or high >= count:
            raise UserError(
                f"{type(data).__name__}: training labels from {low} to {high}, expected 0 to {count - 1}; "
                f"read by {', '.join(self.uses_labels)}"
            )

    def compute_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`ce` and the terms of `weights`, scalars, unweighted."""
        images, labels = batch["images"], batch["labels"]
        if not self.terms:
            return {"ce": F.cross_entropy(self.student(images).float(), labels)}
        student = self.student.outputs(images, self.student_taps)
        pair = Pair(student, self.teacher_outputs(images), labels, batch.get("indices"), self.progress)
        losses = {name: term(pair) for name, term in self.terms.items()}
        if "ce" in self.weights:
            losses["ce"] = F.cross_entropy(student.logits.float(), labels)
        return losses

    def weighted_sum(self, losses: Mapping[str, Tensor]) -> Tensor:
        """As in Distiller, with the warm-up of single losses: min(1, epoch / warmup)."""
        warmed = {
            name: loss * min(1.0, self.current_epoch / self.warmup[name]) if name in self.warmup else loss
            for name, loss in losses.items()
        }
        return super().weighted_sum(warmed)

    @property
    def progress(self) -> float:
        """Part of the run that is done, 0 to 1."""
        return min(1.0, self.global_step / max(1.0, self.trainer.estimated_stepping_batches))

    def parameter_groups(self) -> dict[str, Any]:
        """Student, and the projectors of the losses, which do not travel with it."""
        return {"student": self.student.parameters(), "terms": self.terms.parameters()}

    # --- scores --------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self._hits: Tensor | int = 0

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Count images and hits of each class."""
        logits = self.shipped()(batch["images"])
        labels = batch["labels"].masked_fill(self.repeated(batch_idx, len(logits)).to(logits.device), -1)
        self._hits = self._hits + class_hits(logits, labels, logits.shape[1])

    def on_validation_epoch_end(self) -> None:
        """Log accuracies over all processes; many, medium, few where training is long-tailed."""
        assert isinstance(self._hits, Tensor)
        hits = self.sum_over_processes(self._hits)
        scores = {"accuracy": accuracy(hits), "accuracy_top5": accuracy(hits, 2)}
        counts = getattr(self.trainer.datamodule, "class_counts", None)  # type: ignore[attr-defined]
        if counts is not None and int(counts.max()) > 2 * max(1, int(counts.min())):
            groups = shot_groups(hits, counts).items()
            scores |= {f"accuracy_{name}": value for name, value in groups if not math.isnan(value)}
        self.log_scores(scores)

    @property
    def protocol(self) -> dict[str, Any]:
        """What a reader must know to compare the scores; of a bundle, what its card says."""
        if self.recorded_protocol:
            return self.recorded_protocol
        return {**super().protocol, "labels": "used in training" if self.uses_labels else "not used"}

    def teacher_record(self) -> dict[str, Any] | None:
        """The teacher's card, as far as the gate needs it."""
        return recorded(self.teacher_card) if self.teacher_card else None

    @torch.no_grad()
    def score_teacher(self, loader: Any) -> dict[str, float]:
        """The teacher's accuracy on validation batches of all processes."""
        self._place_held()
        hits: Tensor | int = 0
        for number, batch in enumerate(loader):
            images, labels = batch["images"].to(self.device), batch["labels"].to(self.device)
            repeated = self.repeated(number, len(labels), getattr(loader, "loader", loader))
            labels = labels.masked_fill(repeated.to(self.device), -1)
            hits = hits + class_hits(self.teacher(images), labels, self.teacher.num_classes)
        assert isinstance(hits, Tensor)
        return {"accuracy": accuracy(self.sum_over_processes(hits))}

    def describe(self, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Widths and grids of student and teacher on this batch, for the dry run's table."""
        images = batch["images"]
        with torch.no_grad():
            rows = [_row("student", self.student, self.student.outputs(images, self.student_taps))]
            if self.has_teacher:
                rows.append(_row("teacher", self.teacher, self.teacher_outputs(images)))
        return rows

    # --- bundle --------------------------------------------------------------------------------------------

    def bundle(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The shipped classifier."""
        classifier = self.shipped()
        card = {
            "kind": "classifier",
            "architecture": classifier.architecture,
            "input_spec": classifier.spec.to_dict(),
            "class_names": list(self.class_names),
        }
        return card, {f"student.{name}": tensor for name, tensor in classifier.state_dict().items()}

    @classmethod
    def from_bundle(cls, path: str | Path) -> Distiller:
        """The classifier of a bundle, ready to be scored; the teacher is not needed."""
        classifier, card = load_classifier(str(path))
        method = ClassifierDistiller(student=classifier)
        method.recorded_protocol = card.get("protocol")
        return method


def _row(part: str, classifier: Classifier, outputs: Outputs) -> dict[str, Any]:
    row = {
        "part": part,
        "network": classifier.architecture.get("name", type(classifier.network).__name__),
        "input": "x".join(map(str, classifier.spec.size)),
        "pooled": outputs.pooled.shape[1],
        "classes": outputs.logits.shape[1],
    }
    if outputs.map is not None:
        row["map"] = "x".join(map(str, outputs.map.shape[1:]))
    if outputs.tokens is not None:
        row["tokens"] = "x".join(map(str, outputs.tokens.shape[1:]))
    return row | {path: "x".join(map(str, tap.shape[1:])) for path, tap in outputs.taps.items()}
