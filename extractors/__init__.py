"""placeholder"""

if __name__ != "repsim.extractors":
    raise ImportError(
        "the folder extractors/ is the package repsim.extractors: write 'import repsim.extractors' (is the checkout's root on sys.path?)"
    )
