"""KD3: a student of unlabelled images from elsewhere, under its teacher's own classifier (ICCV 2023)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from vlkd import losses
from vlkd.errors import UserError
from vlkd.methods.base import Optimizer, Schedule, learning_rate_factor
from vlkd.methods.classifier import ClassifierDistiller
from vlkd.methods.kd3.dfnd import NoiseAdaptation, self_cross_entropy
from vlkd.methods.kd3.mix import (
    ContrastOptions,
    Embedding,
    draw_mix,
    find_weighting,
    mix_distribution,
    weighted_feature_loss,
)
from vlkd.methods.kd3.record import TABLE, draw_selection, write_selection
from vlkd.methods.kd3.selection import SelectionOptions, alpha, confidence, confident, most_confident
from vlkd.models.classifier import Classifier
from vlkd.models.shared_head import SharedHead, share_head

Objective = Literal["kd3", "dfnd", "kd"]
_QUIET, _DRAW = 15.0, 60.0  # seconds between lines on the terminal, and between pictures


class KD3(ClassifierDistiller):
    """Distillation between different distributions, and the baselines DFND and KD on selected images.

    Loss names: with the objective kd3 feature, contrast_student, and as configured contrast_teacher,
    contrast_cross, kd (without the shared head); dfnd has kd and noise; kd has kd.

    Args:
        student: see ClassifierDistiller; with the objective kd3 its backbone.
        teacher: see ClassifierDistiller.
        num_classes: see ClassifierDistiller.
        objective: what is minimised on the images that are kept.
        selection: which images are kept.
        contrast: the contrastive block.
        share_head: whether the student is classified by the teacher's last layer; otherwise by one of its own
        behind the same projector, which then learns by kd.
        weighting: of images in the feature loss: sigmoid_distance, none, or package.module:function.
        factor: by which the projector narrows.
        temperature: of kd.
        teacher_accuracy: as a fraction, for dfnd; None takes it from the teacher's card.
        student_arguments: see ClassifierDistiller.
        teacher_weights: see ClassifierDistiller.
        teacher_arguments: see ClassifierDistiller.
        image_size: see ClassifierDistiller.
        lr: see Distiller.
        weight_decay: see Distiller.
        schedule: see Distiller; here the rate changes from epoch to epoch.
        optimizer: see Distiller; sgd has plain momentum here.
        milestones: see Distiller.
    """

    def __init__(
        self,
        student: str | Classifier = "resnet8",
        teacher: str | None = None,
        num_classes: int | None = None,
        objective: Objective = "kd3",
        selection: SelectionOptions | None = None,
        contrast: ContrastOptions | None = None,
        share_head: bool = True,
        weighting: str = "sigmoid_distance",
        factor: int = 2,
        temperature: float = 4.0,
        teacher_accuracy: float | None = None,
        student_arguments: dict[str, Any] | None = None,
        teacher_weights: str | None = None,
        teacher_arguments: dict[str, Any] | None = None,
        image_size: int = 32,
        lr: float = 0.05,
        weight_decay: float = 5e-4,
        schedule: Schedule = "step",
        optimizer: Optimizer = "sgd",
        milestones: Sequence[float] = (0.625, 0.75, 0.875),
    ) -> None:
        if teacher is None:
            raise UserError("model.teacher: missing; all that the student learns comes from it")
        contrast = contrast or ContrastOptions()
        super().__init__(
            student,
            teacher,
            num_classes,
            _weights(objective, contrast, share_head),
            student_arguments=student_arguments,
            teacher_weights=teacher_weights,
            teacher_arguments=teacher_arguments,
            image_size=image_size,
            lr=lr,
            weight_decay=weight_decay,
            schedule=schedule,
            optimizer=optimizer,
            nesterov=False,
            milestones=milestones,
        )
        self.objective, self.contrast = objective, contrast
        self.selection = selection or SelectionOptions()
        self.weighting, self.temperature = find_weighting(weighting), temperature
        self.parts = nn.ModuleDict()
        if objective == "kd3":
            self._build_kd3(factor, share_head)
        elif objective == "dfnd":
            accuracy = teacher_accuracy
            if accuracy is None:
                accuracy = self.teacher_card.get("scores", {}).get("accuracy")
            if accuracy is None:
                raise UserError(f"model.teacher_accuracy: give it; the card of {teacher} does not tell")
            self.parts["noise"] = NoiseAdaptation(self.student.num_classes, accuracy)
        self._kept: Tensor | None = None
        self._kept_for = 0  # epoch that the choice was made for, counted from 1
        self._answers: dict[int, Tensor] = {}
        self._drawn = -_DRAW

    def _build_kd3(self, factor: int, share: bool) -> None:
        contrast = self.contrast
        if contrast.weight:
            self.parts["student_embedding"] = Embedding(self.student.spec.width, contrast.width)
            if contrast.parity or contrast.cross:
                self.parts["teacher_embedding"] = Embedding(self.teacher.spec.width, contrast.width)
        self.student = share_head(self.student, self.teacher, factor, share)

    def _build_terms(self, options: Any) -> dict[str, nn.Module]:
        return {}  # the losses of this method are its own

    def parameter_groups(self) -> dict[str, Any]:
        """The student, and embeddings or noise matrix, which do not travel with it."""
        return {"student": self.student.parameters(), "parts": self.parts.parameters()}

    def configure_optimizers(self) -> Any:
        """As in Distiller, but the rate goes by epochs, because their number of steps changes."""
        optimizer, epochs = self.build_optimizer(), self._epochs
        course = LambdaLR(
            optimizer, lambda epoch: learning_rate_factor(epoch, epochs, 0, self.schedule, self.milestones)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": course, "interval": "epoch"}}

    @property
    def _epochs(self) -> int:
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise UserError("trainer.max_epochs: set it; selection and learning rate go by epochs")
        return epochs

    @property
    def protocol(self) -> dict[str, Any]:
        """Adds what was trained on."""
        return {
            **super().protocol,
            "objective": self.objective,
            "images": f"unlabelled pool, selection {self.selection.mode}",
        }

    # --- losses --------------------------------------------------------------------------------------------

    def compute_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of the objective; labels are never read."""
        images = batch["images"]
        if self.objective == "kd3":
            return self._kd3_losses(images)
        teacher, logits = self.teacher_outputs(images).logits, self.student(images)
        found = {"kd": losses.kd(logits, teacher, self.temperature)}
        if self.objective == "dfnd":
            found["noise"] = self.parts["noise"](logits, teacher.argmax(1))
        return found

    def _kd3_losses(self, images: Tensor) -> dict[str, Tensor]:
        network: SharedHead = self.student.network
        teacher = self.teacher_outputs(images)
        own = network.backbone.outputs(self.student.spec.prepare(images))
        aligned, target, logits = network.projector(own.map, teacher.map, network.head)
        found = {"feature": weighted_feature_loss(aligned, target, logits, teacher.logits, self.weighting)}
        if "kd" in self.weights:
            found["kd"] = losses.kd(logits, teacher.logits, self.temperature)
        if self.contrast.weight:
            found |= self._contrastive_losses(images, own.pooled, teacher.pooled)
        return found

    def _contrastive_losses(self, images: Tensor, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Pooled features (B,D) of the images, against those of their MixDistribution."""
        options, network = self.contrast, self.student.network
        mixed = mix_distribution(images, *draw_mix(len(images), options.concentration, images.device))
        embed = self.parts["student_embedding"]
        mine = embed(student)
        mine_mixed = embed(network.backbone.outputs(self.student.spec.prepare(mixed)).pooled)
        found = {"contrast_student": losses.nt_xent(mine, mine_mixed, options.temperature)}
        if "teacher_embedding" in self.parts:
            embed = self.parts["teacher_embedding"]
            theirs_mixed = embed(self.teacher_outputs(mixed).pooled)
            if options.parity:
                found["contrast_teacher"] = losses.nt_xent(embed(teacher), theirs_mixed, options.temperature)
            if options.cross:
                found["contrast_cross"] = losses.nt_xent(mine, theirs_mixed, options.temperature)
        return found

    # --- selection -----------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """See ClassifierDistiller. Raises UserError for data that cannot be selected from."""
        super().setup(stage)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" and self.selection.mode != "all" and not hasattr(data, "keep"):
            raise UserError(
                f"{type(data).__name__}: selects no images; take vlkd.data.WebData, or selection mode all"
            )

    def on_fit_start(self) -> None:
        """Brings back what a resumed run had kept."""
        super().on_fit_start()
        if self._kept is not None:
            self.trainer.datamodule.keep(self._kept)  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        """Choose images, if a run is resumed where an epoch begins; Lightning may pass over the next hook."""
        super().on_train_start()
        if self.trainer.fit_loop.restarting:
            self._select()

    def on_train_epoch_start(self) -> None:
        """Choose the images of this epoch."""
        self._select()

    def _select(self) -> None:
        epoch, options = self.current_epoch + 1, self.selection
        if options.mode == "all" or epoch == self._kept_for:
            return
        due = options.mode == "kd3" and self.current_epoch % options.every_n_epochs == 0
        if self._kept is not None and not due:
            return
        share = alpha(epoch, self._epochs, options.floor) if options.mode == "kd3" else 1.0
        numbers, confidences, classes = self._judge(share)
        # Every process trains on the same images, whatever its arithmetic says.
        chosen = self.trainer.strategy.broadcast(self._choose(confidences, classes).cpu())
        self._kept, self._kept_for = numbers[chosen], epoch
        self._begin_epoch(self._kept)
        if self.trainer.is_global_zero:
            self._record(epoch, share, classes.cpu(), chosen)

    def _record(self, epoch: int, share: float, classes: Tensor, chosen: Tensor) -> None:
        count = self.student.num_classes
        names = self.class_names or [str(k) for k in range(count)]
        predicted, kept = (torch.bincount(c, minlength=count).tolist() for c in (classes, classes[chosen]))
        write_selection(self._folder, epoch, share, names, predicted, kept)
        if time.monotonic() - self._drawn > _DRAW:
            draw_selection(self._folder)
            self._drawn = time.monotonic()

    def on_train_end(self) -> None:
        """Draws the choices of the whole run."""
        if self.trainer.is_global_zero and (self._folder / TABLE).is_file():
            draw_selection(self._folder)

    @property
    def _folder(self) -> Path:
        return Path(self.trainer.default_root_dir)

    def _choose(self, confidences: Tensor, classes: Tensor) -> Tensor:
        """Ascending indices (M,) of the images to keep, from the confidence (N,) in their class (N,)."""
        options, pool = self.selection, len(confidences)
        if options.mode == "kd3":
            mask = confident(confidences, classes, self.student.num_classes, options.p_cutoff)
            kept = mask.nonzero().flatten()
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            least = min(pool, data.batch_size * self.trainer.world_size)
            if len(kept) >= least:
                return kept
            self.print(
                f"epoch {self.current_epoch + 1}: only {len(kept)} of {pool} images pass their class "
                f"threshold; training on the {least} most confident"
            )
            return most_confident(confidences, least)
        count = options.keep_count or 0
        if count > pool:
            raise UserError(f"model.selection.keep_count={count}: the pool has {pool} images")
        if options.mode == "dfnd":
            return most_confident(confidences, count)
        return torch.randperm(pool)[:count].sort().values

    @torch.no_grad()
    def _judge(self, share: float) -> tuple[Tensor, Tensor, Tensor]:
        """Number, confidence and class of every image of the pool, all (N,); `share` is the teacher's."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        augmented = self.selection.augmented and self.selection.mode == "kd3"
        numbers: list[Tensor] = []
        found: list[Tensor] = []
        self.student.eval()
        for index, batch in enumerate(self._announced(data.train_pass(augmented))):
            numbers.append(batch["indices"].cpu())
            if index % self.trainer.world_size == self.global_rank:
                with self.trainer.precision_plugin.forward_context():
                    found.append(self._judge_batch(index, batch["images"].to(self.device), share, augmented))
            else:
                found.append(torch.zeros(2, len(batch["images"]), device=self.device))
        self.student.train()
        if not found:
            raise UserError(f"{type(data).__name__}: the pool holds no image")
        confidences, classes = self.sum_over_processes(torch.cat(found, 1))
        return torch.cat(numbers), confidences, classes.long()

    def _judge_batch(self, index: int, images: Tensor, share: float, augmented: bool) -> Tensor:
        teacher = self._answer(index, images, augmented) if share > 0 else None
        student = self.student(images) if share < 1 else teacher
        teacher = student if teacher is None else teacher
        assert teacher is not None and student is not None
        confidences, classes = confidence(teacher, student, share, self.selection.combine)
        if self.selection.mode == "dfnd":
            confidences = -self_cross_entropy(teacher)
        return torch.stack([confidences.float(), classes.float()])

    def _answer(self, index: int, images: Tensor, augmented: bool) -> Tensor:
        """Teacher logits of a batch of the pool, remembered where the same images come again."""
        if augmented:
            return self.teacher(images)
        if index not in self._answers:
            self._answers[index] = self.teacher(images).cpu()
        return self._answers[index].to(self.device)

    def _announced(self, batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The batches, with a line on the terminal now and then."""
        began = last = time.monotonic()
        seen = 0
        for batch in batches:
            yield batch
            seen += len(batch["images"])
            if time.monotonic() - last > _QUIET:
                last = time.monotonic()
                self.print(
                    f"epoch {self.current_epoch + 1}: choosing images, {seen} seen in {last - began:.0f} s"
                )

    def _begin_epoch(self, kept: Tensor) -> None:
        """Restricts the pool, and lets Lightning's loader begin this epoch anew, at its new length."""
        trainer: Any = self.trainer
        trainer.datamodule.keep(kept)
        if hasattr(trainer.train_dataloader, "load_state_dict"):  # a stored place is one among other images
            trainer.train_dataloader.load_state_dict({"epoch": self.current_epoch, "batches": 0})
        trainer.fit_loop._combined_loader.limits = [self._batches()]
        iter(trainer.fit_loop._data_fetcher)

    def _batches(self) -> int:
        limit, length = self.trainer.limit_train_batches, len(self.trainer.train_dataloader)  # type: ignore
        return min(limit, length) if isinstance(limit, int) else int(limit * length)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Tells Lightning how many batches this epoch has."""
        # Not earlier: to know what a resumed run had finished, Lightning needs the number of before.
        trainer: Any = self.trainer
        trainer.fit_loop.max_batches = self._batches()
        if isinstance(trainer.val_check_interval, float):
            trainer.val_check_batch = max(1, int(trainer.fit_loop.max_batches * trainer.val_check_interval))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is kept, so that a resumed run goes on with the same images."""
        checkpoint["kd3"] = {"kept": self._kept, "epoch": self._kept_for}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Inverse of on_save_checkpoint."""
        self._kept, self._kept_for = checkpoint["kd3"]["kept"], checkpoint["kd3"]["epoch"]


def _weights(objective: Objective, contrast: ContrastOptions, shared: bool) -> dict[str, float]:
    if objective != "kd3":
        return {"kd": 1.0, "noise": 1.0} if objective == "dfnd" else {"kd": 1.0}
    used = {
        "contrast_student": True,
        "contrast_teacher": contrast.parity,
        "contrast_cross": contrast.cross,
    }
    factors = {name: contrast.weight for name, use in used.items() if use and contrast.weight}
    return {"feature": 1.0, **factors, **({} if shared else {"kd": 1.0})}
