"""Figures of segmentation against plain references, and that they are sums over images."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from experiments.borders import scores
from focusvit_hf.training.segmentation_metrics import SegmentationMetrics, boundary_f, confusion_matrix, overlaps


def maps(count, labels, size=(9, 11)):
    found = torch.randint(labels, (count, *size))
    truth = torch.randint(labels, (count, *size))
    truth[torch.rand(truth.shape) < 0.2] = 255
    return found, truth


def blobs(count, size=(24, 20)):
    noise = torch.nn.functional.avg_pool2d(torch.randn(count, 1, *(side + 6 for side in size)), 7, stride=1)[:, 0]
    return (noise > 0).long()


def test_the_matrix_counts_pixels_and_no_ignored_one():
    (found,), (truth,) = maps(1, 4)
    expected = np.zeros((4, 4), dtype=int)
    for ours, theirs in zip(found.flatten().tolist(), truth.flatten().tolist(), strict=True):
        if theirs != 255:
            expected[theirs, ours] += 1
    matrix = confusion_matrix(found, truth, 4, 255)
    assert matrix.tolist() == expected.tolist()
    for label, share in enumerate(overlaps(matrix).tolist()):
        ours, theirs = (found == label) & (truth != 255), truth == label
        assert share == pytest.approx(float((ours & theirs).sum() / (ours | theirs).sum()))


def test_figures_of_a_stream_are_those_of_all_pixels_and_of_each_image():
    found, truth = maps(5, 3)
    truth[truth == 2] = 1
    found[0][found[0] == 2] = 0
    metrics = SegmentationMetrics(["sky", "road", "tree"], 255)
    for one, other in zip(found, truth, strict=True):
        metrics.update(one, other)
    figures = metrics.figures()
    shares = overlaps(confusion_matrix(found, truth, 3, 255)).tolist()
    assert [figures[f"iou_{name}"] for name in ("sky", "road", "tree")] == pytest.approx(shares)
    assert figures["mean_iou"] == pytest.approx(np.mean(shares))
    counted = truth != 255
    assert figures["pixel_accuracy"] == pytest.approx(float((found == truth)[counted].float().mean()))
    images = [overlaps(confusion_matrix(*pair, 3, 255)) for pair in zip(found, truth, strict=True)]
    assert figures["image_iou_sky"] == pytest.approx(float(torch.stack(images)[:, 0].mean()))
    # The first image has no tree, neither found nor there.
    assert images[0][2].isnan()
    assert figures["image_iou_tree"] == pytest.approx(float(torch.stack(images[1:])[:, 2].mean()))


def test_the_border_of_a_figure_is_measured_as_in_the_experiments():
    found, truth = blobs(6), blobs(6)
    expected = scores.boundary_f(found.bool(), truth.bool())
    for one, other, share in zip(found, truth, expected.tolist(), strict=True):
        assert boundary_f(one, other, 255) == pytest.approx(share, abs=1e-6)
    empty = torch.zeros(8, 8, dtype=torch.long)
    assert boundary_f(empty, empty, 255) == 1
    assert boundary_f(empty, blobs(1)[0][:8, :8].fill_(0).index_fill(0, torch.tensor([4]), 1), 255) == 0


def test_no_border_runs_along_ignored_pixels():
    truth = torch.zeros(8, 12, dtype=torch.long)
    truth[:, 4:8], truth[:, 8:] = 255, 1
    found = (truth == 1).long()
    assert boundary_f(found, truth, 255) == 1
    found[:, 4:] = 1
    assert boundary_f(found, truth, 255) == 1


def test_a_trainer_gets_figures_behind_the_last_batch_only():
    found, truth = maps(4, 2)
    metrics, whole = (SegmentationMetrics(["a", "b"], 255) for _ in range(2))
    for one, other in zip(found, truth, strict=True):
        whole.update(one, other)
    for _ in range(2):
        first = metrics(EvalPrediction(predictions=found[:3], label_ids=truth[:3]), compute_result=False)
        assert first == {}
        last = metrics(EvalPrediction(predictions=found[3:].numpy(), label_ids=truth[3:].numpy()), compute_result=True)
        assert last == whole.figures()


def test_images_without_labels_do_not_count():
    metrics = SegmentationMetrics(["a", "b"], 255)
    metrics.update(torch.zeros(4, 4, dtype=torch.long), torch.full((4, 4), 255))
    with pytest.raises(ValueError, match="expected images with labels"):
        metrics.figures()
