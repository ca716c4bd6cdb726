"""The table of methods: every name that ``--method`` takes, and what stands behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Final

from limbeck.core.errors import UnknownNameError
from limbeck.methods.base import Method, MethodEntry, Stage
from limbeck.methods.ce import CE, CEConfig
from limbeck.methods.combine import combined_entry, method_names
from limbeck.methods.feature.at import AT, ATConfig
from limbeck.methods.feature.cat_kd import CATKD, CATKDConfig
from limbeck.methods.feature.cka import CKA, CKAConfig
from limbeck.methods.feature.crd import CRD, CRDConfig
from limbeck.methods.feature.fitnet import FitNetConfig, fitnet_stages
from limbeck.methods.feature.fitnet_one_stage import FitNetOneStage, FitNetOneStageConfig
from limbeck.methods.feature.foundation import Foundation, FoundationConfig
from limbeck.methods.feature.ofd import OFD, OFDConfig
from limbeck.methods.feature.reviewkd import ReviewKD, ReviewKDConfig
from limbeck.methods.feature.simkd import SimKD, SimKDConfig
from limbeck.methods.feature.vid import VID, VIDConfig
from limbeck.methods.feature.wkd_feature import WKDFeature, WKDFeatureConfig
from limbeck.methods.noise_label import NoiseLabel, NoiseLabelConfig
from limbeck.methods.output.bkd import BKD, BKDConfig
from limbeck.methods.output.born_again import BornAgainConfig, born_again_stages
from limbeck.methods.output.ctkd import CTKD, CTKDConfig
from limbeck.methods.output.dgkd import DGKDConfig, dgkd_stages
from limbeck.methods.output.dist import DIST, DISTConfig
from limbeck.methods.output.dkd import DKD, DKDConfig
from limbeck.methods.output.dml import DMLConfig, dml_stages
from limbeck.methods.output.hard_label import HardLabel, HardLabelConfig
from limbeck.methods.output.kd import KD, KDConfig
from limbeck.methods.output.lskd import LSKDConfig
from limbeck.methods.output.mlkd import MLKD, MLKDConfig
from limbeck.methods.output.multi_teacher import MultiTeacher, MultiTeacherConfig
from limbeck.methods.output.sinkhorn_logit import SinkhornLogitConfig
from limbeck.methods.output.soft_label import SoftLabelConfig
from limbeck.methods.output.takd import TAKDConfig, takd_stages
from limbeck.methods.output.wkd_logit import WKDLogit, WKDLogitConfig
from limbeck.methods.relation.cc import CC, CCConfig
from limbeck.methods.relation.cc_kernel import CCKernel, CCKernelConfig
from limbeck.methods.relation.fsp import FSPConfig, fsp_stages
from limbeck.methods.relation.irg import IRG, IRGConfig
from limbeck.methods.relation.london import LONDON, LONDONConfig
from limbeck.methods.relation.pkt import PKT, PKTConfig
from limbeck.methods.relation.relation import Relation, RelationConfig
from limbeck.methods.relation.rkd import RKD, RKDConfig
from limbeck.methods.relation.sp import SP, SPConfig
from limbeck.methods.relation.vrm import VRM, VRMConfig

__all__ = ["METHODS", "find_method"]


def _one_stage(method: type[Method[Any]]) -> Callable[[Any], tuple[Stage, ...]]:
    """The stages of a method that trains in one."""
    return lambda config: (Stage(name="train", method=method, config=config),)


_ASSISTANTS = MappingProxyType(
    {
        "assistants": "networks between teacher and student in size, the largest first "
        "(--assistants A,B: names of models, or folders of finished runs)"
    }
)

METHODS: Final[Mapping[str, MethodEntry]] = MappingProxyType(
    {
        "at": MethodEntry(
            family="feature",
            config=ATConfig,
            stages=_one_stage(AT),
            card="limbeck.methods.feature.at",
        ),
        "bkd": MethodEntry(
            family="output",
            config=BKDConfig,
            stages=_one_stage(BKD),
            card="limbeck.methods.output.bkd",
        ),
        "born_again": MethodEntry(
            family="output",
            config=BornAgainConfig,
            stages=born_again_stages,
            card="limbeck.methods.output.born_again",
        ),
        "cat_kd": MethodEntry(
            family="feature",
            config=CATKDConfig,
            stages=_one_stage(CATKD),
            card="limbeck.methods.feature.cat_kd",
        ),
        "cc": MethodEntry(
            family="relation",
            config=CCConfig,
            stages=_one_stage(CC),
            card="limbeck.methods.relation.cc",
        ),
        "cc_kernel": MethodEntry(
            family="relation",
            config=CCKernelConfig,
            stages=_one_stage(CCKernel),
            card="limbeck.methods.relation.cc_kernel",
        ),
        "ce": MethodEntry(
            family="none", config=CEConfig, stages=_one_stage(CE), card="limbeck.methods.ce"
        ),
        "cka": MethodEntry(
            family="feature",
            config=CKAConfig,
            stages=_one_stage(CKA),
            card="limbeck.methods.feature.cka",
        ),
        "crd": MethodEntry(
            family="feature",
            config=CRDConfig,
            stages=_one_stage(CRD),
            card="limbeck.methods.feature.crd",
        ),
        "ctkd": MethodEntry(
            family="output",
            config=CTKDConfig,
            stages=_one_stage(CTKD),
            card="limbeck.methods.output.ctkd",
        ),
        "dgkd": MethodEntry(
            family="output",
            config=DGKDConfig,
            stages=dgkd_stages,
            card="limbeck.methods.output.dgkd",
            required=_ASSISTANTS,
        ),
        "dist": MethodEntry(
            family="output",
            config=DISTConfig,
            stages=_one_stage(DIST),
            card="limbeck.methods.output.dist",
        ),
        "dkd": MethodEntry(
            family="output",
            config=DKDConfig,
            stages=_one_stage(DKD),
            card="limbeck.methods.output.dkd",
        ),
        "dml": MethodEntry(
            family="output",
            config=DMLConfig,
            stages=dml_stages,
            card="limbeck.methods.output.dml",
        ),
        "fitnet": MethodEntry(
            family="feature",
            config=FitNetConfig,
            stages=fitnet_stages,
            card="limbeck.methods.feature.fitnet",
        ),
        "fitnet_one_stage": MethodEntry(
            family="feature",
            config=FitNetOneStageConfig,
            stages=_one_stage(FitNetOneStage),
            card="limbeck.methods.feature.fitnet_one_stage",
        ),
        "foundation": MethodEntry(
            family="feature",
            config=FoundationConfig,
            stages=_one_stage(Foundation),
            card="limbeck.methods.feature.foundation",
        ),
        "fsp": MethodEntry(
            family="relation",
            config=FSPConfig,
            stages=fsp_stages,
            card="limbeck.methods.relation.fsp",
        ),
        "hard_label": MethodEntry(
            family="output",
            config=HardLabelConfig,
            stages=_one_stage(HardLabel),
            card="limbeck.methods.output.hard_label",
        ),
        "irg": MethodEntry(
            family="relation",
            config=IRGConfig,
            stages=_one_stage(IRG),
            card="limbeck.methods.relation.irg",
        ),
        "kd": MethodEntry(
            family="output",
            config=KDConfig,
            stages=_one_stage(KD),
            card="limbeck.methods.output.kd",
        ),
        "london": MethodEntry(
            family="relation",
            config=LONDONConfig,
            stages=_one_stage(LONDON),
            card="limbeck.methods.relation.london",
        ),
        "lskd": MethodEntry(
            family="output",
            config=LSKDConfig,
            stages=_one_stage(KD),
            card="limbeck.methods.output.lskd",
        ),
        "mlkd": MethodEntry(
            family="output",
            config=MLKDConfig,
            stages=_one_stage(MLKD),
            card="limbeck.methods.output.mlkd",
        ),
        "multi_teacher": MethodEntry(
            family="output",
            config=MultiTeacherConfig,
            stages=_one_stage(MultiTeacher),
            card="limbeck.methods.output.multi_teacher",
        ),
        "noise_label": MethodEntry(
            family="none",
            config=NoiseLabelConfig,
            stages=_one_stage(NoiseLabel),
            card="limbeck.methods.noise_label",
        ),
        "ofd": MethodEntry(
            family="feature",
            config=OFDConfig,
            stages=_one_stage(OFD),
            card="limbeck.methods.feature.ofd",
        ),
        "pkt": MethodEntry(
            family="relation",
            config=PKTConfig,
            stages=_one_stage(PKT),
            card="limbeck.methods.relation.pkt",
        ),
        "relation": MethodEntry(
            family="relation",
            config=RelationConfig,
            stages=_one_stage(Relation),
            card="limbeck.methods.relation.relation",
        ),
        "reviewkd": MethodEntry(
            family="feature",
            config=ReviewKDConfig,
            stages=_one_stage(ReviewKD),
            card="limbeck.methods.feature.reviewkd",
        ),
        "rkd": MethodEntry(
            family="relation",
            config=RKDConfig,
            stages=_one_stage(RKD),
            card="limbeck.methods.relation.rkd",
        ),
        "simkd": MethodEntry(
            family="feature",
            config=SimKDConfig,
            stages=_one_stage(SimKD),
            card="limbeck.methods.feature.simkd",
        ),
        "sinkhorn_logit": MethodEntry(
            family="output",
            config=SinkhornLogitConfig,
            stages=_one_stage(WKDLogit),
            card="limbeck.methods.output.sinkhorn_logit",
        ),
        "soft_label": MethodEntry(
            family="output",
            config=SoftLabelConfig,
            stages=_one_stage(KD),
            card="limbeck.methods.output.soft_label",
        ),
        "sp": MethodEntry(
            family="relation",
            config=SPConfig,
            stages=_one_stage(SP),
            card="limbeck.methods.relation.sp",
        ),
        "takd": MethodEntry(
            family="output",
            config=TAKDConfig,
            stages=takd_stages,
            card="limbeck.methods.output.takd",
            required=_ASSISTANTS,
        ),
        "vid": MethodEntry(
            family="feature",
            config=VIDConfig,
            stages=_one_stage(VID),
            card="limbeck.methods.feature.vid",
        ),
        "vrm": MethodEntry(
            family="relation",
            config=VRMConfig,
            stages=_one_stage(VRM),
            card="limbeck.methods.relation.vrm",
        ),
        "wkd_feature": MethodEntry(
            family="feature",
            config=WKDFeatureConfig,
            stages=_one_stage(WKDFeature),
            card="limbeck.methods.feature.wkd_feature",
        ),
        "wkd_logit": MethodEntry(
            family="output",
            config=WKDLogitConfig,
            stages=_one_stage(WKDLogit),
            card="limbeck.methods.output.wkd_logit",
        ),
    }
)


def find_method(name: str) -> MethodEntry:
    """The row of the table called ``name``; for names joined by "+", the row they make together.

    Raises:
        UnknownNameError: with the nearest names, if there is none.
        SettingsError: if the methods cannot be combined.

    Example:
        >>> find_method("kd").family
        'output'
        >>> list(find_method("kd+at").config.model_fields)
        ['label_smoothing', 'kd', 'at']
    """
    names = method_names(name)
    for part in names:
        if part not in METHODS:
            raise UnknownNameError(
                "method", part, METHODS, hint="`limbeck methods` lists what they do."
            )
    return METHODS[names[0]] if len(names) == 1 else _combined(names)


@cache  # one class of settings for each combination
def _combined(names: tuple[str, ...]) -> MethodEntry:
    return combined_entry({name: METHODS[name] for name in names})
