"""Fine-tuning: a language student on a downstream task, without a teacher."""

from vlkd.methods.finetune.method import FineTune

__all__ = ["FineTune"]
