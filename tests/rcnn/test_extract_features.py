"""Features of given boxes: the second stage without the first."""

import pytest
import torch
from torch import nn
from torchvision.ops import MultiScaleRoIAlign

from detector.engine.runtime import Runtime
from detector.ops import feature_to_image
from detector.ops.multiscale_roi_align import assign_levels
from detector.predictor import Detector
from detector.roi_heads.mask import mask_logits, mask_probability
from detector.structures import Detections, Proposals

TWO_SIZES = ((128, 96), (90, 128))
# Pooled from P2, P3 and P4; canonical_size of these models is 56.
BOXES = torch.tensor([[8.0, 4.0, 30.0, 28.0], [10.5, 20.0, 50.5, 60.0], [0.0, 0.0, 96.0, 90.0]])


def detections_as_lists(detections: Detections) -> tuple[list, list]:
    boxes = [own[valid] for own, valid in zip(detections.boxes, detections.valid, strict=True)]
    labels = [own[valid] for own, valid in zip(detections.labels, detections.valid, strict=True)]
    return boxes, labels


def spread_predictor(model) -> None:
    """Scores that differ, of a model whose weights are as training starts."""
    for name, parameter in model.named_parameters():
        if name.endswith(("scores.weight", "logits.weight")):
            nn.init.normal_(parameter, std=0.5)


@torch.no_grad()
def test_boxes_that_were_detected_have_the_masks_that_were_detected(make_model, make_batch):
    model = make_model().eval()
    batch = make_batch(sizes=TWO_SIZES)
    detections = model.detect(batch.images, batch.image_sizes)
    boxes, labels = detections_as_lists(detections)
    assert all(len(own) > 5 for own in boxes)
    found = model.extract_features(batch.images, batch.image_sizes, boxes, labels)
    assert torch.equal(found.boxes, torch.cat(boxes))
    assert torch.equal(found.labels, torch.cat(labels))
    assert found.image_index.bincount().tolist() == [len(own) for own in boxes]
    expected = detections.masks[detections.valid]
    assert expected.std() > 0.05
    torch.testing.assert_close(found.mask_logits.sigmoid(), expected)


@torch.no_grad()
@pytest.mark.parametrize("masks", [True, False])
def test_proposals_have_the_scores_that_they_are_detected_by(make_model, make_batch, masks):
    model = make_model(masks=masks).eval()
    batch = make_batch(sizes=TWO_SIZES)
    seen = []
    model.box_branch.detections.register_forward_hook(lambda m, inputs, o: seen.append(inputs[:3]))
    model.detect(batch.images, batch.image_sizes)
    [(scores, _, proposals)] = seen
    boxes = [own[valid] for own, valid in zip(proposals.boxes, proposals.valid, strict=True)]
    found = model.extract_features(batch.images, batch.image_sizes, boxes)
    torch.testing.assert_close(found.scores[:, :-1], scores[proposals.valid])
    torch.testing.assert_close(found.scores.sum(1), torch.ones(len(found.scores)))
    assert torch.equal(found.labels, scores[proposals.valid].argmax(1))
    assert len(found.labels.unique()) > 1


@torch.no_grad()
def test_each_step_is_what_its_layers_say(make_model, make_batch):
    """Pooled by torchvision from our levels, then the layers one by one."""
    model = make_model("roi_op.aligned=false").eval()
    batch = make_batch(sizes=TWO_SIZES)
    given = [BOXES, BOXES[1:] * 0.7]
    labels = [torch.tensor([2, 0, 1]), torch.tensor([1, 1])]
    found = model.extract_features(batch.images, batch.image_sizes, given, labels)
    assert len(assign_levels(BOXES, 4, canonical_size=56.0).unique()) == 3

    pixels = model.normalizer(batch.images, batch.image_sizes)
    levels = model.backbone(pixels)
    assert found.strides == model.backbone.strides == (4, 8, 16, 32, 64)
    torch.testing.assert_close(found.levels, levels)
    named = {str(level): feature for level, feature in enumerate(levels[:4])}
    for side, pooled in ((7, found.box_features), (14, found.mask_features)):
        pooler = MultiScaleRoIAlign(list(named), side, 2, canonical_scale=56)
        expected = pooler(named, given, [(128, 128)] * 2)
        assert pooled.shape == (5, 16, side, side)
        torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-5)

    head, predictor = model.box_branch.head, model.box_branch.predictor
    vectors = head.fc2(head.fc1(found.box_features.flatten(1)).relu()).relu()
    torch.testing.assert_close(found.box_vectors, vectors)
    logits = vectors @ predictor.scores.weight.T + predictor.scores.bias
    torch.testing.assert_close(found.scores, logits.exp() / logits.exp().sum(1, keepdim=True))
    every_class = model.mask_branch.head(found.mask_features)
    own = [every_class[row, label] for row, label in enumerate(torch.cat(labels))]
    torch.testing.assert_close(found.mask_logits, torch.stack(own))


@torch.no_grad()
def test_a_batch_is_its_images_one_by_one(make_model, make_batch):
    model = make_model().eval()
    batch = make_batch(sizes=TWO_SIZES)
    given = [BOXES, BOXES.flip(0)[:2]]
    both = model.extract_features(batch.images, batch.image_sizes, given)
    for image in range(2):
        part = slice(image, image + 1)
        alone = model.extract_features(batch.images[part], batch.image_sizes[part], given[part])
        rows = both.image_index == image
        assert torch.equal(alone.boxes, both.boxes[rows])
        assert torch.equal(alone.labels, both.labels[rows])
        for name in ("box_features", "box_vectors", "scores", "mask_features", "mask_logits"):
            torch.testing.assert_close(
                getattr(alone, name), getattr(both, name)[rows], atol=1e-4, rtol=1e-4
            )
    rows = torch.cat((both.image_index[:, None].float(), both.boxes), 1)
    mixed = torch.tensor([3, 0, 4, 2, 1])
    found = model.extract_features(batch.images, batch.image_sizes, rows[mixed])
    torch.testing.assert_close(found.mask_logits, both.mask_logits[mixed], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("masks", [True, False])
def test_images_without_boxes(make_model, make_batch, masks):
    model = make_model(masks=masks).eval()
    batch = make_batch(sizes=TWO_SIZES)
    none = torch.zeros(0, 4)
    some = model.extract_features(batch.images, batch.image_sizes, [none, BOXES])
    assert some.image_index.tolist() == [1, 1, 1]
    found = model.extract_features(batch.images, batch.image_sizes, [none, none])
    assert found.box_features.shape == (0, 16, 7, 7)
    assert found.box_vectors.shape == (0, 32)
    assert found.scores.shape == (0, 4)
    assert found.labels.shape == (0,)
    if masks:
        assert found.mask_features.shape == (0, 16, 14, 14)
        assert found.mask_logits.shape == (0, 28, 28)
        assert found.cell_centers().shape == (0, 28, 28, 2)
        torch.testing.assert_close(found.levels, some.levels)


@torch.no_grad()
def test_faster_rcnn_has_no_masks(make_model, make_batch):
    model = make_model(masks=False).eval()
    batch = make_batch(sizes=TWO_SIZES)
    found = model.extract_features(batch.images, batch.image_sizes, [BOXES, BOXES])
    assert found.mask_features is None and found.mask_logits is None
    assert found.cell_centers(7).shape == (6, 7, 7, 2)
    with pytest.raises(ValueError, match="no masks: give the side"):
        found.cell_centers()


@torch.no_grad()
def test_classes_that_are_given_choose_the_mask_and_nothing_else(make_model, make_batch):
    model = make_model().eval()
    batch = make_batch(sizes=TWO_SIZES)
    arguments = (batch.images, batch.image_sizes, [BOXES, BOXES[:0]])
    best = model.extract_features(*arguments)
    assert torch.equal(best.labels, best.scores[:, :-1].argmax(1))
    other = model.extract_features(*arguments, [(best.labels + 1) % 3, best.labels[:0]])
    torch.testing.assert_close(other.scores, best.scores)
    torch.testing.assert_close(other.mask_features, best.mask_features)
    assert (other.mask_logits - best.mask_logits).abs().mean() > 0.1


@torch.no_grad()
def test_the_first_stage_does_not_run(make_model, make_batch):
    model = make_model().eval()
    called = []
    for part in (model.rpn.head, model.rpn.anchors, model.box_branch.detections):
        part.register_forward_hook(lambda module, *_: called.append(module))
    batch = make_batch(sizes=TWO_SIZES)
    model.extract_features(batch.images, batch.image_sizes, [BOXES, BOXES])
    assert not called


@torch.no_grad()
def test_after_c4_both_branches_are_given_what_res5_gives(compose_model, make_batch):
    torch.manual_seed(0)
    model = compose_model(
        "model=mask_rcnn_c4",
        "backbone=resnet50_c4",
        "model.backbone.name=resnet18",
        "model.backbone.out_channels=256",
        "model.box_branch.pooler.out_channels=512",
    ).eval()
    spread_predictor(model)
    batch = make_batch(sizes=TWO_SIZES)
    found = model.extract_features(batch.images, batch.image_sizes, [BOXES, BOXES])
    assert found.strides == (16,)
    assert found.box_features.shape == (6, 512, 7, 7)
    assert found.mask_features is found.box_features
    torch.testing.assert_close(found.box_vectors, found.box_features.mean((2, 3)))
    expected = model.mask_branch.detect(
        found.levels,
        Detections(
            boxes=BOXES.expand(2, -1, -1),
            scores=torch.ones(2, 3),
            labels=found.labels.view(2, 3),
            valid=torch.ones(2, 3).bool(),
        ),
        shared=model.box_branch.pooler,
    )
    torch.testing.assert_close(found.mask_logits.sigmoid(), expected.masks.flatten(0, 1))


@torch.no_grad()
def test_a_cascade_scores_by_the_mean_of_its_stages(compose_model, make_batch):
    torch.manual_seed(0)
    model = compose_model(
        "model=cascade_rcnn_fpn", "backbone=resnet18_fpn", "model.backbone.out_channels=16"
    ).eval()
    spread_predictor(model)
    batch = make_batch(sizes=TWO_SIZES)
    found = model.extract_features(batch.images, batch.image_sizes, [BOXES, BOXES])
    stages = model.box_branch.stages
    logits = [stage.predict(found.box_features)[0] for stage in stages]
    assert (logits[0] - logits[1]).abs().mean() > 0.1
    torch.testing.assert_close(found.scores, sum(each.softmax(1) for each in logits) / 3)
    torch.testing.assert_close(found.box_vectors, stages[2].head(found.box_features))


@torch.no_grad()
def test_fast_rcnn_needs_no_file_of_proposals_for_it(compose_model, make_batch):
    torch.manual_seed(0)
    model = compose_model(
        "model=fast_rcnn_fpn", "backbone=resnet18_fpn", "model.backbone.out_channels=16"
    ).eval()
    spread_predictor(model)
    batch = make_batch(sizes=TWO_SIZES)
    found = model.extract_features(batch.images, batch.image_sizes, [BOXES, BOXES])
    seen = []
    model.box_branch.detections.register_forward_hook(lambda m, inputs, o: seen.append(inputs[0]))
    proposals = Proposals(BOXES.expand(2, -1, -1), torch.ones(2, 3), torch.ones(2, 3).bool())
    model.detect(batch.images, batch.image_sizes, proposals)
    torch.testing.assert_close(found.scores[:, :-1], seen[0].flatten(0, 1))
    assert found.mask_logits is None


@pytest.mark.parametrize(
    ("kind", "count"), [("class_specific", 4), ("class_agnostic", 1), ("softmax", 5)]
)
def test_the_sigmoid_of_a_mask_logit_is_the_probability(kind, count):
    logits = torch.randn(6, count, 3, 3, dtype=torch.float64) * 4
    labels = torch.tensor([0, 1, 2, 3, 0, 3])
    ours = mask_logits(logits, labels, kind).sigmoid()
    torch.testing.assert_close(ours, mask_probability(logits, labels, kind))
    if kind == "softmax":  # and where the probability itself has no digits left
        logits = torch.tensor([[50.0, 0.0, 0.0, 0.0, 0.0]]).double()[..., None, None]
        expected = 50 - torch.tensor(4.0).double().log()
        torch.testing.assert_close(mask_logits(logits, labels[:1], kind)[0, 0, 0], expected)


@torch.no_grad()
def test_cells_are_pooled_from_where_they_are_said_to_lie(make_model, make_batch):
    """RoIAlign of maps that hold the coordinates of their own cells gives those of the RoI's."""
    model = make_model().eval()
    batch = make_batch(sizes=TWO_SIZES)
    found = model.extract_features(batch.images, batch.image_sizes, [BOXES[:2], BOXES[1:2]])
    for side in (7, 14):
        centers = found.cell_centers(side)
        assert centers.shape == (3, side, side, 2)
        levels = []
        for level, stride in zip(found.levels, found.strides, strict=True):
            height, width = level.shape[2:]
            x = feature_to_image(torch.arange(width).float(), stride)
            y = feature_to_image(torch.arange(height).float(), stride)
            grid = torch.stack(torch.meshgrid(x, y, indexing="xy"))
            levels.append(grid.expand(2, -1, -1, -1).contiguous())
        pooler = model.box_branch.pooler if side == 7 else model.mask_branch.pooler
        pooled = pooler(levels, found.boxes, found.image_index)
        # No box reaches beyond the centres of a map's outermost cells, where it repeats them.
        torch.testing.assert_close(pooled.permute(0, 2, 3, 1), centers, atol=1e-3, rtol=0)
    # The first box is 22 x 24 pixels from (8, 4).
    first = found.cell_centers()[0]
    torch.testing.assert_close(first[0, 0], torch.tensor([8 + 22 / 56, 4 + 24 / 56]))
    torch.testing.assert_close(first[2, 27], torch.tensor([30 - 22 / 56, 4 + 24 * 5 / 56]))


def test_something_can_be_trained_on_the_features(make_model, make_batch):
    model = make_model()
    user = Detector(model, ["a", "b", "c"], [1, 2, 3], runtime=Runtime("cpu"))
    image = make_batch().images[0].permute(1, 2, 0).numpy()
    vectors = user.extract_features(image, BOXES).box_vectors
    assert not vectors.requires_grad and model.training
    layer = nn.Linear(32, 1)
    layer(vectors).sum().backward()
    torch.testing.assert_close(layer.weight.grad, vectors.sum(0, keepdim=True))
    # And the detector itself, where that is wanted.
    batch = make_batch()
    model.eval()
    found = model.extract_features(batch.images, batch.image_sizes, [BOXES, BOXES])
    found.mask_logits.mean().backward()
    assert model.backbone.output[0][0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        ([BOXES], None, "boxes are for 1 images, features have 2"),
        ([BOXES, BOXES[:, :3]], None, r"boxes\[1\] must be \(N, 4\), not \(3, 3\)"),
        ([BOXES.long(), BOXES], None, "boxes.0. must be floating point"),
        ([BOXES, BOXES], [torch.zeros(3).long()] * 1, r"labels are \(3,\).* but 6 boxes"),
        ([BOXES, BOXES], torch.zeros(6), "torch.float32, but 6 boxes need as many of torch.int64"),
        (
            [BOXES, BOXES],
            torch.tensor([0, 1, 2, 3, 0, 0]),
            r"labels \[0, 1, 2, 3\] must lie in 0..2",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make_model, make_batch, boxes, labels, message):
    model = make_model().eval()
    batch = make_batch(sizes=TWO_SIZES)
    with pytest.raises(ValueError, match=message):
        model.extract_features(batch.images, batch.image_sizes, boxes, labels)
