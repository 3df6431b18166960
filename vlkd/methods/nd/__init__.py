"""ND: feature norm and direction beside a base loss (KD++, DKD++, DIST++, ReviewKD++)."""

from vlkd.methods.nd.method import ND

__all__ = ["ND"]
