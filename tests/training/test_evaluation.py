"""Accuracy, of one class and among the first five."""

from focusvit_hf.training.evaluation import TopKAccuracy


def test_top_k_accuracy():
    ranked = [[0, 1, 2, 3, 4], [5, 1, 2, 3, 4], [5, 4, 3, 2, 1], [1, 2, 3, 4, 5]]
    result = TopKAccuracy(keep_in_memory=True).compute(predictions=ranked, references=[0, 1, 0, 1])
    assert result == {"accuracy": 0.5, "top_5_accuracy": 0.75}
    few = TopKAccuracy(keep_in_memory=True).compute(predictions=[[0, 1], [1, 0]], references=[0, 0])
    assert few == {"accuracy": 0.5}
