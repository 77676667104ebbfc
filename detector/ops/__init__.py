"""The operations of detection: each one file, one meaning, on CPU and CUDA.

=========================  =======================================================================
``roi_pool``               Fast R-CNN's quantised pooling of RoIs, max or mean of each bin
``roi_align``              Mask R-CNN's bilinear pooling, mean or max of the samples
``multiscale_roi_align``   the same from the pyramid level that FPN's rule gives each box
``roi_warp``               the quantised RoI resampled bilinearly, then pooled 2 x 2
``crop_and_resize``        TensorFlow's bilinear crops
``spatial_pyramid_pool``   SPPnet's pyramid of pooled grids
``nms``, ``batched_nms``   indices of kept boxes, as torchvision's
``nms_slots``              the same for fixed slots: a mask of what is kept, no sync
``soft_nms``               scores that decay with overlap, linear or Gaussian
``match_boxes``            the best gt and the label of every anchor or proposal
``rasterize_polygons``     mask targets straight from vertices
``paste_masks``            box masks into images
``masks_to_rle``           box masks to COCO's run lengths, without an image of their size
``keypoints_to_cells``     the cell of its box's heatmap that a keypoint lies in
``heatmaps_to_keypoints``  the highest point of each heatmap, in pixels
``box_iou``                of every pair; ``generalized_box_iou``, ``distance_box_iou`` and
                           ``complete_box_iou`` likewise
``giou, diou, ciou``       the same measures box by box
``encode_boxes``           deltas of boxes; ``decode_boxes`` is the inverse
``clip_boxes``             boxes cut at the border of their image; ``box_area``, ``gather_boxes``
``image_to_feature``       coordinates; ``feature_to_image`` is the inverse
``roi_cell_to_image``      where in the image a cell of a RoI's mask lies
=========================  =======================================================================

Boxes are ``(x1, y1, x2, y2)`` in continuous pixels. RoIs are ``Tensor[N, 5]`` with the index of the
image first, or a list with one ``Tensor[L, 4]`` per image. All take part in ``torch.compile``,
export and CUDA graphs except where the size of a result depends on the data. Nothing is compiled,
and no CUDA library of ours is loaded, before a kernel is launched.
"""

from detector.ops.boxes import (
    box_area,
    box_iou,
    ciou,
    clip_boxes,
    complete_box_iou,
    decode_boxes,
    diou,
    distance_box_iou,
    encode_boxes,
    gather_boxes,
    generalized_box_iou,
    giou,
)
from detector.ops.coordinates import feature_to_image, image_to_feature, roi_cell_to_image
from detector.ops.crop_and_resize import crop_and_resize
from detector.ops.keypoints import heatmaps_to_keypoints, keypoints_to_cells
from detector.ops.masks import masks_to_rle, paste_masks
from detector.ops.matching import match_boxes
from detector.ops.multiscale_roi_align import multiscale_roi_align
from detector.ops.nms import batched_nms, nms, nms_slots
from detector.ops.polygons import rasterize_polygons
from detector.ops.roi_align import roi_align
from detector.ops.roi_pool import roi_pool
from detector.ops.roi_warp import roi_warp
from detector.ops.soft_nms import soft_nms
from detector.ops.spatial_pyramid import spatial_pyramid_pool

__all__ = [
    "batched_nms",
    "box_area",
    "box_iou",
    "ciou",
    "clip_boxes",
    "complete_box_iou",
    "crop_and_resize",
    "decode_boxes",
    "diou",
    "distance_box_iou",
    "encode_boxes",
    "feature_to_image",
    "gather_boxes",
    "generalized_box_iou",
    "giou",
    "heatmaps_to_keypoints",
    "image_to_feature",
    "keypoints_to_cells",
    "masks_to_rle",
    "match_boxes",
    "multiscale_roi_align",
    "nms",
    "nms_slots",
    "paste_masks",
    "rasterize_polygons",
    "roi_align",
    "roi_cell_to_image",
    "roi_pool",
    "roi_warp",
    "soft_nms",
    "spatial_pyramid_pool",
]
