"""VidLanKD, stage 2: a language student learns from text alone what its teacher saw (NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlkd.engine.bundle import load_bundle, read_card
from vlkd.engine.hub import resolve
from vlkd.errors import UserError
from vlkd.losses import MemoryCRD, hidden_l2, nst_tokens, soft_label, token_contrastive
from vlkd.methods.base import Distiller, Schedule, recorded
from vlkd.methods.vidlankd.base import Compat, LanguageDistiller, check_language
from vlkd.methods.vidlankd.heads import HeadKind, build_heads, load_heads
from vlkd.methods.vidlankd.options import OF_STATES, check_objectives, with_defaults
from vlkd.methods.vidlankd.probed import Probed
from vlkd.methods.vidlankd.teacher import language_bundle, language_row
from vlkd.models.language import LanguageModel, language_model_of, save_language_model

FOLDER = "transformers"  # of a run: the student for every tool of that ecosystem


class VidLanKD(LanguageDistiller):
    """A language model learns hidden words and, for the same masked ids, its teacher's last states.

    Losses: mlm; soft_label, the teacher's guesses of the hidden words; of the states of all tokens hidden
    (squared distance), nst (token by token within a sequence), contrastive (tokens of the batch), crd (a
    memory of all sequences). Each has a head of its own. Weights {mlm: 1.0} are the text-only baseline.

    Args:
        teacher: bundle of stage 1 or of any language model, run folder, or zoo name; its tokenizer must be
        that of the data. null: none, with weights {mlm: 1.0}.
        language: see LanguageDistiller.
        dropout: see LanguageDistiller.
        head: between the student's states and a loss: mlp as released, linear, or none.
        compat: repo: nst and crd alone, scaled as released, over all tokens, padding too; crd is then the
        contrast of the tokens at one place of the batch, temperature 1.
        weights: factors of the losses; only the named are computed. null: mlm, contrastive.
        options: settings of losses by their name: contrastive: {mode: flat | position, temperature}, crd:
        {negatives, temperature, momentum}, soft_label: {temperature, tokens: hidden | all}.
        lr: see Distiller.
        weight_decay: see Distiller.
        warmup_steps: see Distiller.
        schedule: see Distiller.
    """

    def __init__(
        self,
        teacher: str | None = None,
        language: str | LanguageModel = "small",
        dropout: float | None = None,
        head: HeadKind = "mlp",
        compat: Compat = "clean",
        weights: dict[str, float] | None = None,
        options: dict[str, dict[str, Any]] | None = None,
        lr: float = 2e-4,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        schedule: Schedule = "cosine",
    ) -> None:
        weights = chosen_weights(weights, compat)
        check_objectives(weights, options or {}, compat, head)
        optimiser = {"lr": lr, "weight_decay": weight_decay, "warmup_steps": warmup_steps}
        super().__init__(language, dropout, compat, weights, **optimiser, schedule=schedule)
        self.head, self.options = head, with_defaults(options or {}, compat)
        self.teacher_card: dict[str, Any] = {}
        self.heads = nn.ModuleDict()
        self.memory: MemoryCRD | None = None
        self._headed = False
        if set(weights) <= {"mlm"}:
            return
        if teacher is None:
            raise UserError(
                "model.teacher: missing; give the run folder or bundle of stage 1 (--model.teacher=RUN), or "
                "weights: {mlm: 1.0} for text alone"
            )
        self.teacher_card, model = load_teacher(teacher)
        self.hold("teacher", model)

    @classmethod
    def check_before_teacher(cls, arguments: Mapping[str, Any]) -> None:
        """Names of losses, options and the student's own size, before stage 1 spends its time."""
        compat = arguments["compat"]
        weights = chosen_weights(arguments["weights"], compat)
        check_objectives(weights, arguments["options"] or {}, compat, arguments["head"])
        check_language(arguments["language"], arguments["dropout"], compat)

    # --- data ----------------------------------------------------------------------------------------------

    def build_parts(self, data: Any, stage: str) -> None:
        """Heads, and the memory of crd. Raises UserError for a teacher with another tokenizer."""
        if not self.held_names():
            return
        teacher: LanguageModel = self.held("teacher")
        teacher.check_tokenizer(self.language.tokenizer, "the data")
        if not self._headed:
            compared = [name for name in OF_STATES if name in self.weights]
            self.heads = build_heads(compared, self.head, self.language.width, teacher.width)
            self._headed = True
        if "crd" in self.weights and self.compat == "clean" and self.memory is None and stage == "fit":
            items = getattr(data, "train_set", None)
            if items is None:
                raise UserError(
                    f"{type(data).__name__}: has no train_set; crd must know how many sequences there are"
                )
            self.memory = MemoryCRD(len(items), teacher.width, **self.options["crd"])

    def load_parts(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """The heads of a bundle."""
        load_heads(self.heads, tensors, source)

    # --- losses --------------------------------------------------------------------------------------------

    def compute_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those that have a weight; student and teacher read the same masked ids.

        Source: VidLanKD (arXiv 2107.02681); zinengtang/VidLanKD@46bae35, `vlm/model.py`.
        """
        ids, hidden = self.hide(batch)
        states = self.language(ids, batch["attention_mask"])
        losses = {}
        if "mlm" in self.weights:
            losses["mlm"] = self.word_loss(states, batch, hidden)
        if not self.held_names():
            return losses
        teacher: LanguageModel = self.held("teacher")
        with torch.no_grad():
            target = teacher(ids, batch["attention_mask"])
        mask = None if self.compat == "repo" else batch["attention_mask"].bool()
        if "soft_label" in self.weights:
            chosen = hidden if self.options["soft_label"]["tokens"] == "hidden" else mask
            losses["soft_label"] = self._soft_label(states[chosen], target[chosen])
        return losses | self.state_losses(states, target, mask, batch["indices"])

    def _soft_label(self, states: Tensor, target: Tensor) -> Tensor:
        """Of the chosen tokens' states (N,D) of both."""
        with torch.no_grad():
            answers = self.held("teacher").words(target)
        temperature = self.options["soft_label"]["temperature"]
        return soft_label(self.language.words(states)[None], answers[None], None, temperature)

    def state_losses(
        self, states: Tensor, target: Tensor, mask: Tensor | None, indices: Tensor
    ) -> dict[str, Tensor]:
        """Losses between the student's states (B,L,D) and the teacher's (B,L,D')."""
        normalise = self.compat
        losses = {}
        for name, head in self.heads.items():
            student = head(states)
            if name == "hidden":
                losses[name] = hidden_l2(student, target, mask)
            elif name == "nst":
                losses[name] = nst_tokens(student, target, mask, normalise)
            elif name == "crd" and self.compat == "clean":
                losses[name] = self._memory_loss(student, target, mask, indices)
            else:
                losses[name] = token_contrastive(
                    student, target, **self.options[name], normalise=normalise, mask=mask
                )
        return losses

    def _memory_loss(self, student: Tensor, target: Tensor, mask: Tensor | None, indices: Tensor) -> Tensor:
        assert self.memory is not None, "crd needs a memory: setup makes it"
        assert mask is not None
        # With the sequences of all processes, so that their memories stay the same.
        s, t, m, i = (self.of_all_processes(x) for x in (student, target, mask, indices))
        return self.memory(s, t, i, mask=m, update=self.training)

    def describe(self, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Sizes of student and teacher, and how many words of the batch are hidden."""
        rows = [language_row("student", self.language, batch["input_ids"])]
        if self.held_names():
            rows.append(language_row("teacher", self.held("teacher"), batch["input_ids"]))
        hidden = int(self.hide(batch)[1].sum())
        return [*rows, {"part": "hidden words", "given": f"{hidden} of {int(batch['attention_mask'].sum())}"}]

    # --- scores --------------------------------------------------------------------------------------------

    def teacher_record(self) -> dict[str, Any] | None:
        """The teacher's card, as far as the gate needs it."""
        return recorded(self.teacher_card) if self.teacher_card else None

    @torch.no_grad()
    def score_teacher(self, loader: Iterable[Any]) -> dict[str, float]:
        """The teacher's accuracy on the hidden words of this run's validation."""
        self._place_held()
        model, whole = self.held("teacher"), getattr(loader, "loader", loader)
        counts = torch.zeros(3, dtype=torch.float64, device=self.device)
        for number, batch in enumerate(loader):
            batch = {key: x.to(self.device) for key, x in batch.items() if isinstance(x, Tensor)}
            keep = ~self.repeated(number, len(batch["input_ids"]), whole).to(self.device)
            ids, hidden = self.hide(batch, training=False)
            states = model(ids, batch["attention_mask"])
            counts += self.count_words(model, states, batch, hidden & keep[:, None])
        _, hits, count = self.sum_over_processes(counts).tolist()
        return {"mlm_accuracy": hits / max(1, count)}

    @property
    def protocol(self) -> dict[str, Any]:
        """As in the base; teacher and objectives."""
        if self.recorded_protocol:
            return self.recorded_protocol
        name = self.teacher_card.get("name", "none, text alone") if self.held_names() else "none, text alone"
        return {**super().protocol, "teacher": name, "objectives": ", ".join(self.weights)}

    # --- checkpoint, folder and bundle ---------------------------------------------------------------------

    def on_fit_end(self) -> None:
        """Write the student into the run folder as transformers reads it."""
        folder = Path(self.trainer.default_root_dir)
        if self.trainer.is_global_zero and (folder / "config.yaml").is_file():
            save_language_model(self.language, folder / FOLDER)

    def bundle(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The language model with its tokenizer, and the heads, which map its states to the teacher's."""
        card, tensors = language_bundle(self.language)
        if self.heads:
            card["architecture"]["heads"] = {
                "names": list(self.heads),
                "kind": self.head,
                "student": self.language.width,
                "teacher": self.held("teacher").width,
            }
        return card, tensors | {f"heads.{key}": x for key, x in self.heads.state_dict().items()}

    @classmethod
    def from_bundle(cls, path: str | Path) -> Distiller:
        """The student of a bundle, ready to be scored; the teacher is not needed. Also of stage 1."""
        if read_card(path)["kind"] == "video_text":
            from vlkd.methods.vidlankd.teacher import VideoTextTeacher

            return VideoTextTeacher.from_bundle(path)
        card, tensors = load_bundle(path)
        method = cls(language=language_model_of(card, tensors, str(path)), weights={"mlm": 1.0})
        method.recorded_protocol = card.get("protocol")
        return method

    @classmethod
    def probed(cls, path: Path) -> Probed:
        """A bundle of either stage, as probes ask it."""
        return Probed(path)


def chosen_weights(weights: Mapping[str, float] | None, compat: Compat) -> dict[str, float]:
    """As given; else hidden words with the objective that carries knowledge best, or the released two."""
    if weights is not None:
        return dict(weights)
    return {"mlm": 1.0, "contrastive": 1.0} if compat == "clean" else {"mlm": 1.0, "nst": 1.0, "crd": 1.0}


def load_teacher(name: str) -> tuple[dict[str, Any], LanguageModel]:
    """Card and language model of a bundle, run folder or zoo name. Raises UserError where it has none."""
    file = resolve(name)
    card, tensors = load_bundle(file)
    return card, language_model_of(card, tensors, f"model.teacher {file}")
