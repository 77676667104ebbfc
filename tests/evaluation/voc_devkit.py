"""The devkit's VOCevaldet, line by line: one class, boxes in inclusive pixels counted from 1."""

import numpy as np


def devkit_evaluate(images, found, min_overlap):
    """Recall and precision after each detection.

    Args:
        images: per image a list of objects ``(box, difficult)``.
        found: the results file, a list of ``(image, confidence, box)``.
    """
    num_positive = sum(not difficult for objects in images for _, difficult in objects)
    detected = [[False] * len(objects) for objects in images]
    true_positive, false_positive = [], []
    for image, _, bb in sorted(found, key=lambda each: -each[1]):
        true_positive.append(0)
        false_positive.append(0)
        best, best_overlap = None, -np.inf
        for j, (gt, _) in enumerate(images[image]):
            bi = [max(bb[0], gt[0]), max(bb[1], gt[1]), min(bb[2], gt[2]), min(bb[3], gt[3])]
            iw, ih = bi[2] - bi[0] + 1, bi[3] - bi[1] + 1
            if iw > 0 and ih > 0:
                union = (bb[2] - bb[0] + 1) * (bb[3] - bb[1] + 1)
                union += (gt[2] - gt[0] + 1) * (gt[3] - gt[1] + 1) - iw * ih
                overlap = iw * ih / union
                if overlap > best_overlap:
                    best, best_overlap = j, overlap
        if best_overlap >= min_overlap:
            if not images[image][best][1]:
                if not detected[image][best]:
                    true_positive[-1] = 1
                    detected[image][best] = True
                else:
                    false_positive[-1] = 1
        else:
            false_positive[-1] = 1
    recall, precision = [], []
    tp = fp = 0
    for right, wrong in zip(true_positive, false_positive, strict=True):
        tp, fp = tp + right, fp + wrong
        recall.append(tp / num_positive)
        precision.append(tp / (tp + fp) if tp + fp else np.nan)  # MATLAB's 0 / 0
    return recall, precision


def devkit_2007(recall, precision):
    total = 0.0
    for t in range(11):
        reached = [p for r, p in zip(recall, precision, strict=True) if r >= t / 10]
        reached = [p for p in reached if not np.isnan(p)]  # as MATLAB's max does
        total += (max(reached) if reached else 0) / 11
    return total


def devkit_2010(recall, precision):
    mrec, mpre = [0, *recall, 1], [0, *precision, 0]
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = np.fmax(mpre[i], mpre[i + 1])
    return sum(
        (mrec[i] - mrec[i - 1]) * mpre[i]
        for i in range(1, len(mrec))
        if mrec[i] != mrec[i - 1]
    )  # fmt: skip
