"""VidLanKD (NeurIPS 2021): a teacher of text and video, then a student of text alone."""

from vlkd.methods.vidlankd.method import VidLanKD
from vlkd.methods.vidlankd.teacher import VideoTextTeacher

__all__ = ["VidLanKD", "VideoTextTeacher"]
