"""PromptKD (CVPR 2024): few-shot prompts for a teacher, then a small student from unlabelled images."""

from vlkd.methods.promptkd.method import PromptKD, kd_loss
from vlkd.methods.promptkd.teacher import PromptTeacher

__all__ = ["PromptKD", "PromptTeacher", "kd_loss"]
