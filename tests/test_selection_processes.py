"""Select-and-pack attention in two processes whose images select different numbers of tokens."""

import gc
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from focusvit_hf import FocusViTConfig, FocusViTForImageClassification
from processes import through_loopback


def a_model():
    torch.manual_seed(0)
    config = FocusViTConfig(
        image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        embedding_type="patch", patch_pooling="none", layer_types=["select_pack_attention"] * 2, num_labels=3,
        initializer_range=0.2,
    )  # fmt: skip
    model = FocusViTForImageClassification(config).eval()
    for layer in model.focusvit.layers:
        torch.nn.init.zeros_(layer.gate.bias)
    return model


def images():
    torch.manual_seed(1)
    return torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]), (torch.rand(4, 16, 16) > 0.5).float()


def _process(rank, folder):
    torch.set_num_threads(1)
    # A process that waits for the other for ever fails instead.
    wait = timedelta(minutes=4)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", timeout=wait, rank=rank, world_size=2)
    model = DistributedDataParallel(a_model())
    pixels, labels, masks = (each[2 * rank : 2 * rank + 2] for each in images())
    outputs = model(pixels, labels=labels, selection_masks=masks)
    outputs.loss.backward()
    counts = [int(mask.sum()) for mask in outputs.selected_tokens]
    torch.save((counts, [p.grad for p in model.module.parameters()]), f"{folder}/{rank}.pt")
    # The model goes before its group of processes. If it went last, Python's lock would be held while the
    # group waits for its threads, which wait for that lock (pytorch/pytorch issue 56297).
    del model, outputs
    gc.collect()
    dist.destroy_process_group()


def test_two_processes_with_different_counts_average_their_gradients(tmp_path, monkeypatch):
    for name, value in through_loopback().items():
        monkeypatch.setenv(name, value)
    mp.spawn(_process, args=(str(tmp_path),), nprocs=2)
    (first, ours), (second, theirs) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first != second
    model = a_model()
    pixels, labels, masks = images()
    model(pixels, labels=labels, selection_masks=masks).loss.backward()
    for one, other, whole in zip(ours, theirs, model.parameters(), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, whole.grad, rtol=1e-4, atol=1e-6)
