"""Downstream tasks of language students, from files in their published formats, and P3 of the lexicon."""

from __future__ import annotations

from vlkd.data.downstream.choices import PiqaData, SwagData
from vlkd.data.downstream.glue import GlueData
from vlkd.data.downstream.lexicon import LexiconChoicesData
from vlkd.data.downstream.squad import SquadData
from vlkd.data.downstream.tracie import TracieData

__all__ = ["GlueData", "LexiconChoicesData", "PiqaData", "SquadData", "SwagData", "TracieData"]
