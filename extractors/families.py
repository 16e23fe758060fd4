"""Families of architectures, by their names in timm, torchvision and transformers.

A family is a design: the networks that the field calls by one name. Sizes, patch sizes, kinds of attention within a
block (SE, ECA, SK), normalisations, ways of training, and later versions of one block belong to it. So ResNeXt and
Wide ResNet are ResNets, DeiT, BEiT and EVA are vision transformers, and Swin V2 is Swin. Versions of MobileNet are
families of their own, because each has another block. The names of one design in two libraries give one family, as
``mobilenet_v2`` and ``mobilenetv2_100``.
"""

import re

_ORIGIN = re.compile(r"^(?:tf|gluon|legacy|test|quantized)_")
"""Prefixes that say where a network comes from."""
_VERSION = re.compile(r"_v(?=\d)")
_STEM = re.compile(r"[a-z]+?(?=v?\d|_|$)")
"""Letters in front of a version, a number or an underscore."""
_RULES = tuple(
    (re.compile(pattern), family)
    for pattern, family in (
        # names that contain the name of another family
        (r"densenet|dla", r"\g<0>"),
        (r".*botne[tx]", "botnet"),
        (r".*halo(ne[tx]|regnet)", "halonet"),
        (r"lambda_resnet", "lambdanet"),
        (r"vit_\w+_(r\d*_s\d+|resnet\d+d?|mci)_", "vit_hybrid"),
        (r"inception(?!_next)|googlenet", "inception"),
        (r"coatne[tx]", "coatnet"),
        (r"efficientvit_m\d", "efficientvit_msra"),  # another design of the same name
        (r"inception_next|mobilenetv\d|mobilenet_edgetpu|tiny_vit|nasnet", r"\g<0>"),
        # designs with several names
        (r"\w*(resne[xs]?t|senet|res2ne[xt])", "resnet"),
        (r"(vit|\w+_vit)_|vit\d*$|deit|beit|eva|aimv|flexivit|naflexvit|samvit", "vit"),
        (r"sam2_hiera|hiera", "hiera"),
        (r"\w*darknet|cs3\w*edgenet", "darknet"),
        (r"maxx?vit", "maxvit"),
        (r"g?mixer_", "mlp_mixer"),
        (r"(eca_|dm_)?nfnet", "nfnet"),
        (r"(eca_|ese_)?vovnet", "vovnet"),
        (r"(se)?mnasnet", "mnasnet"),
        (r"rexnet", "rexnet"),
        (r"fbnet", "fbnet"),
        (r"(nf_)?regnet", "regnet"),
        (r"(gc_)?efficientnet", "efficientnet"),
    )
)


def family_in(library: str | None, architecture: str) -> str | None:
    """Return the family of an architecture that timm, torchvision or transformers defines.

    None for the architecture of any other library, which is a family of its own.

    >>> family_in("timm", "vit_base_patch16_224"), family_in("torchvision", "vit_b_16"), family_in(None, "vit_mine")
    ('vit', 'vit', None)
    >>> family_in("transformers", "roberta-12x768"), family_in("transformers", "clip_vision-12x768")
    ('bert', 'vit')
    """
    if library in {"timm", "torchvision"}:
        return family_by_name(architecture)
    return family_of_transformer(architecture) if library == "transformers" else None


def family_by_name(architecture: str) -> str:
    """Return the family of an architecture: that of the first rule for its name, or the first letters of the name.

    >>> [family_by_name(name) for name in ("mobilenetv2_100", "mobilenet_v2", "tf_efficientnet_lite0", "resnext50d")]
    ['mobilenetv2', 'mobilenetv2', 'efficientnet', 'resnet']
    >>> [family_by_name(name) for name in ("vit_b_16", "deit3_small_patch16_224", "swin_v2_t", "convnextv2_tiny")]
    ['vit', 'vit', 'swin', 'convnext']
    """
    name = _VERSION.sub("v", _ORIGIN.sub("", architecture.lower()))
    for pattern, family in _RULES:
        if match := pattern.match(name):
            return match.expand(family)
    stem = _STEM.match(name)
    return stem[0] if stem else architecture


_TRANSFORMER = re.compile(r"(\w[\w-]*?)-\d+x\d+")
"""Architecture of a model of transformers: its type, the number of its blocks, and their width."""
_TRANSFORMERS = {
    "bert": ("bert", "roberta", "distilbert", "camembert", "xlm-roberta", "xlm-roberta-xl", "electra", "mobilebert",
             "roberta-prelayernorm", "data2vec-text", "albert", "ernie"),
    "llama": ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "olmo", "olmo2"),
    "gpt2": ("gpt2", "gpt_bigcode", "openai-gpt"),
    "t5": ("t5", "mt5", "umt5", "longt5"),
    "bart": ("bart", "mbart", "blenderbot", "pegasus"),
    "vit": ("vit", "deit", "beit", "dinov2", "dinov2_with_registers", "dinov3_vit", "clip_vision", "siglip_vision",
            "vit_mae", "vit_msn", "ijepa", "data2vec-vision"),
}  # fmt: skip
"""Families of transformers, and the types of their members; any other type is a family of its own."""


def family_of_transformer(architecture: str) -> str | None:
    """Return the family of an architecture of transformers (``bert-6x384``), or None for any other name.

    >>> [family_of_transformer(name) for name in ("distilbert-6x768", "clip_text-12x512", "opt-12x768", "mynet")]
    ['bert', 'clip_text', 'opt', None]
    """
    match = _TRANSFORMER.fullmatch(architecture)
    if match is None:
        return None
    return next((family for family, types in _TRANSFORMERS.items() if match[1] in types), match[1])
