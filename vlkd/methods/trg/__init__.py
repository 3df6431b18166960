"""TRG: relations between tokens, within and across the images of a batch."""

from vlkd.methods.trg.method import TRG

__all__ = ["TRG"]
