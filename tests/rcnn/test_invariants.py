"""What must not matter: the batch, empty slots, the order of objects; and what always holds."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from detector.ops.slots import keep_empty_slots
from detector.structures import Batch, Polygons, Targets


def one_of(batch: Batch, image: int) -> Batch:
    return batch._map(lambda tensor: tensor[image : image + 1])


def losses_and_gradients(model, batch: Batch, keep: bool = False):
    model.zero_grad()
    with keep_empty_slots() if keep else nullcontext():
        losses = model(batch.images, batch.image_sizes, batch.targets)
        sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {name: value.detach() for name, value in losses.items()}, gradients


def assert_same(actual, expected) -> None:
    """Losses to float32's rounding, gradients to that of their sums, relative to the largest."""
    torch.testing.assert_close(actual[0], expected[0], atol=1e-6, rtol=1e-5)
    for name, other in expected[1].items():
        gradient = actual[1][name]
        assert (gradient is None) == (other is None), name
        if other is not None:
            torch.testing.assert_close(
                gradient, other, atol=1e-4 * other.abs().max().item() + 1e-8, rtol=0, msg=name
            )


@torch.no_grad()
@pytest.mark.parametrize("masks", [True, False])
def test_detecting_in_a_batch_of_two_equals_two_batches_of_one(make_model, make_batch, masks):
    model = make_model(masks=masks).eval()
    batch = make_batch(sizes=((128, 96), (90, 128)))
    both = model.detect(batch.images, batch.image_sizes)
    assert both.valid.sum(1).gt(5).all()
    for image in range(2):
        part = one_of(batch, image)
        alone = model.detect(part.images, part.image_sizes)
        for field in dataclasses.fields(both):
            ours, other = getattr(alone, field.name), getattr(both, field.name)
            if other is None:
                assert ours is None
                continue
            if field.name in ("valid", "labels"):
                assert torch.equal(ours[0], other[image])
            else:
                torch.testing.assert_close(ours[0], other[image], atol=1e-3, rtol=1e-4)


def test_losses_of_a_batch_of_two_are_the_weighted_mean_of_two_batches_of_one(
    make_model, make_batch
):
    """Losses are means over what was sampled: anchors, RoIs and foreground RoIs."""
    model = make_model()
    batch = make_batch(sizes=((128, 96), (90, 128)))
    counts: dict[str, list[Tensor]] = {}

    def count_rois(module, inputs, rois) -> None:
        counts.setdefault("rois", []).append(rois.valid.sum(1))
        counts.setdefault("foreground", []).append(rois.foreground.sum(1))

    model.roi_sampler.register_forward_hook(count_rois)
    both, _ = losses_and_gradients(model, batch)
    alone = [losses_and_gradients(model, one_of(batch, image))[0] for image in range(2)]
    for name in ("rois", "foreground"):
        assert torch.equal(counts[name][0], torch.cat(counts[name][1:]))
    weights = {"loss_mask": counts["foreground"][0]}
    weights["loss_classifier"] = weights["loss_box"] = counts["rois"][0]
    for name, value in both.items():
        if name in weights:
            weight = weights[name]
            expected = sum(w * part[name] for w, part in zip(weight, alone, strict=True))
            torch.testing.assert_close(value, expected / weight.sum(), atol=1e-6, rtol=1e-4)
    # Anchors outside an image are not sampled, so the images' counts differ; the mean lies between.
    for name in ("loss_objectness", "loss_rpn_box"):
        low, high = sorted(float(part[name]) for part in alone)
        assert low <= both[name] <= high


def test_order_in_the_batch_does_not_matter(make_model, make_batch):
    model = make_model()
    batch = make_batch(sizes=((128, 96), (90, 128)))
    turned = batch._map(lambda tensor: tensor.flip(0))
    assert_same(losses_and_gradients(model, turned), losses_and_gradients(model, batch))


def pad_targets(targets: Targets, gts: int, edges: int, max_edges: int) -> Targets:
    """More empty slots of gts and edges, as another bucket would give."""
    count = len(targets.boxes)
    polygons = targets.polygons
    last = polygons.offsets[:, -1:]
    return Targets(
        torch.cat((targets.boxes, torch.zeros(count, gts, 4)), 1),
        torch.cat((targets.labels, torch.zeros(count, gts).long()), 1),
        torch.cat((targets.valid, torch.zeros(count, gts).bool()), 1),
        Polygons(
            torch.cat((polygons.edges, torch.zeros(count, edges, 4)), 1),
            torch.cat((polygons.offsets, last.expand(-1, gts)), 1),
            max_edges,
        ),
    )


def test_empty_gt_and_edge_slots_change_nothing(make_model, make_batch):
    model = make_model()
    batch = make_batch()
    padded = dataclasses.replace(batch, targets=pad_targets(batch.targets, 24, 64, 200))
    assert_same(losses_and_gradients(model, padded), losses_and_gradients(model, batch))


@pytest.mark.parametrize("objects", [(4, 2), (0, 3), (0, 0)])
def test_computing_empty_slots_changes_nothing(make_model, make_batch, objects):
    model = make_model("model.roi_sampler.num_samples=800")
    batch = make_batch(sizes=((128, 96), (90, 128)), objects=objects)
    assert_same(losses_and_gradients(model, batch, True), losses_and_gradients(model, batch))


@torch.no_grad()
def test_computing_empty_slots_changes_no_detection(make_model, make_batch):
    model = make_model("model.box_branch.detections.score_threshold=0.9").eval()
    batch = make_batch(sizes=((128, 96), (90, 128)))
    detections = model.detect(batch.images, batch.image_sizes)
    assert 0 < detections.valid.sum() < detections.valid.numel()
    with keep_empty_slots():
        everything = model.detect(batch.images, batch.image_sizes)
    assert detections.masks is not None
    for field in dataclasses.fields(detections):
        ours, theirs = getattr(everything, field.name), getattr(detections, field.name)
        if field.name == "keypoints":
            assert ours is None and theirs is None
            continue
        torch.testing.assert_close(ours.float(), theirs.float(), atol=1e-4, rtol=1e-4)


def test_permuting_objects_changes_nothing(make_model, make_batch):
    model = make_model()
    batch = make_batch(objects=(6, 3))
    targets = batch.targets
    order = torch.tensor([3, 7, 0, 5, 1, 2, 6, 4])
    # Every slot of this batch has four edges or none, so edges move in blocks of four.
    counts = targets.polygons.offsets.diff(dim=1)[:, order]
    offsets = torch.cat((torch.zeros(2, 1).long(), counts.cumsum(1)), 1)
    edges = torch.zeros_like(targets.polygons.edges)
    for image in range(2):
        for slot, gt in enumerate(order.tolist()):
            first, number = offsets[image, slot], counts[image, slot]
            edges[image, first : first + number] = targets.polygons.edges[
                image, 4 * gt : 4 * gt + number
            ]
    permuted = Targets(
        targets.boxes[:, order],
        targets.labels[:, order],
        targets.valid[:, order],
        Polygons(edges, offsets, 4),
    )
    changed = dataclasses.replace(batch, targets=permuted)
    assert_same(losses_and_gradients(model, changed), losses_and_gradients(model, batch))


@pytest.mark.parametrize("padded", [(128, 128), (192, 256)])
def test_no_box_leaves_the_filled_part_of_its_image(make_model, make_batch, padded):
    """Of images that fill neither the bucket nor whole cells of the feature maps."""
    model = make_model("model.box_branch.detections.score_threshold=0.0")
    batch = make_batch(sizes=((101, 67), (59, 128)), padded=padded)
    limit = batch.image_sizes.flip(1).repeat(1, 2)[:, None]
    seen = []
    for layer in (model.rpn.train_proposals, model.rpn.test_proposals, model.roi_sampler):
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    losses = model(batch.images, batch.image_sizes, batch.targets)
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        seen.append(model.eval().detect(batch.images, batch.image_sizes))
    assert len(seen) == 4
    for boxes in seen:
        assert boxes.valid.sum(1).gt(5).all()
        assert ((boxes.boxes >= 0) & (boxes.boxes <= limit)).all()
        filled = boxes.boxes[boxes.valid]
        assert (filled[:, 2:] > filled[:, :2]).all()
        assert boxes.boxes[~boxes.valid].eq(0).all()
    masks = seen[-1].masks
    assert ((masks >= 0) & (masks <= 1)).all()


def test_what_lies_in_the_padding_does_not_matter(make_model, make_batch):
    """Whatever the collate function leaves there."""
    model = make_model()
    batch = make_batch(sizes=((101, 67), (59, 128)))
    images = batch.images.clone()
    images[0, :, 101:], images[0, :, :, 67:], images[1, :, 59:] = 255, 99, 7
    dirty = dataclasses.replace(batch, images=images)
    assert_same(losses_and_gradients(model, dirty), losses_and_gradients(model, batch))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("masks", [True, False])
def test_batch_without_any_object_trains(make_model, make_batch, masks, keep):
    model = make_model("model.roi_sampler.num_samples=400", masks=masks)
    losses, gradients = losses_and_gradients(model, make_batch(objects=(0, 0)), keep)
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_rpn_box"] == losses["loss_box"] == 0
    assert losses["loss_objectness"] > 0
    assert losses["loss_classifier"] > 0
    if masks:
        assert losses["loss_mask"] == 0
    # Every rank of a distributed run must have the same gradients to reduce.
    assert all(gradient is not None for gradient in gradients.values())
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_image_with_more_objects_than_samples(make_model, make_batch):
    model = make_model("model.roi_sampler.num_samples=64", "model.rpn.num_samples=64")
    batch = make_batch(objects=(300, 0), gt_slots=512)
    rois = []
    model.roi_sampler.register_forward_hook(lambda module, inputs, output: rois.append(output))
    losses, gradients = losses_and_gradients(model, batch)
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_mask"] > 0
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert rois[0].foreground.sum(1).tolist() == [16, 0]
    assert rois[0].valid.sum(1).tolist() == [64, 64]


@pytest.mark.parametrize("masks", [True, False])
def test_training_and_evaluation_mode_give_the_same_losses(make_model, make_batch, masks):
    model, batch = make_model(masks=masks), make_batch()
    train = losses_and_gradients(model.train(), batch)
    assert_same(losses_and_gradients(model.eval(), batch), train)
    assert set(train[0]) == {
        "loss_objectness",
        "loss_rpn_box",
        "loss_classifier",
        "loss_box",
        *(["loss_mask"] if masks else []),
    }


def test_memory_layout_does_not_matter(make_model, make_batch):
    batch = make_batch()
    expected = losses_and_gradients(make_model(), batch)
    model = make_model().to(memory_format=torch.channels_last)
    images = batch.images.to(memory_format=torch.channels_last)
    actual = losses_and_gradients(model, dataclasses.replace(batch, images=images))
    assert_same(actual, expected)


@torch.no_grad()
def test_bfloat16_autocast_gives_nearly_the_same_losses(make_model, make_batch):
    """Precision is applied from outside; heads hand out float32 whatever they compute in."""
    model, batch = make_model(), make_batch()
    exact = model(batch.images, batch.image_sizes, batch.targets)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch.images, batch.image_sizes, batch.targets)
        detections = model.eval().detect(batch.images, batch.image_sizes)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        # 8 bits through some twenty layers, and other proposals in consequence.
        torch.testing.assert_close(value, exact[name], rtol=0.1, atol=0, msg=name)
    assert detections.boxes.dtype == detections.scores.dtype == torch.float32
    assert detections.masks.dtype == torch.float32
