"""Models whose tokens leave on the way: every kind of them, and their plain twin, one image and one head in loops."""

import torch


FULL, LATENT = "full_attention", "latent_attention"
STACKS = {"full": [FULL] * 4, "latent": [LATENT] * 4, "mixed": [FULL, LATENT, LATENT, FULL]}
WAYS = [
    ("attention", "drop"),
    ("attention", "fuse"),
    ("attention", "merge"),
    ("random", "drop"),
    ("random", "fuse"),
    ("learned", "drop"),
    ("learned", "fuse"),
]
# Training normalises the convolutional stem by the batch; linear patches are the same in either mode.
PATCHES = {"embedding_type": "patch"}
DENSE = {**PATCHES, "patch_pooling": "none", "position_embedding_type": "learned"}
CLOSE = {"rtol": 0, "atol": 1e-5}


def options(relevance="attention", mode="drop", layers=STACKS["full"], **more):
    return {
        "sparsification_relevance": relevance,
        "sparsification_mode": mode,
        "layer_types": layers,
        "num_hidden_layers": len(layers),
        "sparsification_layers": [1, 3],
        "keep_ratio": 0.7,
        **more,
    }


@torch.no_grad()
def run(model, *args, **kwargs):
    return model(*args, **kwargs)


# The twin: lists of tokens, each with its area, its size and its place.


def plain_attention(layer, states, rest, columns_bias, queries):
    """Weights (heads, queries, keys) and what they attend to, (queries, width), of (keys, width) normed states."""
    attention = layer.attention
    heads = attention.q_proj.out_features // attention.head_dim
    query = attention.q_proj(states[:queries]).view(queries, heads, -1)
    key, value = (each(states).view(len(states), heads, -1) for each in (attention.k_proj, attention.v_proj))
    maps, mixed = [], []
    for head in range(heads):
        scores = query[:, head] @ key[:, head].T * attention.scaling + columns_bias
        maps.append(scores.softmax(dim=-1))
        mixed.append(maps[-1] @ value[:, head])
    return torch.stack(maps), attention.o_proj(torch.cat(mixed, dim=-1)), key.mean(dim=1)[rest:]


def plain_model(model, pixels, ids, score):
    """
    Logits and kept places of one image (1, 3, H, W) by the config's mode, without a batch, a mask or a gather.
    `score(layer_number, maps, places)` gives the relevance of each place that is left.
    """
    config, backbone = model.config, model.focusvit
    mode, counts = config.sparsification_mode, list(config.kept_counts(16))
    prefix, tokens, area = backbone.embeddings(pixels, ids)
    prefix, area = prefix[0], area.expand(1, -1)[0]
    group = [
        {"x": x, "area": a, "size": 1, "place": place}
        for place, (x, a) in enumerate(zip(tokens[0], area, strict=True))
    ]
    latents, seen, kept = None, {}, []
    for number, (layer, kind) in enumerate(zip(backbone.layers, config.layer_types, strict=True)):
        if number in config.sparsification_layers:
            count, maps = counts.pop(0), seen.get(number - 1)
            group = MODES[mode](group, count, maps, lambda group, maps, n=number: score(n, maps, group))
            kept.append([token["place"] for token in group if token["place"] is not None])
        if kind == LATENT and latents is None:
            latents = backbone.latents[0]
        before = prefix if latents is None else torch.cat((prefix, latents))
        x = torch.stack([token["x"] for token in group])
        bias = torch.tensor([float(token["size"]) for token in group]).log()
        bias = torch.cat((torch.zeros(len(before)), bias))
        if kind == FULL:
            whole = torch.cat((before, x))
            maps, attended, keys = plain_attention(layer, layer.layernorm_before(whole), len(before), bias, len(whole))
            rows = [len(before) + i for i, token in enumerate(group) if token["place"] is not None]
        else:
            normed = torch.cat((layer.layernorm_before(before), layer.layernorm_context(x)))
            whole = before
            maps, attended, keys = plain_attention(layer, normed, len(before), bias, len(before))
            rows = list(range(len(prefix), len(before)))
        whole = whole + attended
        whole = whole + layer.mlp(layer.layernorm_after(whole))
        prefix = whole[: len(prefix)]
        latents = None if latents is None else whole[len(prefix) : len(before)]
        if kind == FULL:
            for token, new in zip(group, whole[len(before) :], strict=True):
                token["x"] = new
        seen[number] = {"maps": maps, "rows": rows, "first": len(before), "keys": keys}
    return model.classifier(backbone.layernorm(prefix[:1])), kept


def plain_drop(group, count, seen, score):
    scores = score(group, seen)
    chosen = sorted(range(len(group)), key=lambda i: -float(scores[i]))[:count]
    return [group[i] for i in sorted(chosen)]


def mean_of(tokens, place):
    area = sum(token["area"] for token in tokens)
    x = sum(token["x"] * token["area"] for token in tokens) / area
    return {"x": x, "area": area, "size": sum(token["size"] for token in tokens), "place": place}


def plain_fuse(group, count, seen, score):
    candidates = [token for token in group if token["place"] is not None]
    stay = plain_drop(candidates, count, seen, score)
    places = {token["place"] for token in stay}
    return [*stay, mean_of([token for token in group if token["place"] not in places], None)]


def plain_merge(group, count, seen, score):
    keys, pairs = seen["keys"], []
    for i in range(0, len(group), 2):
        cosines = {j: torch.cosine_similarity(keys[i], keys[j], dim=0) for j in range(1, len(group), 2)}
        partner = max(cosines, key=cosines.get)
        pairs.append((float(cosines[partner]), i, partner))
    parts = {i: [i] for i in range(len(group))}
    for _, i, partner in sorted(pairs, reverse=True)[: len(group) - count]:
        parts[partner] += parts.pop(i)
    return [mean_of([group[j] for j in part], group[i]["place"]) for i, part in parts.items()]


MODES = {"drop": plain_drop, "fuse": plain_fuse, "merge": plain_merge}
