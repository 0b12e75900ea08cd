"""Early exits: how well every auxiliary network classifies, alone and all together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from hpff.analysis.networks import Loader, Network, batches, evaluating
from hpff.analysis.probes import check_targets
from hpff.engine.auxiliary_networks import image_of
from hpff.engine.level_weights import Level
from hpff.errors import UserError
from hpff.features import mask_of
from hpff.learner import LocalLearner


@dataclass(frozen=True)
class Exit:
    """What an auxiliary network answers at the output of its module, or the model's own head.

    Attributes:
        module: j, from 1.
        name: of the submodule after which the module ends; "the head" for the last one.
        level: "independent", "cascade", or "final" for the model's own head.
        loss: the method's, the mean over samples.
        error: percent of wrong answers; None where the method gives no class scores.
        patches: n in force.
        patch_error: percent of wrong answers of single patches; None where n is 1.
        agreement: over all pairs of a sample's patches, the share that answer alike, 0 to 1; None
            where n is 1.
        samples: of how many.
    """

    module: int
    name: str
    level: Level
    loss: float
    error: float | None
    patches: int
    patch_error: float | None
    agreement: float | None
    samples: int

    def to_plain(self) -> dict[str, Any]:
        """Everything as plain data."""
        return dict(vars(self))


def exits(network: Network, loader: Loader, *, samples: int | None = None) -> tuple[Exit, ...]:
    """How well every auxiliary network of a learner classifies, and the model's own head.

    The model is in eval mode. Auxiliary networks normalize by their batch's own statistics, as in
    training, so that their errors depend a little on which samples stand together; a last batch of
    one sample is left out.

    Args:
        network: one with a learner.
        loader: the batches.
        samples: how many to take at most; None for all.

    Raises:
        UserError: the network has no learner.
    """
    learner = learner_of(network)
    tallies, _ = _tallies(learner, loader, samples)
    found = sorted(tallies.items())
    return tuple(_exit(learner, j, level, tally) for (j, level), tally in found)


def ensemble(learner: LocalLearner, inputs: Any) -> Tensor:
    """What all exits and the model's own head take for likely together, on the average.

    It errs less than the head alone where exits are about as good as it is, as those of
    ``preset="accurate"``, and takes the auxiliary networks' forward besides the model's. The
    model is in eval mode; auxiliary networks normalize by the batch's own statistics, as in
    training.

    Args:
        learner: whose auxiliary networks.
        inputs: what the model takes, two samples or more.

    Returns:
        (B, classes), probabilities; those of the head alone where no exit gives class scores.

    Raises:
        UserError: the task is a segmentation, or there is one sample.
    """
    if learner.task != "classification":
        raise UserError("an ensemble of exits is for classification; use the model's own answer")
    with torch.no_grad(), evaluating(learner):
        outputs, logits = Network.of(learner).outputs(inputs)
        answers = [
            learner.method.logits(given, learner.auxiliary_networks.contexts[level, j])
            for level, j, _, given in _answers(learner, inputs, outputs)
        ]
        return _together([*answers, logits])


def exit_errors(learner: LocalLearner, loader: Loader) -> dict[str, Any]:
    """Percent of wrong answers of every exit, as metrics of an epoch.

    Args:
        learner: whose auxiliary networks.
        loader: the batches.

    Returns:
        ``independent_errors`` and ``cascade_errors``, each by module and with the model's own head
        last; nothing of a level that is off, or whose networks give no class scores. Where there
        is one of them, also ``ensemble_error_percent``, of all together.
    """
    tallies, together = _tallies(learner, loader, None)
    found = [_exit(learner, j, level, tally) for (j, level), tally in sorted(tallies.items())]
    metrics: dict[str, Any] = {}
    for level in ("independent", "cascade"):
        own = [e.error for e in found if e.level in (level, "final")]
        errors = [error for error in own if error is not None]
        if len(own) == len(errors) > 1:
            metrics[f"{level}_errors"] = errors
    if metrics:
        metrics["ensemble_error_percent"] = 100 * together.wrong / together.count
    return metrics


def _tallies(
    learner: LocalLearner, loader: Loader, samples: int | None
) -> tuple[dict[tuple[int, Level], _Tally], _Tally]:
    """Of every exit and the head by themselves, and of all together."""
    tallies: dict[tuple[int, Level], _Tally] = {}
    together, cuts = _Tally(), Network.of(learner)
    with torch.no_grad(), evaluating(learner):
        for inputs, targets in batches(loader, learner.model, samples):
            if len(targets) < 2:
                continue
            check_targets(targets, learner.num_classes)
            outputs, logits = cuts.outputs(inputs)
            scores: list[Tensor | None] = []
            for level, j, given, answered in _answers(learner, inputs, outputs):
                tally = tallies.setdefault((j, level), _Tally())
                scores.append(_take(learner, level, j, given, answered, targets, tally))
            final = tallies.setdefault((len(cuts), "final"), _Tally())
            loss = learner.criterion(logits, targets)
            final.add(loss, logits, targets)
            together.add(loss, _together([*scores, logits]), targets)
    return tallies, together


def _answers(
    learner: LocalLearner, inputs: Any, outputs: Sequence[Tensor]
) -> Iterator[tuple[Level, int, list[Tensor], Any]]:
    """What each auxiliary network is given at its module's output, and gives."""
    networks = learner.auxiliary_networks
    image, mask = image_of(inputs), mask_of(learner.model, inputs)
    for level, j in networks.contexts:
        features = networks.features(j, outputs[j - 1], image, mask)
        fusion = networks.at(level, j)
        given = [features, *networks.images(fusion, image)]
        yield level, j, given, fusion(*given)


def _together(scores: Sequence[Tensor | None]) -> Tensor:
    """The mean of probabilities over those that are class scores."""
    return torch.stack([each.softmax(1) for each in scores if each is not None]).mean(0)


def learner_of(network: Network) -> LocalLearner:
    """The network's learner.

    Raises:
        UserError: it has none.
    """
    if network.learner is None:
        raise UserError(
            f"{network.label or 'the network'}: has no auxiliary networks, expected a learner, or "
            "the checkpoint of a run"
        )
    return network.learner


def agreement(answers: Tensor) -> Tensor:
    """The share of pairs of patches that answer alike.

    Args:
        answers: (patches, B), the class that each patch of a sample takes for the likeliest.

    Returns:
        (B,), each from 0 to 1.
    """
    pairs = list(combinations(range(len(answers)), 2))
    alike = [(answers[a] == answers[b]).double() for a, b in pairs]
    return torch.stack(alike).mean(0)


@dataclass
class _Tally:
    """Sums over samples."""

    count: int = 0
    loss: float = 0.0
    wrong: int = 0
    scored: bool = True
    patches: int = 1
    wrong_patches: float = 0.0
    alike: float = 0.0

    def add(self, loss: Tensor, logits: Tensor | None, targets: Tensor) -> None:
        self.count += len(targets)
        self.loss += float(loss) * len(targets)
        if logits is None:
            self.scored = False
        else:
            self.wrong += int((logits.argmax(1) != targets).sum())


def _take(
    learner: LocalLearner,
    level: Level,
    j: int,
    given: Sequence[Tensor],
    outputs: Any,
    targets: Tensor,
    tally: _Tally,
) -> Tensor | None:
    """Add what one auxiliary network made of one batch; its class scores."""
    networks, method = learner.auxiliary_networks, learner.method
    fusion, context = networks.at(level, j), networks.contexts[level, j]
    scores = method.logits(outputs, context)
    tally.add(method.loss(outputs, targets, context), scores, targets)
    tally.patches = fusion.patches
    if fusion.patches == 1 or not tally.scored:
        return scores
    each = fusion.of_patches(*given)
    count = fusion.patches if fusion.pieces else fusion.patches**2
    answers = []
    for index in range(count):
        logits = method.logits(_at(each, index), context)
        assert logits is not None
        answers.append(logits.argmax(1))
    stacked = torch.stack(answers)
    tally.wrong_patches += float((stacked != targets).double().mean(0).sum())
    tally.alike += float(agreement(stacked).sum())
    return scores


def _at(outputs: Any, index: int) -> Any:
    if isinstance(outputs, Tensor):
        return outputs[index]
    if isinstance(outputs, dict):
        return {key: _at(value, index) for key, value in outputs.items()}
    return tuple(_at(value, index) for value in outputs)


def _exit(learner: LocalLearner, j: int, level: Level, tally: _Tally) -> Exit:
    parted = tally.patches > 1 and tally.scored
    return Exit(
        module=j,
        name="the head" if level == "final" else learner.partition[j - 1].end,
        level=level,
        loss=tally.loss / tally.count,
        error=100 * tally.wrong / tally.count if tally.scored else None,
        patches=tally.patches,
        patch_error=100 * tally.wrong_patches / tally.count if parted else None,
        agreement=tally.alike / tally.count if parted else None,
        samples=tally.count,
    )
