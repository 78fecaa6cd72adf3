"""GPU memory that a network takes for a batch of patches, counted without a GPU: one JSON line.

    python benchmarks/memory.py [--batch 1] [--classes 32] [--top 8]

The code for GPUs runs on torch's meta device, where tensors have sizes and no contents, and every storage is counted
from its making to its end; the scan is taken for the Triton kernel, that is its outputs for each direction and their
sum. Float32 throughout: autocast halves most activations. Not counted: the CUDA context (some 0.3 to 0.5 GiB, which
other programs on a GPU pay as well), workspaces of cuDNN, and what torch's allocator keeps beyond what is in use.
"""

import argparse
import json
from contextlib import nullcontext
from unittest.mock import patch

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """Bytes of the storages that exist within, and the operations at whose ends they were the most."""

    def __init__(self, known=()):
        super().__init__()
        self.alive, self.peak, self.where = {}, 0, {}
        for tensor in known:
            self.count(tensor)

    def count(self, tensor):
        storage = tensor.untyped_storage()
        self.alive[StorageWeakRef(storage)] = storage.nbytes()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor)
        self.alive = {ref: size for ref, size in self.alive.items() if not ref.expired()}
        now = sum(self.alive.values())
        name = f"{func} {tuple(getattr(out, 'shape', ()))}"
        self.where[name] = max(self.where.get(name, 0), now)
        self.peak = max(self.peak, now)
        return out


def triton_sized_scan(u, delta, b, c, a, paths, **options):
    """Allocates what the Triton scan does."""
    parts = torch.empty((len(paths), *u.shape), device=u.device)
    return torch.empty_like(parts[0])


def forward_on_meta(make_mode, batch=1, **config):
    """Run the network of a configuration under a mode, on the meta device: mode and network.

    ``make_mode`` is given the network.
    """
    from medsegmamba_bids.networks import ss3d
    from medsegmamba_bids.networks.medsegmamba import MedSegMamba

    replaced = patch.object(ss3d, "selective_scan", triton_sized_scan)
    no_autocast = patch("torch.autocast", lambda *args, **options: nullcontext())  # the meta device has none
    with replaced, no_autocast, torch.device("meta"), torch.no_grad():
        network = MedSegMamba(**config).eval()
        side = network.patch_size
        patches = torch.empty(batch, 1, side, side, side)
        with make_mode(network) as mode:
            network.probabilities(patches)
    return mode, network


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--classes", type=int, default=32)
    parser.add_argument("--top", type=int, default=8, metavar="N", help="how many of the largest moments to name")
    options = parser.parse_args(argv)
    meter, network = forward_on_meta(lambda one: Meter(one.parameters()), options.batch, classes=options.classes)
    parameters = sum(4 * parameter.numel() for parameter in network.parameters())
    largest = sorted(meter.where.items(), key=lambda pair: -pair[1])[: options.top]
    gib = 2**30
    result = {"batch": options.batch, "parameters_GiB": round(parameters / gib, 3)}
    result |= {"peak_GiB": round(meter.peak / gib, 3), "where": {k: round(v / gib, 3) for k, v in largest}}
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
