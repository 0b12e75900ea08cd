"""What a module's output means: maps, tokens, sequences or vectors, one file a kind."""

from hpff.features.base import Facts, FeatureKind
from hpff.features.finding import Finder, Given, check_given
from hpff.features.maps import Maps
from hpff.features.masks import mask_of
from hpff.features.sequences import Sequences
from hpff.features.tokens import Tokens
from hpff.features.vectors import Vectors

__all__ = [
    "Facts",
    "FeatureKind",
    "Finder",
    "Given",
    "Maps",
    "Sequences",
    "Tokens",
    "Vectors",
    "check_given",
    "mask_of",
]
