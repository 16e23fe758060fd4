"""Families of architectures by their names."""

import pytest
import timm

from repsim.extractors import torchvision_models
from repsim.extractors.factory import library_of
from repsim.extractors.families import family_by_name, family_in

NAMES = {
    "resnet": "resnet50 resnet18d resnext50_32x4d wide_resnet50_2 seresnet50 ecaresnet50t resnetv2_50x1_bit "
    "nf_resnet50 resnest50d res2net50_26w_4s cspresnet50 legacy_senet154 skresnet18 resnet50_clip resnetrs50",
    "vit": "vit_base_patch16_224 vit_b_16 deit_tiny_patch16_224 deit3_small_patch16_224 beitv2_base_patch16_224 "
    "eva02_tiny_patch14_224 vit_small_patch14_dinov2 vit_relpos_small_patch16_224 flexivit_base samvit_base_patch16",
    "vit_hybrid": "vit_base_r50_s16_224 vit_tiny_r_s16_p8_224",
    "mobilenetv2": "mobilenetv2_100 mobilenet_v2",
    "mobilenetv3": "tf_mobilenetv3_large_100 mobilenet_v3_small mobilenetv3_rw",
    "mobilenetv4": "mobilenetv4_hybrid_medium",
    "mobilenet_edgetpu": "mobilenet_edgetpu_v2_m",
    "efficientnet": "efficientnet_b0 tf_efficientnet_lite0 efficientnetv2_rw_s efficientnet_v2_s "
    "gc_efficientnetv2_rw_t",
    "densenet": "densenet121 densenetblur121d",
    "dla": "dla60_res2net",
    "inception": "inception_v3 inception_resnet_v2 googlenet",
    "inception_next": "inception_next_tiny",
    "swin": "swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swin_v2_t swin_s3_tiny_224",
    "convnext": "convnextv2_tiny convnext_base",
    "regnet": "regnetx_002 regnet_y_400mf nf_regnet_b1 regnetz_b16",
    "efficientvit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "tiny_vit": "tiny_vit_5m_224",
    "vitamin": "vitamin_small_224",
    "coat": "coat_tiny",
    "coatnet": "coatnet_0_224 coatnext_nano_rw_224",
    "mnasnet": "mnasnet_100 semnasnet_100 mnasnet1_0",
    "nasnet": "nasnetalarge",
    "vgg": "vgg16_bn",
    "botnet": "botnet26t_256 halo2botnet50ts_256",
    "darknet": "cspdarknet53 cs3se_edgenet_x",
}


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, names in NAMES.items() for name in names.split()]
)
def test_family_of_an_architecture(family: str, name: str) -> None:
    assert family_by_name(name) == family


def test_every_architecture_of_the_libraries_has_a_family() -> None:
    of_timm = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("timm.")]
    names = of_timm + torchvision_models.names()  # without models that a test has registered
    families = {name: family_in(library_of(name), name) for name in names}
    assert None not in families.values()
    assert 80 < len(set(families.values())) < 130  # neither all in one nor each its own
    letters = {name for name, family in families.items() if not family or len(family) < 3}
    assert not letters, "the rule for other names has cut too much"


def test_networks_that_no_library_defines_have_no_family() -> None:
    assert library_of("digits_resnet") is None
    assert library_of("mynet") is None
    assert family_in(None, "resnet50") is None
