"""The loss of training, against its definition."""

import pytest
import torch

from focusvit_hf.training.objective import soft_cross_entropy


def test_soft_cross_entropy_against_its_definition():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    soft = torch.softmax(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), -1)
    hard = torch.tensor([0, 3, 1, 1, 2])
    log_probabilities = logits - logits.exp().sum(-1, keepdim=True).log()
    expected = -(soft * log_probabilities).sum(-1)
    torch.testing.assert_close(soft_cross_entropy(logits, soft, reduction="none"), expected)
    smooth = 0.9 * torch.nn.functional.one_hot(hard, 4) + 0.1 / 4
    expected = -(smooth * log_probabilities).sum(-1).mean()
    torch.testing.assert_close(soft_cross_entropy(logits, hard, 0.1), expected)
    torch.testing.assert_close(soft_cross_entropy(logits, torch.nn.functional.one_hot(hard, 4).float(), 0.1), expected)


@pytest.mark.parametrize("labels", [torch.zeros(4), torch.zeros(5, 4), torch.zeros(4, 3, dtype=torch.long)])
def test_soft_cross_entropy_refuses_other_labels(labels):
    with pytest.raises(ValueError, match=r"expected integer labels of shape \(4,\)"):
        soft_cross_entropy(torch.zeros(4, 3), labels)
