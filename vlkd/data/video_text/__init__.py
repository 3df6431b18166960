"""Captioned videos in HowTo100M's layout, and text in blocks: what VidLanKD's teacher and student see."""

from __future__ import annotations

from vlkd.data.video_text.texts import TextBlocksData
from vlkd.data.video_text.videos import VideoTextData

__all__ = ["TextBlocksData", "VideoTextData"]
