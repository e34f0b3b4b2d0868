"""Packed tokens: a different number of each image behind one another, without padding, and attention among them."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, eq=False)
class Packing:
    """
    Which tokens of a batch are packed: image by image, each image's in their order.

    Args:
        index (`torch.LongTensor` of shape `(total,)`): Places in the flattened `(batch_size, length)`, ascending.
        images (`torch.LongTensor` of shape `(total,)`): The image of each packed token, in [0, batch_size).
        counts (`tuple` of `int`): How many tokens of each image are packed.
        length (`int`): How many tokens of each image there were.
    """

    index: torch.Tensor
    images: torch.Tensor
    counts: tuple[int, ...]
    length: int

    @classmethod
    def of(cls, selected: torch.Tensor) -> "Packing":
        """The packing of the tokens for which `selected` `(batch_size, length)`, bool, is true."""
        length = selected.shape[1]
        index = selected.flatten().nonzero().squeeze(1)
        counts = tuple(selected.sum(dim=1).tolist())
        return cls(index, index.div(length, rounding_mode="floor"), counts, length)

    def pack(self, values: torch.Tensor) -> torch.Tensor:
        """`(batch_size, length, ...)` to `(total, ...)`."""
        return values.flatten(0, 1).index_select(0, self.index)

    def scatter(self, packed: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """`values` `(batch_size, length, ...)` with the packed tokens `(total, ...)` in their places."""
        return values.flatten(0, 1).index_copy(0, self.index, packed.to(values.dtype)).view_as(values)


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    bias: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    pack_length: int = 64,
) -> torch.Tensor:
    """
    Attention of each packed token to all tokens of its own image, and to no others.

    There are two ways with one result. On a CPU the images' own lengths cost least (`attend_by_image`). Elsewhere a
    call for each image would leave the device idle, and containers of one length are filled (`attend_in_containers`).

    Args:
        query, key, value (`torch.FloatTensor` of shape `(total, heads, head_dim)`): Of the packed tokens.
        packing ([`Packing`]): Which tokens they are.
        bias (`torch.FloatTensor` of shape `(total,)`, *optional*): What attention to each token is raised by.
        scaling (`float`, *optional*): Of the scores, by default 1/√head_dim.
        dropout (`float`, *optional*, defaults to 0): Share of the attention weights that is dropped.
        pack_length (`int`, *optional*, defaults to 64): Tokens in a container.

    Returns:
        `torch.FloatTensor` of shape `(total, heads, head_dim)`.
    """
    bias = None if bias is None else bias.to(query.dtype)
    if query.device.type == "cpu":
        return attend_by_image(query, key, value, packing, bias, scaling, dropout)
    return attend_in_containers(query, key, value, packing, bias, scaling, dropout, pack_length)


def attend_by_image(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    bias: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """[`packed_attention`] at each image's own length, one image after the other, without any padding."""
    parts = [each.transpose(0, 1)[None].split(packing.counts, dim=2) for each in (query, key, value)]
    rows = [None] * len(packing.counts) if bias is None else bias[None, None, None].split(packing.counts, dim=3)
    attended = [
        nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=row, dropout_p=dropout, scale=scaling)
        for q, k, v, row in zip(*parts, rows, strict=True)
    ]
    return torch.cat(attended, dim=2)[0].transpose(0, 1)


def attend_in_containers(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    bias: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    pack_length: int = 64,
) -> torch.Tensor:
    """
    [`packed_attention`] in containers of `pack_length` tokens, of which only the last one is padded.

    An image may begin in one container and end in a later one. So each container attends to itself and to as many
    containers before and behind it as any image needs, with a mask over the pairs of containers by the images.
    """
    total, heads, width = query.shape
    if total == 0:
        return value
    containers, padding = containers_of(total, pack_length)
    reach = _reach(packing.counts, pack_length)

    def filled(states: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(states, (0, 0, 0, 0, 0, padding)).view(containers, pack_length, heads, width)

    def seen(each: torch.Tensor) -> torch.Tensor:
        """Of each container what it may see, `(containers, (2 · reach + 1) · pack_length, ...)`."""
        none = each.new_full((1, *each.shape[1:]), -1) if each.dtype == torch.int64 else torch.zeros_like(each[:1])
        wider = torch.cat([none] * reach + [each] + [none] * reach)
        return torch.cat([wider[place : place + containers] for place in range(2 * reach + 1)], dim=1)

    # Padding is an image of its own, so that no row of the mask is empty: a softmax over nothing is not a number.
    images = nn.functional.pad(packing.images, (0, padding), value=len(packing.counts)).view(containers, pack_length)
    allowed = (images[:, :, None] == seen(images)[:, None])[:, None]
    mask = allowed
    if bias is not None:
        columns = seen(nn.functional.pad(bias, (0, padding)).view(containers, pack_length))
        mask = torch.where(allowed, columns[:, None, None], torch.finfo(bias.dtype).min)
    attended = nn.functional.scaled_dot_product_attention(
        filled(query).transpose(1, 2),
        seen(filled(key)).transpose(1, 2),
        seen(filled(value)).transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return attended.transpose(1, 2).reshape(containers * pack_length, heads, width)[:total]


def containers_of(total: int, pack_length: int) -> tuple[int, int]:
    """How many containers `total` tokens fill, and how many places of the last one stay empty."""
    containers = -(-total // pack_length)
    return containers, containers * pack_length - total


def _reach(counts: tuple[int, ...], pack_length: int) -> int:
    """How many containers before and behind its own a token may have to look into, for the tokens of its image."""
    start, furthest = 0, 0
    for count in counts:
        if count:
            furthest = max(furthest, (start + count - 1) // pack_length - start // pack_length)
        start += count
    return furthest
