"""Boxes and annotations made into masks."""

import pytest
import torch

from focusvit_hf.training.selection import boxes_mask, coco_boxes, voc_boxes


VOC = """<annotation><size><width>6</width></size>
<object><name>dog</name><bndbox><xmin>2</xmin><ymin>1</ymin><xmax>3</xmax><ymax>2</ymax></bndbox></object>
<object><name>cat</name><bndbox><xmin>6</xmin><ymin>4</ymin><xmax>6</xmax><ymax>4</ymax></bndbox></object>
</annotation>"""


def test_boxes_of_coco_and_voc_cover_their_pixels():
    expected = torch.zeros(4, 6)
    expected[0:2, 1:3] = 1
    expected[3, 5] = 1
    assert torch.equal(boxes_mask(voc_boxes(VOC), 4, 6), expected)
    assert torch.equal(boxes_mask(coco_boxes([(1, 0, 2, 2), (5, 3, 1, 1)]), 4, 6), expected)
    assert torch.equal(boxes_mask([], 4, 6), torch.zeros(4, 6))
    # Beyond the image, and a pixel whose centre is outside.
    assert torch.equal(boxes_mask([(-9, -9, 99, 99)], 4, 6), torch.ones(4, 6))
    assert boxes_mask([(0.6, 0, 1.4, 1)], 1, 2).tolist() == [[0, 0]]


def test_an_annotation_in_a_file(tmp_path):
    (tmp_path / "dog.xml").write_text(VOC)
    assert voc_boxes(tmp_path / "dog.xml") == [(1, 0, 3, 2), (5, 3, 6, 4)]


def test_bad_boxes_are_refused():
    with pytest.raises(ValueError, match="expected a box of four finite numbers"):
        boxes_mask([(0, 0, float("nan"), 1)], 4, 4)
    with pytest.raises(ValueError, match="ends behind its begin"):
        boxes_mask([(3, 0, 1, 1)], 4, 4)
    with pytest.raises(ValueError, match="four numbers"):
        coco_boxes([(1, 2, 3)])
    with pytest.raises(ValueError, match="expected an annotation in XML"):
        voc_boxes("no xml")
    with pytest.raises(ValueError, match="expected a bndbox of each object, got none of 'dog'"):
        voc_boxes("<annotation><object><name>dog</name></object></annotation>")
    with pytest.raises(ValueError, match="without entities"):
        voc_boxes('<!DOCTYPE a [<!ENTITY b "c">]><a/>')
