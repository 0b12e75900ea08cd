"""What the keys of a recipe demand of each other, and of the names they use.

Each check takes the valid values (full key path to value) and gives a fault (key, message) or None;
it raises KeyError where a value it needs is itself at fault.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator

from hpff import data, models
from hpff.errors import UserError, did_you_mean
from hpff.schema import Values
from hpff.settings import faults_between
from hpff.torch_support.weightless import weightless

Fault = tuple[str, str] | None

_SET_BY_DATA = ("num_classes", "in_channels", "in_chans")


def _modules_given(values: Values) -> Fault:
    if values["method"].name == "bp" or values["modules"] is not None:
        return None
    return "modules", (
        f"is missing, expected the number of local modules or a list of submodule names "
        f"for method {values['method'].name}"
    )


def _warmup_fits(values: Values) -> Fault:
    warmup, epochs = values["schedule.warmup_epochs"], values["epochs"]
    if warmup <= epochs:
        return None
    return "schedule.warmup_epochs", f"is {warmup}, expected at most epochs ({epochs})"


def _warmup_rises(values: Values) -> Fault:
    start, full = values["schedule.warmup_lr"], values["optimizer.lr"]
    if not values["schedule.warmup_epochs"] or start <= full:
        return None
    return "schedule.warmup_lr", (
        f"is {start}, expected at most the rate that it warms up to (optimizer.lr {full}), such as "
        f"{full / 100:g}"
    )


def _some_epoch_has_a_rate(values: Values) -> Fault:
    """A cosine ends at rate 0, and a first epoch of warm-up has the rate `warmup_lr`."""
    if values["epochs"] > 1:
        return None
    if values["schedule.warmup_epochs"] and values["schedule.warmup_lr"] == 0:
        return "schedule.warmup_lr", "is 0 in the only epoch, expected a number above 0"
    if values["schedule.name"] == "cosine" and not values["schedule.warmup_epochs"]:
        return "epochs", (
            "is 1, which a cosine schedule would train at rate 0; expected at least 2, or "
            "schedule.name=constant"
        )
    return None


def _nesterov_has_momentum(values: Values) -> Fault:
    momentum = values["optimizer.momentum"] > 0 or values["optimizer.name"] != "sgd"
    if not values["optimizer.nesterov"] or momentum:
        return None
    return "optimizer.nesterov", "is true with momentum 0, expected false or momentum above 0"


def _batch_is_more_than_one(values: Values) -> Fault:
    if values["batch_size"] >= 2:
        return None
    return "batch_size", "is 1, expected at least 2 (batch normalization needs two images)"


def _subset_fills_a_batch(values: Values) -> Fault:
    subset, batch_size = values["subset"], values["batch_size"]
    if subset is None or subset >= batch_size:
        return None
    return "subset", f"is {subset}, expected at least batch_size ({batch_size})"


def _data_is_known(values: Values) -> Fault:
    """A name such as `parquet:PATH` is known by what stands before the colon."""
    name = values["data"]
    known = [entry for entry, _ in data.names()]
    if name.partition(":")[0] in [entry.partition(":")[0] for entry in known]:
        return None
    hint = did_you_mean(name, known)
    return "data", f"is {name}, expected a name from `hpff list datasets`{hint}"


def _iterations_fit(values: Values) -> Fault:
    """A stretch of equal length for each epoch."""
    iterations, epochs = values["iterations"], values["epochs"]
    if iterations is None or iterations % epochs == 0:
        return None
    return "iterations", f"is {iterations}, expected a multiple of epochs ({epochs})"


def _crop_has_two_sides(values: Values) -> Fault:
    crop = values["crop_size"]
    if crop is None or len(crop) == 2:
        return None
    return "crop_size", f"has {len(crop)} sides, expected height and width, such as [512, 1024]"


def _is_for_the_task(values: Values) -> Fault:
    """What data that are known by name are for, and what the model and other keys are for."""
    name, model = values["data"], values["model"].name
    dense = name in data.SEGMENTATION_DATASETS or name.startswith("pairs:")
    if not dense and ":" in name:
        return None  # The data themselves will tell.
    try:
        segments = models.is_dense(model)
    except UserError:
        return None  # `_model_is_known` says it.
    if segments != dense:
        return "model", (
            f"is {model}, which classifies {'images' if dense else 'pixels'}, but {name} is for "
            f"{'segmentation' if dense else 'classification'}; expected a model for that, such as "
            f"{'torchvision/deeplabv3_resnet50' if dense else 'resnet32'}"
        )
    for key in ("crop_size", "iterations"):
        if not dense and values[key] is not None:
            return key, f"is for segmentation, and {name} for classification, expected null"
    if dense and values["image_size"] is not None:
        return "image_size", "is for classification, expected null (crop_size is for segmentation)"
    return None


def _treatment_is_for_paths(values: Values) -> Fault:
    treatment, name = values["treatment"], values["data"]
    if treatment == "auto" or ":" in name:
        return None
    return "treatment", (
        f"is {treatment}, but {name} has a published one of its own; expected auto (others are "
        "for folder:PATH and parquet:FOLDER)"
    )


def _model_is_known(values: Values) -> Fault:
    """Built without memory for its weights.

    What a library's constructor finds wrong with that is left to the real thing.
    """
    model = values["model"]
    for key in _SET_BY_DATA:
        if key in model.settings:
            return f"model.{key}", "is what the data say, expected no such key"
    fault = _fault_of_model(model.name, json.dumps(model.settings, sort_keys=True, default=repr))
    return ("model", fault) if fault else None


@functools.lru_cache(maxsize=128)
def _fault_of_model(name: str, settings: str) -> str | None:
    """Settings come as JSON, by which a model that was built before is known again."""
    try:
        with weightless():
            models.create(name, **json.loads(settings))
    except UserError as error:
        known = error.__cause__ is None or isinstance(error.__cause__, TypeError)
        own = known or models.resolve(name)[0] == "hpff"
        return str(error) if own else None
    return None


def _ranks_are_used(values: Values) -> Fault:
    parallel, ranks, replicas = values["parallel"], values["ranks"], values["replicas"]
    if replicas > 1 and parallel != "modules":
        return "replicas", (
            f"is {replicas} with parallel {parallel}, expected 1, or parallel=modules; with "
            "parallel=data the key ranks alone says how many share a batch"
        )
    if parallel == "none" and ranks > 1:
        return "ranks", f"is {ranks} with parallel none, expected parallel=modules or parallel=data"
    key, shares = ("ranks", ranks) if parallel == "data" else ("replicas", replicas)
    batch = values["batch_size"]
    if shares > 1 and (batch % shares or batch // shares < 2):
        return key, (
            f"is {shares}, expected a divisor of batch_size ({batch}) that leaves two images or "
            "more: each takes as many"
        )
    return None


def _modules_can_be_shared_out(values: Values) -> Fault:
    if values["parallel"] != "modules":
        return None
    if values["method"].name == "bp":
        return "parallel", "is modules, but bp has one module; expected data, or a local method"
    if not values["step_per_module"]:
        return "step_per_module", "is false, expected true with parallel modules"
    modules, ranks = values["modules"], values["ranks"]
    count = modules if isinstance(modules, int) else len(modules or ()) + 1
    if ranks > count:
        return "ranks", f"is {ranks}, expected at most the number of modules ({count})"
    return None


def _statistics_can_be_synchronized(values: Values) -> Fault:
    if not values["sync_batch_norm"]:
        return None
    parallel, replicas = values["parallel"], values["replicas"]
    if parallel != "data" and (parallel != "modules" or replicas == 1):
        return "sync_batch_norm", (
            f"is true with parallel {parallel}, where every batch is whole; expected false, "
            "parallel=data, or replicas with parallel=modules"
        )
    if values["compile"]:
        return "sync_batch_norm", "is true, but compiled blocks cannot; expected compile=false"
    return None


def _graph_can_be_recorded(values: Values) -> Fault:
    if not values["cuda_graph"]:
        return None
    for key, wanted in (("device", ("auto", "cuda")), ("parallel", ("none",))):
        if values[key] not in wanted:
            return "cuda_graph", (
                f"is true with {key} {values[key]}, expected false, or {key}={wanted[-1]}"
            )
    return None


def _compiled_blocks_keep_their_graphs(values: Values) -> Fault:
    recompute = values["recompute"]
    whole = values["method"].name == "bp" and recompute == "blocks"
    if not values["compile"] or recompute == "never" or whole:
        return None
    return "compile", (
        f"is true with recompute {recompute}, which sees no operation inside compiled "
        "blocks; expected false, or recompute=never, or method=bp with recompute=blocks"
    )


def _streams_are_of_one_process(values: Values) -> Fault:
    if values["streams"] == 1 or values["parallel"] == "none":
        return None
    return "streams", (
        f"is {values['streams']} with parallel {values['parallel']}, expected 1, or parallel=none"
    )


def _ranks_classify(values: Values) -> Fault:
    if values["parallel"] == "none":
        return None
    if models.is_dense(values["model"].name):
        return "parallel", "is for classification so far, expected none for a segmentation"
    if values["parallel"] == "modules" and values["schedule"].name == "poly":
        return "schedule.name", (
            "is poly, whose rate changes with every step, expected cosine, cosine-from-full or "
            "constant with parallel=modules"
        )
    return None


_CHECKS: tuple[Callable[[Values], Fault], ...] = (
    _modules_given,
    _warmup_fits,
    _warmup_rises,
    _some_epoch_has_a_rate,
    _nesterov_has_momentum,
    _batch_is_more_than_one,
    _subset_fills_a_batch,
    _data_is_known,
    _treatment_is_for_paths,
    _iterations_fit,
    _crop_has_two_sides,
    _model_is_known,
    _ranks_are_used,
    _modules_can_be_shared_out,
    _statistics_can_be_synchronized,
    _graph_can_be_recorded,
    _streams_are_of_one_process,
    _compiled_blocks_keep_their_graphs,
    _is_for_the_task,
    _ranks_classify,
)


def cross_faults(values: Values) -> Iterator[tuple[str, str]]:
    """The faults of valid values (full key path to value): key and message."""
    for check in _CHECKS:
        with contextlib.suppress(KeyError):  # a value it needs is itself at fault
            fault = check(values)
            if fault:
                yield fault
    with contextlib.suppress(KeyError):
        yield from faults_between(values)
