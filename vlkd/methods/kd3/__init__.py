"""KD3: distillation between different distributions (ICCV 2023). The functions need no Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlkd.methods.kd3.mix import mix_distribution, weighted_feature_loss
from vlkd.methods.kd3.selection import alpha, select

if TYPE_CHECKING:
    from vlkd.methods.kd3.method import KD3

__all__ = ["KD3", "alpha", "mix_distribution", "select", "weighted_feature_loss"]


def __getattr__(name: str) -> Any:
    if name == "KD3":
        from vlkd.methods.kd3.method import KD3

        return KD3
    raise AttributeError(f"module {__name__} has no attribute {name}")
