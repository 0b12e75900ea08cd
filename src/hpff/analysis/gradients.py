"""How far each module's local gradient points where backprop's does, level by level."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hpff.analysis.exits import learner_of
from hpff.analysis.networks import Loader, Network, batches
from hpff.cutting.trace import restored_state
from hpff.engine.level_weights import LevelWeights
from hpff.engine.parameters import backbone_parameters
from hpff.engine.phase import Phase
from hpff.engine.reach import Reach
from hpff.engine.step import HookedStep
from hpff.learner import LocalLearner
from hpff.torch_support.model_io import call_model, logits_of

Gradients = Mapping[nn.Parameter, Tensor]


@dataclass(frozen=True)
class GradientAgreement:
    """A level's gradient of one module's parameters beside backprop's, the mean over batches.

    Attributes:
        module: j, from 1.
        name: of the submodule after which it ends; "the head" for the last one.
        level: "independent", "cascade" (the sum of its cascades' gradients), each with weight 1,
            or "both": as trained, with the levels' weights.
        cosine: between the two, -1 to 1; None where one of them is 0.
        cosine_spread: the sample standard deviation over batches; None for a single one.
        norm_ratio: the local gradient's norm over backprop's; None where that is 0.
        norm: of the local gradient.
        backprop_norm: of backprop's.
    """

    module: int
    name: str
    level: str
    cosine: float | None
    cosine_spread: float | None
    norm_ratio: float | None
    norm: float
    backprop_norm: float

    def to_plain(self) -> dict[str, Any]:
        """Everything as plain data."""
        return dict(vars(self))


def gradient_agreement(
    network: Network, loader: Loader, *, samples: int | None = None
) -> tuple[GradientAgreement, ...]:
    """For each module and level, its local gradient beside backprop's on the same batches.

    Both are taken in training mode, batch by batch, at the weights as they are; gradients, buffers
    and random states come back as they were. Random numbers that auxiliary networks draw are not
    matched with backprop's.

    Args:
        network: one with a learner.
        loader: the batches, as in training.
        samples: how many to take at most; None for all.

    Raises:
        UserError: the network has no learner.
    """
    learner = learner_of(network)
    if not learner.method.local:
        return ()
    parameters = backbone_parameters(learner.model, learner.partition)
    found: dict[tuple[int, str], list[_Pair]] = {}
    with _training(learner):
        for inputs, targets in batches(loader, learner.model, samples):
            if len(targets) < 2:
                continue
            wanted = backprop_gradients(learner, inputs, targets)
            for level, gradients in level_gradients(learner, inputs, targets).items():
                for j, own in enumerate(parameters, 1):
                    found.setdefault((j, level), []).append(_pair(own, gradients, wanted))
    return tuple(_mean(learner, j, level, pairs) for (j, level), pairs in sorted(found.items()))


def backprop_gradients(learner: LocalLearner, inputs: Any, targets: Tensor) -> Gradients:
    """Backprop's gradient of the final loss, by the backbone's parameter."""
    parameters = [p for p in learner.model.parameters() if p.requires_grad]
    with restored_state(learner), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        loss = learner.criterion(logits_of(call_model(learner.model, inputs)), targets)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(parameters, gradients, strict=True)
    return {p: gradient for p, gradient in pairs if gradient is not None}


def level_gradients(learner: LocalLearner, inputs: Any, targets: Tensor) -> dict[str, Gradients]:
    """The learner's gradients of the backbone: of each level alone, and of both as trained."""
    count, trained = len(learner.partition), learner.auxiliary_networks.weights
    ways: dict[str, tuple[LevelWeights, Reach]] = {}
    if trained.independent:
        ways["independent"] = LevelWeights(1.0, 0.0, 1.0), Reach((1,) * count)
    if trained.cascade:
        ways["cascade"] = LevelWeights(0.0, 1.0, 1.0), learner.reach
    if len(ways) == 2:
        ways["both"] = trained, learner.reach
    return {
        level: _local_gradients(learner, inputs, targets, weights, reach)
        for level, (weights, reach) in ways.items()
    }


def _local_gradients(
    learner: LocalLearner, inputs: Any, targets: Tensor, weights: LevelWeights, reach: Reach
) -> Gradients:
    kept = {p: p.grad for p in learner.parameters()}
    step = HookedStep(
        learner.model,
        replace(learner.auxiliary_networks, weights=weights),
        reach,
        backbone_parameters(learner.model, learner.partition),
        recompute="never",
        kept=(),
        phase=Phase(),
    )
    try:
        with restored_state(learner), torch.compiler.set_stance("force_eager"):
            learner.zero_grad(set_to_none=True)
            step.run(inputs, targets)
        return {p: p.grad for p in learner.model.parameters() if p.grad is not None}
    finally:
        for parameter, gradient in kept.items():
            parameter.grad = gradient


@dataclass(frozen=True)
class _Pair:
    product: float
    norm: float
    backprop_norm: float


def _pair(own: list[nn.Parameter], local: Gradients, wanted: Gradients) -> _Pair:
    """Sums over one module's parameters; a gradient that is not there is 0."""
    product = ours = theirs = 0.0
    for parameter in own:
        a, b = local.get(parameter), wanted.get(parameter)
        product += float((a * b).sum(dtype=torch.float64)) if a is not None and b is not None else 0
        ours += float(a.double().square().sum()) if a is not None else 0.0
        theirs += float(b.double().square().sum()) if b is not None else 0.0
    return _Pair(product, math.sqrt(ours), math.sqrt(theirs))


def _mean(learner: LocalLearner, j: int, level: str, pairs: list[_Pair]) -> GradientAgreement:
    whole = [p for p in pairs if p.norm > 0 and p.backprop_norm > 0]
    cosines = [p.product / (p.norm * p.backprop_norm) for p in whole]
    ratios = [p.norm / p.backprop_norm for p in pairs if p.backprop_norm > 0]
    return GradientAgreement(
        module=j,
        name=learner.partition[j - 1].cut or "the head",
        level=level,
        cosine=statistics.fmean(cosines) if cosines else None,
        cosine_spread=statistics.stdev(cosines) if len(cosines) > 1 else None,
        norm_ratio=statistics.fmean(ratios) if ratios else None,
        norm=statistics.fmean(p.norm for p in pairs),
        backprop_norm=statistics.fmean(p.backprop_norm for p in pairs),
    )


@contextmanager
def _training(learner: LocalLearner) -> Iterator[None]:
    """Training mode; each submodule's own mode comes back after."""
    modes = {module: module.training for module in learner.modules()}
    try:
        learner.train()
        yield
    finally:
        for module, training in modes.items():
            module.training = training
