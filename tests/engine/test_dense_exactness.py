"""With a target at each pixel every gradient equals that of a naive implementation of the rule."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from naive.dense import CLASSES, METHODS, VOID, naive_dense_gradients, segmenter
from naive.patches import WAYS
from torch import Tensor, nn

from hpff import LocalLearner, check_gradients, models, reference_gradients
from hpff.errors import UserError

IMAGES = torch.rand(
    3,
    3,
    8,
    12,
    generator=torch.Generator(torch.get_default_device()).manual_seed(0),
    dtype=torch.float64,
)


def gradients(learner: LocalLearner, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    learner.zero_grad()
    learner.backward(images, targets)
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in learner.named_parameters()
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    floor = 1e-4 * max(float(gradient.norm()) for gradient in expected.values())
    assert found.keys() == expected.keys()
    wrong = {
        name: float((found[name] - gradient).norm())
        for name, gradient in expected.items()
        if not (found[name] - gradient).norm() <= 1e-9 * max(float(gradient.norm()), floor)
    }
    assert not wrong


def make(model: nn.Module, ends: list[int], **kwargs: object) -> LocalLearner:
    given = {
        "modules": [f"blocks.{end}" for end in ends],
        "example": IMAGES[:2],
        "num_classes": CLASSES,
        "task": "segmentation",
        "ignore_index": VOID,
        "auxiliary_weight": "level",
    }
    return LocalLearner(model, **given | kwargs)


@settings(max_examples=40, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    method=st.sampled_from(sorted(METHODS)),
    seed=st.integers(0, 1000),
    depth=st.sampled_from([2, 3, 4]),
    k=st.sampled_from([1, 2, 3]),
    independent=st.booleans(),
    patches=st.sampled_from([1, 2]),
    mode_and_norm=st.sampled_from(WAYS),
    recompute=st.sampled_from(["never", "blocks", "once", "repeatedly"]),
    own=st.booleans(),
    void=st.sampled_from(["none", "some", "an image", "a patch", "all"]),
    large=st.booleans(),
)
def test_gradients_equal_the_naive_rule(
    method: str,
    seed: int,
    depth: int,
    k: int,
    independent: bool,
    patches: int,
    mode_and_norm: tuple[str, str],
    recompute: str,
    own: bool,
    void: str,
    large: bool,
) -> None:
    torch.manual_seed(seed)
    ends = list(range(depth - 1))
    k = min(k, depth)
    targets = torch.randint(CLASSES, (3, 16, 24) if large else (3, 8, 12))
    ignored = {
        "none": torch.zeros_like(targets).bool(),
        "some": torch.rand(targets.shape) < 0.3,
        "an image": (torch.arange(3) == 1)[:, None, None].expand_as(targets),
        "a patch": torch.zeros_like(targets).bool(),
        "all": torch.ones_like(targets).bool(),
    }[void].clone()
    if void == "a patch":
        ignored[:, : targets.shape[1] // 2, : targets.shape[2] // 2] = True
    targets[ignored] = VOID
    weights = (0.3, 1.2)
    learner = make(
        segmenter(depth, own=own),
        ends,
        method=method,
        cascade=k,
        independent=independent or k == 1,
        patches=patches,
        smallest_patch=1,
        patch_mode=mode_and_norm[0],
        patch_norm=mode_and_norm[1],
        recompute=recompute,
        independent_weight=weights[0],
        cascade_weight=weights[1],
        own_head_weight=0.7,
    )
    found = gradients(learner, IMAGES, targets)
    expected = naive_dense_gradients(
        learner,
        ends,
        IMAGES,
        targets,
        method=method,
        k=k,
        independent=independent or k == 1,
        weights=weights,
        own_weight=0.7,
    )
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert_same(found, expected)
    assert_same(reference_gradients(learner, IMAGES, targets), expected)


def test_patches_really_see_only_their_own_region() -> None:
    """A control: with n = 2 the gradients are others than with the whole map."""
    targets = torch.randint(CLASSES, (3, 8, 12))
    found = []
    for patches in (1, 2):
        torch.manual_seed(0)
        learner = make(segmenter(3, own=False), [0, 1], patches=patches, smallest_patch=1)
        found.append(gradients(learner, IMAGES, targets)["model.blocks.0.0.weight"])
    assert learner.partition[0].patches == 2
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("own", [False, True])
def test_reach_of_all_modules_without_independent_level_is_backprop(own: bool) -> None:
    model = segmenter(3, own=own)
    targets = torch.randint(CLASSES, (3, 8, 12))
    targets[0] = VOID
    learner = make(model, [0, 1], cascade=3, independent=False)
    learner.backward(IMAGES, targets)
    found = {name: p.grad for name, p in model.named_parameters()}
    output = model(IMAGES)
    scores = output["out"] if own else output
    scores = F.interpolate(scores, (8, 12), mode="bilinear")
    loss = F.cross_entropy(scores, targets, ignore_index=VOID)
    if own:
        small = F.interpolate(output["aux"], (8, 12), mode="bilinear")
        loss = loss + 0.4 * F.cross_entropy(small, targets, ignore_index=VOID)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    assert_same(found, dict(zip(found, expected, strict=True)))


def test_the_final_loss_has_the_own_head_and_logits_are_the_output() -> None:
    model = segmenter(2, own=True)
    targets = torch.randint(CLASSES, (3, 8, 12))
    plain = make(model, [0], own_head_weight=0.0).backward(IMAGES, targets)
    both = make(model, [0], own_head_weight=0.5).backward(IMAGES, targets)
    own = F.interpolate(model(IMAGES)["aux"], (8, 12), mode="bilinear")
    expected = plain.final + 0.5 * F.cross_entropy(own, targets)
    assert torch.allclose(both.final, expected)
    assert both.logits.shape == (3, CLASSES, 8, 12)
    assert both.independent[-1] == both.final


def test_a_torchvision_model_by_the_reference() -> None:
    model = models.create("torchvision/deeplabv3_resnet50", num_classes=CLASSES).double()
    images = torch.rand(2, 3, 17, 33, dtype=torch.float64)
    targets = torch.randint(CLASSES, (2, 17, 33))
    targets[0] = VOID
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    learner = LocalLearner(
        model,
        modules=3,
        example=images,
        num_classes=CLASSES,
        task="segmentation",
        ignore_index=VOID,
        auxiliary_width=8,
    )
    assert check_gradients(learner, images, targets) == {}


@pytest.mark.skipif(IMAGES.is_cuda, reason="a CUDA kernel's own check ends the process's work")
def test_a_class_that_there_is_not_is_named() -> None:
    learner = make(segmenter(2, own=False), [0])
    with pytest.raises(UserError, match=r"Target 11 is out of bounds.*0 to 2, or ignore_index"):
        learner.backward(IMAGES, torch.full((3, 8, 12), 11))


def test_what_a_segmentation_refuses() -> None:
    model = segmenter(2, own=False)
    with pytest.raises(UserError, match=r"predsim has no auxiliary networks for a target at each"):
        make(model, [0], method="predsim")
    with pytest.raises(UserError, match="task is 'segmentatoin'; expected classification or"):
        make(model, [0], task="segmentatoin")
    with pytest.raises(UserError, match=r"task is 'classification', but the model's output is \(B"):
        make(model, [0], task="classification")
    with pytest.raises(UserError, match="num_classes is 5, but the model's output has 3"):
        make(model, [0], num_classes=5)
    with pytest.raises(UserError, match="'contrast' in a dense task"):
        make(model, [0], method={"name": "infopro", "task": "contrast"})
    with pytest.raises(UserError, match="own_head_weight is -1; expected a number of at least 0"):
        make(model, [0], own_head_weight=-1)
    learner = make(model, [0])
    with pytest.raises(UserError, match=r"the targets are int64 of shape \(3,\); expected class"):
        learner.backward(IMAGES, torch.zeros(3, dtype=torch.int64))
    flat = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Unflatten(1, (4, 8, 12)))
    with pytest.raises(UserError, match="segmentation takes maps, or tokens on a grid"):
        LocalLearner(
            flat.append(nn.Conv2d(4, 3, 1)).double(),
            modules=["1"],
            example=IMAGES[:2],
            num_classes=CLASSES,
            task="segmentation",
        )
