"""See what the modules learn: CKA, probes, early exits, gradients, t-SNE, maps, and a report."""

from hpff.analysis.attention import activation_maps, class_activation_maps
from hpff.analysis.cka import CKA, Similarity, cka
from hpff.analysis.embeddings import Embedding, Separation, embeddings, separation
from hpff.analysis.exits import Exit, ensemble, exits
from hpff.analysis.gradients import GradientAgreement, gradient_agreement
from hpff.analysis.networks import Network
from hpff.analysis.probes import Probe, RidgeClassifier, probes

__all__ = [
    "CKA",
    "Embedding",
    "Exit",
    "GradientAgreement",
    "Network",
    "Probe",
    "RidgeClassifier",
    "Separation",
    "Similarity",
    "activation_maps",
    "cka",
    "class_activation_maps",
    "embeddings",
    "ensemble",
    "exits",
    "gradient_agreement",
    "probes",
    "separation",
]
