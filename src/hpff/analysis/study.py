"""All analyses of one or several networks together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import hpff
from hpff.analysis.attention import activation_maps, class_activation_maps
from hpff.analysis.cka import Similarity, cka
from hpff.analysis.embeddings import Embedding, embeddings
from hpff.analysis.exits import Exit, exits
from hpff.analysis.gradients import GradientAgreement, gradient_agreement
from hpff.analysis.networks import Network
from hpff.analysis.probes import Probe, probes
from hpff.analysis.subjects import Subject, check_comparable
from hpff.errors import UserError

MOST_SHOWN = 6  # Modules whose t-SNE and maps are drawn.


@dataclass(frozen=True)
class Options:
    """How much is looked at.

    Attributes:
        samples: of the test images, and of the training images that probes are fitted on; at most.
        embedded: test images in t-SNE, PCA and the separation scores.
        gradient_batches: training batches over which gradients are compared.
        images: numbers of the test images whose maps are drawn; None: ``pictures`` random ones.
        pictures: how many.
        seed: of what is drawn at random.
    """

    samples: int = 2000
    embedded: int = 500
    gradient_batches: int = 4
    images: tuple[int, ...] | None = None
    pictures: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        lowest = {"samples": 8, "embedded": 8, "gradient_batches": 1, "pictures": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                option = name.replace("_", "-")
                raise UserError(
                    f"--{option}: is {getattr(self, name)}, expected a whole number of at least "
                    f"{least}"
                )


@dataclass(frozen=True, eq=False)
class Attention:
    """Where a network looks in some images.

    Attributes:
        modules: those that are shown, by j.
        activations: for each of them maps (B, h, w) from 0 to 1; None where it has no maps.
        for_class: likewise, what speaks for the true class.
        answers: (B,), what the network takes the images for.
    """

    modules: tuple[int, ...]
    activations: tuple[Tensor | None, ...]
    for_class: tuple[Tensor | None, ...]
    answers: Tensor


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found of one network."""

    subject: Subject
    probes: tuple[Probe, ...]
    exits: tuple[Exit, ...]
    gradients: tuple[GradientAgreement, ...]
    embeddings: tuple[Embedding, ...]
    attention: Attention | None

    @property
    def label(self) -> str:
        """What the network is called."""
        return self.subject.label

    def to_plain(self) -> dict[str, Any]:
        """Everything but pictures as plain data."""
        run, network = self.subject.run, self.subject.network
        return {
            "label": self.label,
            "run": None if run is None else str(run.path),
            "modules": [
                {"module": p.module, "name": p.name, "shape": list(p.shape)} for p in network.places
            ],
            "probes": [each.to_plain() for each in self.probes],
            "exits": [each.to_plain() for each in self.exits],
            "gradients": [each.to_plain() for each in self.gradients],
            "separation": [each.to_plain() for each in self.embeddings],
        }


@dataclass(frozen=True, eq=False)
class Study:
    """What was found of several networks.

    Attributes:
        findings: of each.
        similarities: CKA of the first network with itself, and of each other with the first.
        images: the pictures whose maps are drawn, (B, C, H, W) from 0 to 1, and their classes.
    """

    findings: tuple[Findings, ...]
    similarities: tuple[Similarity, ...]
    options: Options
    data: str
    class_names: tuple[str, ...]
    images: Tensor
    labels: Tensor
    numbers: tuple[int, ...] = field(default=())

    def to_plain(self) -> dict[str, Any]:
        """Everything but pictures as plain data."""
        return {
            "data": self.data,
            "options": dict(vars(self.options)),
            "networks": [each.to_plain() for each in self.findings],
            "cka": [each.to_plain() for each in self.similarities],
            "hpff": hpff.__version__,
        }


def study(
    subjects: Sequence[Subject],
    options: Options | None = None,
    *,
    data_given: bool = False,
    observe: Callable[[str], None] = lambda _: None,
) -> Study:
    """Analyze networks that are shown the same images.

    Args:
        subjects: one or more; CKA is with the first.
        options: how much is looked at.
        data_given: whether the data were named for all of them.
        observe: called before each piece of work; there are :func:`pieces` of them.

    Raises:
        UserError: they are not of the same classes or data; an option does not fit the data.
    """
    options = options or Options()
    check_comparable(subjects, given=data_given)
    first = subjects[0]
    numbers = _numbers(first, options)
    images, labels = first.images(numbers) if numbers else (torch.empty(0), torch.empty(0))
    findings = tuple(_findings(each, options, numbers, observe) for each in subjects)
    similarities = []
    for other in subjects:
        observe(f"{other.label}: CKA")
        ours, theirs = first.test(options.samples), other.test(options.samples)
        if other is first:
            similarities.append(cka(first.network, first.network, ours))
        else:
            similarities.append(cka(first.network, other.network, ours, second_loader=theirs))
    return Study(
        findings=findings,
        similarities=tuple(similarities),
        options=options,
        data=first.dataset.name,
        class_names=first.dataset.class_names,
        images=first.visible(images) if numbers else images,
        labels=labels,
        numbers=numbers,
    )


def pieces(subjects: Sequence[Subject]) -> int:
    """How many pieces of work a study of these has."""
    return 6 * len(subjects)


def shown_modules(network: Network) -> tuple[int, ...]:
    """At most ``MOST_SHOWN`` modules, evenly spread, the first and the last among them."""
    count = len(network)
    if count <= MOST_SHOWN:
        return tuple(range(1, count + 1))
    step = (count - 1) / (MOST_SHOWN - 1)
    return tuple(1 + round(step * index) for index in range(MOST_SHOWN))


def _findings(
    subject: Subject,
    options: Options,
    numbers: tuple[int, ...],
    observe: Callable[[str], None],
) -> Findings:
    network, samples = subject.network, options.samples
    local = network.learner is not None
    observe(f"{subject.label}: probes")
    probed = probes(
        network, subject.train(samples), subject.test(samples), num_classes=subject.num_classes
    )
    observe(f"{subject.label}: early exits")
    exited = exits(network, subject.test(samples)) if local else ()
    observe(f"{subject.label}: gradients")
    batch = min(subject.batch_size, len(subject.dataset.train))
    trained = options.gradient_batches * batch
    agreed = gradient_agreement(network, subject.training(), samples=trained) if local else ()
    observe(f"{subject.label}: t-SNE")
    drawn = embeddings(
        network,
        subject.drawn(options.embedded),
        samples=options.embedded,
        tsne=shown_modules(network),
        seed=options.seed,
    )
    observe(f"{subject.label}: maps")
    looked = _attention(subject, numbers) if numbers else None
    return Findings(subject, probed, exited, agreed, drawn, looked)


def _attention(subject: Subject, numbers: tuple[int, ...]) -> Attention:
    images, labels = subject.images(numbers)
    shown = shown_modules(subject.network)
    places = [j - 1 for j in shown]
    activations = activation_maps(subject.network, images)
    for_class = class_activation_maps(subject.network, images, labels)
    with torch.no_grad():
        answers = subject.network.outputs(images)[1].argmax(1)
    return Attention(
        shown,
        tuple(activations[place] for place in places),
        tuple(for_class[place] for place in places),
        answers.cpu(),
    )


def _numbers(subject: Subject, options: Options) -> tuple[int, ...]:
    if options.images is not None:
        return options.images
    count = len(subject.dataset.test)
    random = torch.Generator().manual_seed(options.seed)
    return tuple(torch.randperm(count, generator=random)[: options.pictures].tolist())
