"""What both stages of VidLanKD share: the data's tokenizer, hidden words, their scores, many processes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.errors import UserError
from vlkd.losses.precision import full
from vlkd.methods.base import Distiller
from vlkd.methods.vidlankd.masking import hide_words
from vlkd.models.language import LanguageModel, build_language_model, check_name
from vlkd.models.weights import fit_weights
from vlkd.text.word_ids import ordinary_ids

Compat = Literal["clean", "repo"]
VALIDATION = (0, -1)  # seed and epoch of the words that are hidden in validation: always the same


class LanguageDistiller(Distiller):
    """A language model that learns on token ids; a subclass adds what it learns beside hidden words.

    Args:
        language: size, folder, bundle or hub id (see vlkd.models.language.build_language_model).
        dropout: of the language model; null: 0.1, or what is stored with its weights.
        compat: clean, or repo: what the released code does.
        weights: factor of each loss by name.
        optimiser: see Distiller.
    """

    _mask_seed: Tensor

    def __init__(
        self,
        language: str | LanguageModel,
        dropout: float | None,
        compat: Compat,
        weights: dict[str, float],
        **optimiser: Any,
    ) -> None:
        super().__init__(weights, **optimiser)
        check_language(language, dropout, compat)
        ready = isinstance(language, LanguageModel)
        self.source, self.dropout, self.compat = language, dropout, compat
        # A size has no vocabulary before the data are there: setup builds the network.
        self.language: Any = language if ready else None
        self.recorded_protocol: dict[str, Any] | None = None
        self._waiting: dict[str, Tensor] | None = None
        self._waiting_source: str | None = None
        self.register_buffer("_mask_seed", torch.tensor(-1))

    # --- data ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Build what is trained, with the data's tokenizer. Raises UserError where it does not fit."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        tokenizer = getattr(data, "tokenizer", None)
        if tokenizer is None:
            raise UserError(
                f"{type(data).__name__}: has no tokenizer; {type(self).__name__} takes data of token ids"
            )
        if stage == "fit" and self._mask_seed < 0:
            self._mask_seed.copy_(torch.randint(2**62, ()))
        if self.language is None:
            self.language = build_language_model(str(self.source), tokenizer, self.dropout).train()
            self._freeze_unused()
        else:
            self.language.check_tokenizer(tokenizer, "the data")
        ordinary = torch.tensor(ordinary_ids(tokenizer))
        self.register_buffer("_ordinary", ordinary, persistent=False)
        self.mask_id = int(tokenizer.mask_token_id)
        self.build_parts(data, stage)
        self._load_waiting()

    @abstractmethod
    def build_parts(self, data: Any, stage: str) -> None:
        """What else is trained; called in every setup, the language model being there."""

    @abstractmethod
    def load_parts(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Take what `build_parts` made from a bundle's tensors. Raises UserError where they do not fit."""

    def _freeze_unused(self) -> None:
        if {"mlm", "soft_label"} & set(self.weights):
            return
        shared = self.language.model.bert.embeddings.word_embeddings.weight
        for parameter in self.language.model.cls.parameters():
            parameter.requires_grad_(parameter is shared)

    # --- weights that come before the data -----------------------------------------------------------------

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As of nn.Module; before setup the weights are kept until there is a network to take them."""
        if self.language is None:
            self._waiting = dict(state_dict)
            return None
        return super().load_state_dict(state_dict, *args, **kwargs)

    def load_student(self, tensors: Mapping[str, Tensor], source: str = "bundle") -> None:
        """Take a bundle's weights, in setup if there is no network yet. Raises UserError for others."""
        if self.language is None:
            self._waiting, self._waiting_source = dict(tensors), source
            return
        self.language.load(tensors, source)
        self.load_parts(tensors, source)

    def _load_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        if self._waiting_source:
            self.load_student(waiting, self._waiting_source)
            return
        own = self.state_dict()
        fit_weights(self, {key: x for key, x in waiting.items() if key in own}, "checkpoint")

    # --- hidden words --------------------------------------------------------------------------------------

    def hide(self, batch: Mapping[str, Tensor], training: bool = True) -> tuple[Tensor, Tensor]:
        """The batch's ids (B,L) with words hidden, and which were (B,L) bool."""
        seed, epoch = (int(self._mask_seed), self.current_epoch) if training else VALIDATION
        ids, mask, places = (batch[key] for key in ("input_ids", "attention_mask", "indices"))
        return hide_words(ids, mask, places, self._ordinary, self.mask_id, seed, epoch)  # type: ignore[arg-type]

    def word_loss(self, states: Tensor, batch: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        """Cross entropy of the hidden words (B,L) from states (B,L,D), in nats; 0 where none is hidden."""
        logits = full(self.language.words(states[hidden]))
        total = F.cross_entropy(logits, batch["input_ids"][hidden], reduction="sum")
        return total / max(1, len(logits))

    # --- scores --------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self._counts = torch.zeros(3, dtype=torch.float64, device=self.device)

    def count_words(
        self, model: LanguageModel, states: Tensor, batch: Mapping[str, Tensor], chosen: Tensor
    ) -> Tensor:
        """Nats, hits and number (3,) of the hidden words `chosen` (B,L) bool."""
        logits, words = full(model.words(states[chosen])), batch["input_ids"][chosen]
        nats = F.cross_entropy(logits, words, reduction="sum")
        hits = (logits.argmax(1) == words).sum()
        return torch.stack([nats, hits, torch.tensor(len(words), device=nats.device)]).double()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Guess words that are hidden the same way in each validation."""
        keep = ~self.repeated(batch_idx, len(batch["input_ids"])).to(self.device)
        ids, hidden = self.hide(batch, training=False)
        states = self.language(ids, batch["attention_mask"])
        self._counts += self.count_words(self.language, states, batch, hidden & keep[:, None])

    def on_validation_epoch_end(self) -> None:
        """Log the scores over all processes."""
        self.log_scores(self.scores())

    def scores(self) -> dict[str, float]:
        """Perplexity and accuracy of hidden words, and what the data's probes find."""
        found: dict[str, float] = {}
        if "mlm" in self.weights:
            nats, hits, count = self.sum_over_processes(self._counts).tolist()
            found["perplexity"] = float(torch.tensor(nats / max(1, count)).exp())
            found["mlm_accuracy"] = hits / max(1, count)
        probes = getattr(self.trainer.datamodule, "probe_scores", None)  # type: ignore[attr-defined]
        return found | (probes(self.encode) if probes else {})

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """States (B,L,D) of ids (B,L) with nothing hidden, in eval mode, without gradients."""
        was_training = self.language.training
        self.language.eval()
        # Not inference mode, so that a probe may be trained on them.
        with torch.inference_mode(False), torch.no_grad():
            found = self.language(input_ids.to(self.device), attention_mask.to(self.device))
        self.language.train(was_training)
        return found.float()

    # --- many processes ------------------------------------------------------------------------------------

    def of_all_processes(self, x: Tensor, gradient: bool = True) -> Tensor:
        """(B,...) of each of W processes -> (W B,...); axis 1 is filled up with zeros where it differs."""
        if self.trainer.world_size == 1:
            return x
        if x.ndim > 1:
            length = torch.tensor(x.shape[1], device=x.device)
            longest = int(self.all_gather(length).max())  # type: ignore[union-attr]
            x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, longest - x.shape[1]))
        gathered: Any = self.all_gather(x, sync_grads=gradient and x.requires_grad)
        return gathered.flatten(0, 1)

    # --- what a reader must know ---------------------------------------------------------------------------

    @property
    def protocol(self) -> dict[str, Any]:
        """How words are hidden; of a bundle, what its card says."""
        if self.recorded_protocol:
            return self.recorded_protocol
        found = {**super().protocol, "hidden words": "15 %, in validation always the same"}
        return found | ({"compat": self.compat} if self.compat != "clean" else {})


def check_language(language: Any, dropout: float | None, compat: str) -> None:
    """Raises UserError for a language model that is not to be had, and options out of range."""
    if compat not in ("clean", "repo"):
        raise UserError(f"model.compat={compat}: expected clean or repo")
    if dropout is not None and not 0 <= dropout < 1:
        raise UserError(f"model.dropout={dropout}: expected a rate in [0, 1), or null")
    if isinstance(language, str):
        check_name(language)


def check_weights(weights: Mapping[str, float], known: Iterable[str]) -> None:
    """Raises UserError for no loss at all, and at the first one that is not known."""
    known = list(known)
    if not weights:
        raise UserError(f"model.weights: empty; give one or more of {', '.join(known)}")
    for name in weights:
        if name not in known:
            raise UserError(f"model.weights.{name}: no such loss; there are {', '.join(known)}")
