"""The moving average of the weights, against a plain loop."""

import pytest
import torch

from focusvit_hf.training.averaging import ExponentialMovingAverage


def test_moving_average_against_a_plain_loop(tmp_path):
    # A weight, and the statistics of a batch normalisation, which belong to it.
    model = torch.nn.BatchNorm1d(3)
    ema = ExponentialMovingAverage(0.9)
    ema.update(model)
    own = model.weight.detach(), model.running_var
    expected = [value.clone() for value in own]
    for step in range(1, 30):
        for value in own:
            value.add_(torch.rand(3))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = [decay * mean + (1 - decay) * value for mean, value in zip(expected, own, strict=True)]
        ema.update(model)
    last = [value.clone() for value in own]
    with ema.applied(model):
        torch.testing.assert_close(list(own), expected)
    assert all(map(torch.equal, own, last))

    ema.save(tmp_path)
    other = ExponentialMovingAverage(0.9)
    other.load(tmp_path, model)
    assert int(other.average.n_averaged) == 30
    with other.applied(model):
        torch.testing.assert_close(list(own), expected)
    with pytest.raises(ValueError, match="expected the weights"):
        other.load(tmp_path, torch.nn.Conv2d(1, 1, 1, bias=False))
    with pytest.raises(ValueError, match="expected a moving average"):
        other.load(tmp_path / "nowhere", model)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0])
def test_moving_average_refuses_a_bad_decay(decay):
    with pytest.raises(ValueError, match="0 < ema_decay < 1"):
        ExponentialMovingAverage(decay)
