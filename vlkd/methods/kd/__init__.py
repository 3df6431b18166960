"""KD: a classifier learns from labels and a teacher through any weighted sum of the baselines' losses."""

from vlkd.methods.kd.method import KD

__all__ = ["KD"]
