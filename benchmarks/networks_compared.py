"""The networks of the paper's comparison side by side, as in its figure 6a: size, work, time and memory.

    python benchmarks/networks_compared.py [--networks medsegmamba ...] [--device cpu] [--runs 3] [--volume]

A JSON line per network, then a table. Random weights at the published sizes; every network runs in a process of its
own, so that its peak memory is its own. Times are the minimum over the runs. MACs are multiplications with addition
of one 96^3 patch as the networks are written down: those of convolutions, products and attention as
torch.utils.flop_counter counts them, those of scans by formula (3 for each step, channel, state and direction: decay
times state plus input, read-out, rate times step size; the exponential is not counted), those of Mamba's causal
convolutions by formula. --volume adds a box of 160 x 176 x 208 at step 32 (60 patches; one run, minutes on a CPU).
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from unittest import mock

BOX, STEP = (160, 176, 208), 32


def networks():
    """Names of the networks that there are."""
    from medsegmamba_bids.networks.registry import NETWORKS

    return list(NETWORKS)


def count_macs(name, config=None):
    """Multiplications with addition of one patch by what counts them: layers, scans, causal convolutions."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from medsegmamba_bids.networks import mamba, ss3d
    from medsegmamba_bids.networks.registry import build_network

    counts = {"layers": 0, "scans": 0, "causal_convolutions": 0}

    def scan(u, delta, b, c, a, paths, **more):
        directions, states, channels = a.shape
        counts["scans"] += 3 * u.shape[0] * u.shape[1] * directions * states * channels
        return u.float()

    def convolution(x, weight, bias):
        counts["causal_convolutions"] += x.shape[0] * x.shape[1] * weight.numel()
        return x

    with torch.device("meta"):  # shapes only, nothing is computed
        network = build_network(name, config or {}).eval()
        patch = torch.empty(1, 1, *[network.patch_size] * 3)
    with (
        mock.patch.object(ss3d, "selective_scan", scan),
        mock.patch.object(mamba, "selective_scan", scan),
        mock.patch.object(mamba, "causal_convolution", convolution),
        mock.patch.object(torch, "autocast", return_value=nullcontext()),  # there is none for shapes
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        network(patch)
    counts["layers"] = counter.get_total_flops() // 2
    return counts


def measure(name, options):
    """One network in this process."""
    import numpy as np
    import torch

    from medsegmamba_bids.inference.predict import Patching, Resources, predict_volume
    from medsegmamba_bids.networks.kernels.memory import keep_freed_memory
    from medsegmamba_bids.networks.registry import build_network

    keep_freed_memory()
    torch.manual_seed(0)
    config = json.loads(options.config)
    network = build_network(name, config).eval().to(options.device, memory_format=torch.channels_last_3d)
    result = {"network": name, "device": options.device, "threads": torch.get_num_threads()}
    result["parameters"] = sum(p.numel() for p in network.parameters())
    macs = count_macs(name, config)
    result |= {"macs": sum(macs.values()), **{f"macs_{kind}": count for kind, count in macs.items()}}
    side = network.patch_size
    patch = torch.rand(1, 1, side, side, side, device=options.device)
    with torch.inference_mode():
        network.probabilities(patch)  # compiles the kernels
        result["seconds_per_patch"] = min(timed(network, patch) for _ in range(options.runs))
    result["peak_GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if patch.is_cuda:
        result["peak_gpu_GiB"] = torch.cuda.max_memory_allocated() / 2**30
    if options.volume:
        volume = np.random.default_rng(0).random(BOX, dtype=np.float32)
        start = time.perf_counter()
        found = predict_volume(
            network,
            volume,
            network.head.out_channels,
            Patching(side, STEP),
            Resources(options.device),
        )
        result |= {"seconds_per_volume": time.perf_counter() - start, "patches": found.patches}
        result["peak_GiB_volume"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()}


def timed(network, patch):
    import torch

    start = time.perf_counter()
    network.probabilities(patch)
    if patch.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def table(results):
    """The results as Markdown."""
    lines = [
        "| Network | Parameters | GMAC per patch | of these scans | s per patch | s per volume | Peak GiB |",
        "|:---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in results:
        scans, volume = one["macs_scans"] / 1e9, one.get("seconds_per_volume", "–")
        memory = one.get("peak_gpu_GiB", one["peak_GiB"])
        cells = [one["network"], f"{one['parameters']:,}", f"{one['macs'] / 1e9:.1f}", f"{scans:.1f}"]
        lines.append("| " + " | ".join(map(str, [*cells, one["seconds_per_patch"], volume, memory])) + " |")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=networks(), default=networks())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--volume", action="store_true")
    parser.add_argument("--config", default="{}", help="sizes other than the published ones, as JSON")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.alone:
        print(json.dumps(measure(options.networks[0], options)), flush=True)
        return 0
    results = []
    for name in options.networks:
        same = ["--alone", "--networks", name, "--device", options.device, "--runs", str(options.runs)]
        same += ["--config", options.config] + (["--volume"] if options.volume else [])
        done = subprocess.run([sys.executable, __file__, *same], check=True, stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="", flush=True)
        results.append(json.loads(done.stdout))
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
