"""How far apart: plain functions on tensors, float32 inside autocast, no Lightning, no models."""

from vlkd.losses.clip_kd import affinity_mimicry, feature_mimicry, interactive_contrastive
from vlkd.losses.contrastive import clip_loss, crd, grounding_loss, nt_xent
from vlkd.losses.feature import at, fitnet, nd, neuron_mmd, nst, ofd, review_kd, vid
from vlkd.losses.language import (
    MemoryCRD,
    hidden_l2,
    hinge_all,
    hinge_half,
    infonce,
    nst_tokens,
    soft_label,
    token_contrastive,
)
from vlkd.losses.logit import dist, dkd, kd, logit_standardise, sinkhorn
from vlkd.losses.mask import dice, mask_bce, mask_losses
from vlkd.losses.matching import match, match_batch
from vlkd.losses.memory import CRDMemory
from vlkd.losses.relation import pkt, rkd, sp, text_guided_kd
from vlkd.losses.token import (
    knn_edges,
    patch_tokens,
    trg_contextual,
    trg_global,
    trg_local,
    trg_local_dense,
    trg_temperature,
)

__all__ = [
    "CRDMemory",
    "MemoryCRD",
    "affinity_mimicry",
    "at",
    "clip_loss",
    "crd",
    "dice",
    "dist",
    "dkd",
    "feature_mimicry",
    "fitnet",
    "grounding_loss",
    "hidden_l2",
    "hinge_all",
    "hinge_half",
    "infonce",
    "interactive_contrastive",
    "kd",
    "knn_edges",
    "logit_standardise",
    "mask_bce",
    "mask_losses",
    "match",
    "match_batch",
    "nd",
    "neuron_mmd",
    "nst",
    "nst_tokens",
    "nt_xent",
    "ofd",
    "patch_tokens",
    "pkt",
    "review_kd",
    "rkd",
    "sinkhorn",
    "soft_label",
    "sp",
    "text_guided_kd",
    "token_contrastive",
    "trg_contextual",
    "trg_global",
    "trg_local",
    "trg_local_dense",
    "trg_temperature",
    "vid",
]
