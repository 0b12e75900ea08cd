"""Early exits: errors and losses of every auxiliary network, and how its patches agree."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_learners import IMAGES, TARGETS, hooks, small
from torch import nn

from hpff import LocalLearner, models
from hpff.analysis import Network, ensemble, exits
from hpff.analysis.exits import agreement, exit_errors
from hpff.auxiliary import PatchFusion
from hpff.engine.auxiliary_networks import image_of
from hpff.errors import UserError
from hpff.methods import Method

LOADER = [(IMAGES, TARGETS)]


@pytest.mark.parametrize("method", ["dgl", "predsim", "infopro"])
def test_every_head_is_an_exit(method: str) -> None:
    learner = small(method=method, cascade=2, patches=2)
    found = exits(Network.of(learner), LOADER)
    heads = [(e.module, e.level) for e in found]
    assert heads == [
        (1, "independent"),
        (2, "cascade"),
        (2, "independent"),
        (3, "cascade"),
        (3, "independent"),
        (4, "final"),
    ]
    for each in found:
        assert each.error is not None
        assert 0 <= each.error <= 100
        assert each.samples == 6
        if each.level == "final":
            assert (each.patches, each.agreement, each.patch_error) == (1, None, None)
        else:
            assert each.agreement is not None
            assert 0 <= each.agreement <= 1
    assert hooks(learner.model) == 0
    assert learner.training


def test_an_exit_is_its_network_on_its_module_in_eval_mode() -> None:
    learner = small(cascade=2, patches=2)
    found = {(e.module, e.level): e for e in exits(Network.of(learner), LOADER)}
    with torch.no_grad():
        learner.eval()
        outputs, logits = Network.of(learner).outputs(IMAGES)
        for level, j in learner.auxiliary_networks.contexts:
            features = learner.auxiliary_networks.features(
                j, outputs[j - 1], image_of(IMAGES), None
            )
            scores = learner.auxiliary_networks.at(level, j)(features)
            wrong = (scores.argmax(1) != TARGETS).double().mean()
            assert found[j, level].error == pytest.approx(100 * float(wrong))
            loss = nn.functional.cross_entropy(scores, TARGETS)
            assert found[j, level].loss == pytest.approx(float(loss))
        wrong = (logits.argmax(1) != TARGETS).double().mean()
        assert found[4, "final"].error == pytest.approx(100 * float(wrong))


def naive_probabilities(learner: LocalLearner) -> list[torch.Tensor]:
    """Of each auxiliary network, and of the head last."""
    networks = learner.auxiliary_networks
    outputs, logits = Network.of(learner).outputs(IMAGES)
    found = []
    for level, j in networks.contexts:
        given = [networks.features(j, outputs[j - 1], IMAGES, None)]
        given += [IMAGES] if learner.method.needs_images else []
        scores = learner.method.logits(networks.at(level, j)(*given), networks.contexts[level, j])
        assert scores is not None
        found.append(scores.softmax(1))
    return [*found, logits.softmax(1)]


@pytest.mark.parametrize("method", ["dgl", "predsim", "infopro"])
def test_an_ensemble_is_the_mean_of_probabilities(method: str) -> None:
    learner = small(method=method, cascade=2, patches=2)
    found = ensemble(learner, IMAGES)
    assert learner.training
    with torch.no_grad():
        each = naive_probabilities(learner.eval())
    assert len(each) == 6
    torch.testing.assert_close(found, sum(each) / 6)
    torch.testing.assert_close(found.sum(1), torch.ones(6))
    metrics = exit_errors(learner, LOADER)
    wrong = 100 * float((found.argmax(1) != TARGETS).double().mean())
    assert metrics["ensemble_error_percent"] == pytest.approx(wrong)
    assert len(metrics["independent_errors"]) == 4


def test_where_no_exit_has_scores_the_ensemble_is_the_head() -> None:
    learner = small(method={"name": "infopro", "task": "contrast"}, cascade=1)
    with torch.no_grad():
        expected = learner.eval()(IMAGES).softmax(1)
    assert torch.equal(ensemble(learner, IMAGES), expected)
    assert exit_errors(learner, LOADER) == {}


def test_an_ensemble_of_a_segmentation_and_of_one_sample_are_refused() -> None:
    dense = LocalLearner(
        models.create("fcn_resnet20", num_classes=4, width=4),
        modules=3,
        example=torch.rand(2, 3, 32, 32),
        num_classes=4,
        task="segmentation",
    )
    with pytest.raises(UserError, match="for classification"):
        ensemble(dense, torch.rand(2, 3, 32, 32))
    with pytest.raises(UserError, match="the batch is 1; give 2 or more"):
        ensemble(small(modules=["layer3.1"], cascade=1), IMAGES[:1, :, :4, :4])


def test_exits_of_light_networks_see_images_as_training_does() -> None:
    learner = small(method="infopro", cascade=1, auxiliary_pool=2)
    networks = learner.auxiliary_networks
    found = {e.module: e.loss for e in exits(Network.of(learner), LOADER)}
    with torch.no_grad():
        outputs, _ = Network.of(learner.eval()).outputs(IMAGES)
        for j in (1, 2, 3):
            features = networks.features(j, outputs[j - 1], IMAGES, None)
            loss = networks.loss("independent", j, features, IMAGES, TARGETS)
            assert found[j] == pytest.approx(float(loss), rel=1e-5)


def test_contrast_gives_no_class_scores() -> None:
    learner = small(method={"name": "infopro", "task": "contrast"}, cascade=1, patches=2)
    found = exits(Network.of(learner), LOADER)
    assert [e.error is None for e in found] == [True, True, True, False]
    assert found[0].agreement is None


def test_without_patches_there_is_nothing_to_agree() -> None:
    found = exits(Network.of(small(patches=1, cascade=1)), LOADER)
    assert {e.agreement for e in found} == {None}


def test_a_last_batch_of_one_is_left_out() -> None:
    learner = small(cascade=1)
    found = exits(Network.of(learner), [*LOADER, (IMAGES[:1], TARGETS[:1])])
    assert {e.samples for e in found} == {6}


def test_no_learner_no_exits() -> None:
    network = Network.of(models.create("resnet20", width=4), example=IMAGES[:2], label="mine")
    with pytest.raises(UserError, match="mine: has no auxiliary networks"):
        exits(network, LOADER)


@settings(max_examples=40)
@given(
    answers=st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=2, max_size=9)
)
def test_agreement_is_a_share_of_pairs(answers: list[list[int]]) -> None:
    stacked = torch.tensor(answers)
    found = agreement(stacked)
    for sample in range(3):
        column = [row[sample] for row in answers]
        alike = [column[a] == column[b] for a in range(len(column)) for b in range(a)]
        assert float(found[sample]) == pytest.approx(sum(alike) / len(alike))
    assert torch.equal(agreement(stacked[:1].expand(4, -1)), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", ["dgl", "auglocal", "predsim"])
def test_outputs_of_patches_have_the_fused_output_as_their_mean(name: str, together: bool) -> None:
    mode = "together" if together else "one-by-one"
    learner = small(method=name, patches=2, cascade=1, patch_mode=mode)
    fusion = learner.auxiliary_networks.at("independent", 1)
    assert isinstance(fusion, PatchFusion)
    outputs, _ = Network.of(learner).outputs(IMAGES)
    features = learner.auxiliary_networks.features(1, outputs[0], IMAGES, None)
    method: Method = learner.method
    context = learner.auxiliary_networks.contexts["independent", 1]
    with torch.no_grad():
        fused, each = fusion(features), fusion.of_patches(features)
        mean = {k: v.mean(0) for k, v in each.items()} if isinstance(each, dict) else each.mean(0)
        expected, found = method.logits(fused, context), method.logits(mean, context)
    assert expected is not None
    assert found is not None
    assert torch.allclose(found, expected, atol=1e-5)
