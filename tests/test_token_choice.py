"""Which tokens come first, with plain references."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from focusvit_hf.token_choice import descending_places, largest, most_relevant


ROWS = st.integers(1, 12).flatmap(
    lambda length: st.lists(
        st.lists(st.sampled_from([-1.5, 0.0, 0.25, 2.0]), min_size=length, max_size=length), min_size=1, max_size=3
    )
)


@given(ROWS)
def test_of_equal_values_the_first_comes_first(rows):
    expected = [sorted(range(len(row)), key=lambda place: (-row[place], place)) for row in rows]
    assert descending_places(torch.tensor(rows)).tolist() == expected
    count = (len(rows[0]) + 1) // 2
    stay, rest = most_relevant(torch.tensor(rows), count)
    assert stay.tolist() == [sorted(order[:count]) for order in expected]
    assert rest.tolist() == [sorted(order[count:]) for order in expected]
    for mask, order in zip(largest(torch.tensor(rows), count), expected, strict=True):
        assert mask.nonzero().flatten().tolist() == sorted(order[:count])


@pytest.mark.parametrize("size", [(1, 1), (3, 50)])
def test_a_graph_gives_the_same_order(size):
    values = torch.randint(0, 4, size).float()
    expected = descending_places(values)
    assert torch.equal(torch.compile(descending_places, backend="eager", fullgraph=True)(values), expected)
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Places(), (values.repeat(2, 1),), dynamic_shapes=(batch,))
    assert torch.equal(program.module()(values), expected)


class Places(torch.nn.Module):
    def forward(self, values):
        return descending_places(values)
