"""The public door to every loss function, for people with their own training loop.

Tensors come first, student before teacher; settings are keyword-only. The teacher's tensors
receive no gradient.
"""

from __future__ import annotations

from limbeck.functional.cka import MinibatchCKA, debiased_cka, linear_cka, rbf_cka
from limbeck.functional.divergences import kd_loss
from limbeck.functional.hints import hint_loss
from limbeck.functional.logits import standardize_logits
from limbeck.methods.feature.at import at_loss, attention_map
from limbeck.methods.feature.cat_kd import cat_loss, class_maps
from limbeck.methods.feature.crd import crd_loss
from limbeck.methods.feature.foundation import cosine_distance
from limbeck.methods.feature.ofd import ofd_loss
from limbeck.methods.feature.reviewkd import hcl_loss
from limbeck.methods.feature.vid import vid_loss
from limbeck.methods.feature.wkd_feature import WKDDistance, wkd_feature_loss
from limbeck.methods.noise_label import noise_label_loss
from limbeck.methods.output.bkd import balanced_kd_loss
from limbeck.methods.output.born_again import confidence_weighted_loss, permute_dark_knowledge
from limbeck.methods.output.dgkd import dense_guidance_loss
from limbeck.methods.output.dist import dist_loss
from limbeck.methods.output.dkd import dkd_loss
from limbeck.methods.output.dml import mutual_loss
from limbeck.methods.output.hard_label import hard_label_loss
from limbeck.methods.output.mlkd import mlkd_loss
from limbeck.methods.output.multi_teacher import confidence_hint_loss, fused_kd_loss
from limbeck.methods.output.wkd_logit import wkd_logit_loss
from limbeck.methods.relation.cc import cc_loss
from limbeck.methods.relation.cc_kernel import kernel_correlation_loss
from limbeck.methods.relation.fsp import fsp_loss
from limbeck.methods.relation.irg import irg_loss, irg_transformation_loss
from limbeck.methods.relation.london import lipschitz_loss, spectral_norms
from limbeck.methods.relation.pkt import pkt_loss
from limbeck.methods.relation.relation import RELATION_PRESETS, RelationSpec, relation_loss
from limbeck.methods.relation.rkd import rkd_angle_loss, rkd_distance_loss
from limbeck.methods.relation.sp import sp_loss
from limbeck.methods.relation.vrm import VRMReading, vrm_class_loss, vrm_loss, vrm_sample_loss

__all__ = [
    "RELATION_PRESETS",
    "MinibatchCKA",
    "RelationSpec",
    "VRMReading",
    "WKDDistance",
    "at_loss",
    "attention_map",
    "balanced_kd_loss",
    "cat_loss",
    "cc_loss",
    "class_maps",
    "confidence_hint_loss",
    "confidence_weighted_loss",
    "cosine_distance",
    "crd_loss",
    "debiased_cka",
    "dense_guidance_loss",
    "dist_loss",
    "dkd_loss",
    "fsp_loss",
    "fused_kd_loss",
    "hard_label_loss",
    "hcl_loss",
    "hint_loss",
    "irg_loss",
    "irg_transformation_loss",
    "kd_loss",
    "kernel_correlation_loss",
    "linear_cka",
    "lipschitz_loss",
    "mlkd_loss",
    "mutual_loss",
    "noise_label_loss",
    "ofd_loss",
    "permute_dark_knowledge",
    "pkt_loss",
    "rbf_cka",
    "relation_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "sp_loss",
    "spectral_norms",
    "standardize_logits",
    "vid_loss",
    "vrm_class_loss",
    "vrm_loss",
    "vrm_sample_loss",
    "wkd_feature_loss",
    "wkd_logit_loss",
]
