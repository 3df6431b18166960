"""GKC: a mask-classification student in the text space of a frozen CLIP teacher (arXiv 2303.09181)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlkd.engine.bundle import load_bundle, read_card
from vlkd.engine.hub import resolve
from vlkd.errors import UserError
from vlkd.losses.contrastive import grounding_loss
from vlkd.losses.relation import text_guided_kd
from vlkd.methods.base import Distiller, Schedule, recorded
from vlkd.methods.gkc.criterion import MaskCriterion, Matches, grounded, over_void
from vlkd.methods.gkc.diversify import ClassList, Diversification, WordTable, noun_vectors
from vlkd.methods.gkc.evaluate import Evaluation, region_accuracy
from vlkd.methods.gkc.regions import RegionBank, RegionSource
from vlkd.models.clip import CLIPTower, build_clip, text_from_card
from vlkd.models.segmentor import Prediction, Segmentor
from vlkd.text import ClassVectors, synonyms, templates


@dataclass
class KDOptions:
    """Distillation: form of the loss, what of the student is compared, most regions per step and process.

    student "prior": a head of its own on the query before projection; "direct": the class embedding.
    """

    form: Literal["inner", "distance", "vanilla", "none"] = "inner"
    student: Literal["prior", "direct"] = "prior"
    regions: int = 200


@dataclass
class DiversifyOptions:
    """Synonyms: how they enter the classification, the least probability the teacher must give a word.

    view: of the region that the teacher judges by, "box" unmasked (as published) or "masked".
    """

    mode: Diversification = "thresRand"
    threshold: float = 0.1
    view: Literal["box", "masked"] = "box"


class GKC(Distiller):
    """Global knowledge calibration.

    Loss names: mask, dice, class (plain names), and as configured synonym, kd, grounding; each is the sum
    over the decoder's levels. `weights` must name just those.

    Args:
        student: the network that is trained.
        teacher: CLIP model (see vlkd.models.clip.build_clip) whose text space the student lives in; None for
            a student from a bundle, which brings its text encoder along and can only be scored.
        teacher_pretrained: tag or file of its weights.
        template_set: prompt templates; bare names as published.
        kd: distillation options.
        diversify: synonym options.
        criterion: matching and mask loss options.
        caption_words: nouns per caption for the grounding loss, a quarter of them dropped; 0 turns it off.
        weights: factor of each loss.
        lr: see Distiller.
        weight_decay: see Distiller.
        warmup_steps: see Distiller.
        backbone_lr_scale: see Distiller.
        schedule: see Distiller.
        milestones: see Distiller.
    """

    def __init__(
        self,
        student: Segmentor,
        teacher: str | None = "clip-world-m",
        teacher_pretrained: str | None = None,
        template_set: str = "bare",
        kd: KDOptions | None = None,
        diversify: DiversifyOptions | None = None,
        criterion: MaskCriterion | None = None,
        caption_words: int = 0,
        weights: dict[str, float] | None = None,
        lr: float = 3e-4,
        weight_decay: float = 0.05,
        warmup_steps: int = 10,
        backbone_lr_scale: float = 0.1,
        schedule: Schedule = "cosine",
        milestones: Sequence[float] = (0.8, 0.9),
    ) -> None:
        kd, diversify = kd or KDOptions(), diversify or DiversifyOptions()
        default = {"mask": 5.0, "dice": 5.0, "class": 2.0}
        if diversify.mode != "none":
            default["synonym"] = 2.0
        if kd.form != "none":
            default["kd"] = 2.0
        if caption_words:
            default["grounding"] = 2.0
        super().__init__(
            weights or default,
            lr,
            weight_decay,
            warmup_steps,
            backbone_lr_scale,
            schedule,
            milestones=milestones,
        )
        self.kd, self.diversify = kd, diversify
        self.student = student.train()
        width = student.arguments["text_width"]
        if teacher is not None:
            tower = self.hold("teacher", build_clip(teacher, teacher_pretrained))
            if width != tower.spec.width:
                raise UserError(
                    f"model.student.text_width={width}: "
                    f"the teacher {teacher} has text vectors of width {tower.spec.width}"
                )
            self.hold("text", tower)
        self.teacher_name = teacher or ""
        self.template_set, self.caption_words = template_set, caption_words
        self.criterion = criterion or MaskCriterion()
        self._build_kd_heads(width)
        self.table: WordTable | None = None

    def _build_kd_heads(self, width: int) -> None:
        if self.kd.form == "none":
            return
        if self.kd.student == "prior":
            channels, levels = self.student.arguments["channels"], self.student.arguments["layers"] + 1
            self.kd_heads = nn.ModuleList(nn.Linear(channels, width) for _ in range(levels))
        if self.kd.form != "vanilla":
            self.kd_alpha = nn.Parameter(torch.ones(()))

    @property
    def protocol(self) -> dict[str, Any]:
        """Adds what the student has seen."""
        data = self.trainer.datamodule if self._trainer is not None else None  # type: ignore[attr-defined]
        novel = [data.names[k] for k in sorted(data.novel)] if data is not None else []
        return {
            **super().protocol,
            "unseen classes": ", ".join(novel) or "none",
            "captions used": bool(self.caption_words),
            "prompts at test": self.template_set,
            "synonyms in training": self.diversify.mode,
            "kd": self.kd.form,
        }

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        """What comes from CLIP (backbone and pooled projection), and everything else that is trained."""
        backbone = list(self.student.backbone.parameters())
        if self.student.pooled is not None:
            backbone += self.student.pooled.parameters()
        inside = {id(p) for p in backbone}
        return {"backbone": backbone, "rest": [p for p in self.parameters() if id(p) not in inside]}

    def setup(self, stage: str) -> None:
        """Encode the vocabulary once; when training, let the teacher see every region once."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self._place_held()
        self.vectors = self.encode(data.names)
        self.evaluation = Evaluation(self.vectors, data, self.encode)
        if stage != "fit" or self.table is not None:
            return
        if data.novel and data.novel_handling == "keep":
            raise UserError(
                "data.novel_handling=keep (subset=null of videos): novel classes would be labels; "
                "use ignore or delete, or novel: []"
            )
        self.base = torch.tensor([k not in data.novel for k in range(len(data.names))])
        # Novel classes are never trained on, so neither are their synonyms.
        base_names = {name for k, name in enumerate(data.names) if k not in data.novel}
        listed = getattr(data, "training_synonyms", synonyms)
        used = self.diversify.mode != "none"
        self.table = WordTable.build(
            data.names, lambda n: listed(n) if used and n in base_names else (), self.encode
        )
        # Words of novel classes stay unused, also where a caption holds them.
        of_base = self.base[self.table.category].tolist()
        self.lexicon = {word: k for k, word in enumerate(self.table.words) if of_base[k]}
        regions = data.train_regions()
        if self.trainer.global_rank == 0:
            self._fill_banks(regions)
        self.trainer.strategy.barrier()
        if self.trainer.global_rank > 0:
            self._fill_banks(regions)

    def _fill_banks(self, regions: RegionSource) -> None:
        teacher = self.held("teacher")
        if self.kd.form != "none":
            self.bank = RegionBank.build(regions, teacher)
        if self.diversify.mode == "thresRand":
            self.views = RegionBank.build(regions, teacher, masked=self.diversify.view == "masked")

    def encode(self, names: Iterable[str]) -> ClassVectors:
        """Class vectors of the teacher's text half, read from the cache where they were built before."""
        return ClassVectors.build(list(names), self.held("text"), templates(self.template_set), cache=True)

    def teacher_record(self) -> dict[str, Any] | None:
        """The card of a teacher that is a bundle; of others the name alone."""
        if "teacher" not in self.held_names():
            return None
        try:
            return recorded(read_card(resolve(self.teacher_name)))
        except UserError:
            return {"name": self.teacher_name}

    def score_teacher(self, loader: Iterable[Any]) -> dict[str, float]:
        """Accuracy of naming the first validation regions; none where its image half is not used."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        used = self.kd.form != "none" or self.diversify.mode == "thresRand"
        if not used or not hasattr(data, "val_regions"):
            return {}
        return region_accuracy(self.held("teacher"), self.vectors.vectors, data.val_regions())

    def describe(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Inputs, widths and grids of student and teacher."""
        last, spec = self.student(batch["images"], valid_mask(batch))[-1], self.held("teacher").spec
        student = {"part": "student", "input": _size(batch["images"]), "width": last.embeddings.shape[-1]}
        student |= {"queries": last.embeddings.shape[1], "mask grid": _size(last.mask_logits)}
        return [student, {"part": "teacher", "input": "x".join(map(str, spec.size)), "width": spec.width}]

    # --- training ------------------------------------------------------------------------------------------

    def compute_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """All losses, each summed over the decoder's levels."""
        assert self.table is not None, "setup() comes first"
        table, targets = self.table.to(self.device), batch["targets"]
        levels = self._levels(batch)
        labels = [target["labels"] for target in targets]
        words = self._words(targets) if self.diversify.mode == "thresRand" else labels
        lists = table.class_lists(labels, words, self.base.to(self.device))
        count = self._mask_count(labels)
        nouns = None
        if limit := self.caption_words:
            nouns = noun_vectors(table.vectors, self.lexicon, batch["captions"], limit)
        void = self.trainer.datamodule.void  # type: ignore[attr-defined]
        totals: dict[str, Tensor] = {}
        for index, prediction in enumerate(levels):
            unknown = None
            if not self.criterion.teach_void:
                unknown = over_void(prediction.mask_logits, batch["semantic"], void)
            found = self._level_losses(index, prediction, targets, lists, count, nouns, unknown)
            for name, value in found.items():
                totals[name] = totals[name] + value if name in totals else value
        return totals

    def _level_losses(
        self,
        index: int,
        prediction: Prediction,
        targets: list[dict[str, Any]],
        lists: ClassList,
        count: float,
        nouns: tuple[Tensor, Tensor] | None,
        unknown: Tensor | None,
    ) -> dict[str, Tensor]:
        table, criterion = self.table, self.criterion
        assert table is not None
        base = self.base.to(self.device)
        logits = self.student.class_logits(prediction.embeddings, table.vectors[: table.classes], base)
        matches, losses = self._matched(logits, prediction, targets, count)
        kept = criterion.dropout(matches)
        labels = matches.gather([target["labels"] for target in targets])
        losses["class"] = criterion.classes(logits, matches, labels, kept, unknown)
        if self.diversify.mode == "thresRand":
            diverse = self.student.class_logits(
                prediction.embeddings, table.vectors[lists.rows], lists.present
            )
            losses["synonym"] = criterion.classes(
                diverse, matches, matches.gather(lists.slots), kept, unknown
            )
        elif self.diversify.mode != "none":
            of_words = self.student.class_logits(prediction.embeddings, table.vectors, base[table.category])
            reduced = table.reduce(of_words, self.diversify.mode)
            losses["synonym"] = criterion.classes(reduced, matches, labels, kept, unknown)
        if self.kd.form != "none":
            losses["kd"] = self._distil(
                index, prediction, matches.first(self.kd.regions), targets, lists.words
            )
        if nouns is not None:
            regions = grounded(prediction, matches, len(targets), limit=25)
            losses["grounding"] = grounding_loss(
                regions[0], nouns[0], regions[1], nouns[1], self.student.scale
            )
        return losses

    def _levels(self, batch: dict[str, Any]) -> list[Prediction]:
        return self.student(batch["images"], valid_mask(batch))

    def _matched(
        self, logits: Tensor, prediction: Prediction, targets: list[dict[str, Any]], count: float
    ) -> tuple[Matches, dict[str, Tensor]]:
        """Which queries found the segments of each image, and the mask losses."""
        matches = self.criterion.assign(logits, prediction, targets)
        return matches, self.criterion.masks(prediction, matches, targets, count)

    def _distil(
        self,
        index: int,
        prediction: Prediction,
        matches: Matches,
        targets: list[dict[str, Any]],
        words: list[Tensor],
    ) -> Tensor:
        assert self.table is not None and self.kd.form != "none"
        if self.kd.student == "prior":
            student = self.kd_heads[index](prediction.queries[matches.image, matches.query])
        else:
            student = prediction.embeddings[matches.image, matches.query]
        rows = matches.gather([self.bank.rows(target["regions"]) for target in targets])
        teacher = self.bank.vectors[rows].to(student.device)
        text = self.table.vectors[matches.gather(words)]
        alpha = self.kd_alpha if self.kd.form != "vanilla" else 1.0
        return text_guided_kd(student, teacher, text, matches.image, alpha, self.kd.form)

    def _words(self, targets: list[dict[str, Any]]) -> list[Tensor]:
        """A sampled word for every segment of every image."""
        assert self.table is not None
        labels = torch.cat([target["labels"] for target in targets])
        rows = torch.cat([self.views.rows(target["regions"]) for target in targets])
        words = self.table.sample(
            self.views.vectors[rows].to(labels.device), labels, self.diversify.threshold
        )
        return list(words.split([len(target["labels"]) for target in targets]))

    def _mask_count(self, labels: list[Tensor]) -> float:
        """Segments per process, at least one: what mask losses are divided by."""
        count = torch.tensor(float(sum(map(len, labels))), device=self.device)
        return max(float(self.sum_over_processes(count)) / self.trainer.world_size, 1.0)

    # --- scores --------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Empty confusion matrices."""
        self.evaluation.reset()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Label every pixel, once for each way of prompting."""
        prediction = self.student(batch["images"], valid_mask(batch))[-1]
        self.evaluation.update(self.student, prediction, batch)

    def on_validation_epoch_end(self) -> None:
        """mIoU over all, seen and unseen classes; also prompted by held-out synonyms where there are any."""
        self.log_scores(self.evaluation.scores(self.sum_over_processes))

    # --- the student alone ---------------------------------------------------------------------------------

    def bundle(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Student, class vectors, and the text half of the teacher so that any words can be asked for."""
        tower: CLIPTower = self.held("teacher")
        card = {
            "kind": "segmentor",
            "architecture": self.student.arguments,
            "input_spec": self.student.spec.to_dict(),
            "class_names": list(self.vectors.names),
            "class_vectors": self.vectors.facts(),
            "text": {**tower.architecture, "identity": tower.identity},
        }
        tensors = {f"student.{k}": v for k, v in self.student.state_dict().items()}
        tensors["class_vectors"] = self.vectors.vectors
        return card, {**tensors, **{f"text.{k}": v for k, v in tower.text_tensors().items()}}

    @classmethod
    def described(cls, card: Mapping[str, Any]) -> dict[str, Any] | None:
        """The config of a bundle with the student as stored, and no teacher to fetch."""
        model = super().described(card)
        if model:
            arguments = {key: value for key, value in model["init_args"].items() if key != "init"}
            student = {**arguments["student"], "init_args": card["architecture"]}
            model = {**model, "init_args": {**arguments, "teacher": None, "student": student}}
        return model

    @classmethod
    def from_bundle(cls, path: str | Path) -> Distiller:
        """The method with the bundle's student and text encoder."""
        method = super().from_bundle(path)
        card, tensors = load_bundle(path)
        text = {k.removeprefix("text."): v for k, v in tensors.items() if k.startswith("text.")}
        method.hold("text", text_from_card(card["text"], text))
        return method


def valid_mask(batch: dict[str, Any]) -> Tensor | None:
    """Where a padded batch holds image (B,H,W) bool; None when no image is padded."""
    height, width = batch["images"].shape[-2:]
    sizes = batch["sizes"]
    if bool((sizes == sizes.new_tensor([height, width])).all()):
        return None
    rows = torch.arange(height, device=sizes.device)[None, :, None] < sizes[:, :1, None]
    columns = torch.arange(width, device=sizes.device)[None, None] < sizes[:, 1:, None]
    return rows & columns


def _size(maps: Tensor) -> str:
    return "x".join(map(str, maps.shape[-2:]))
