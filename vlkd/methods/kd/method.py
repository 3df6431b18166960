"""KD: the baselines, and any combination of them; without a teacher it makes one."""

from __future__ import annotations

from vlkd.methods.classifier import ClassifierDistiller


class KD(ClassifierDistiller):
    """Every loss of vlkd.methods.terms by its name in `weights`; arguments as in ClassifierDistiller."""
