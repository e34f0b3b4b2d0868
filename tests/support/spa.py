"""The plain twin of a layer of select-and-pack attention: one image after another, tokens taken out by hand."""

import torch


def plain_layer(layer, states, weights, chosen, bias=None):
    """
    What a layer makes of `states` (B, T, D) where image `b` selects the tokens `chosen[b]`, each with its weight of
    `weights` (B, T), and attention to each token is raised by `bias` (B, T).
    """
    attention, results = layer.attention, []
    heads = attention.q_proj.out_features // attention.head_dim
    for image in range(states.shape[0]):
        rows = [states[image, token] for token in range(states.shape[1])]
        picked = [token for token in range(states.shape[1]) if chosen[image][token]]
        if picked:
            x = torch.stack([rows[token] for token in picked])
            r = layer.layernorm_before(x) * torch.stack([weights[image, token] for token in picked])[:, None]
            query, key, value = (
                each(r).view(len(picked), heads, -1).unbind(1)
                for each in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            mixed = []
            for q, k, v in zip(query, key, value, strict=True):
                scores = q @ k.T * attention.scaling
                if bias is not None:
                    scores = scores + bias[image, picked]
                mixed.append(scores.softmax(dim=-1) @ v)
            x = x + attention.o_proj(torch.cat(mixed, dim=-1))
            x = x + layer.mlp(layer.layernorm_after(x))
            for place, token in enumerate(picked):
                rows[token] = x[place]
        results.append(torch.stack(rows))
    return torch.stack(results)
