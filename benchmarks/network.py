"""Time and memory of the networks on this machine: one JSON line per case.

    python benchmarks/network.py [--cases full small volume] [--runs 3] [--threads N] [--device cpu]

Every case runs in a process of its own, so that its peak memory is its own. Random weights; times are the minimum.
Beside the time of a patch stand its multiplications (GMAC), the best rate of 3x3x3 convolutions in the same process,
and what both make together: the floor; the ratio is the time by the floor. The scans' exponentials are not in it.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

CASES = {
    "full": "the published network, one 96^3 patch",
    "full-bfloat16": "the same in bfloat16 (autocast; the scan in float32)",
    "full-without-scan": "the same with the scan left out",
    "small": "channels 8..128, state 16, 4 blocks, one 80^3 patch",
    "middle": "channels 16..256, state 16, 4 blocks, one 96^3 patch",
    "volume": "the published network over a 160 x 176 x 208 box at step 32, 60 patches (one run)",
    "volume-16": "the same at step 16, 240 patches (one run)",
    "small-volume": "the small network over a 107 x 117 x 139 box (1.5 mm) at step 40",
}
SMALL = {"channels": (8, 16, 32, 64), "bottleneck": 128, "state": 16, "blocks": 4, "classes": 36, "patch_size": 80}
MIDDLE = {"channels": (16, 32, 64, 128), "bottleneck": 256, "state": 16, "blocks": 4, "classes": 36}
BOXES = {"volume": (160, 176, 208), "volume-16": (160, 176, 208), "small-volume": (107, 117, 139)}
SKIPPED = "skipped"


def leave_the_scan_out():
    """Everything of SS3D but the recurrence itself."""
    from medsegmamba_bids.networks import ss3d

    ss3d.selective_scan = lambda u, delta, b, c, a, paths, **options: u.float()


def measure(case, device, runs):
    """One case in this process."""
    import numpy as np
    import torch

    from medsegmamba_bids.inference.predict import Patching, Resources, predict_volume
    from medsegmamba_bids.networks.kernels.memory import keep_freed_memory
    from medsegmamba_bids.networks.medsegmamba import MedSegMamba

    if device.startswith("cuda") and not torch.cuda.is_available():
        return {"case": case, SKIPPED: "no CUDA device"}
    keep_freed_memory()
    if case == "full-without-scan":
        leave_the_scan_out()
    torch.manual_seed(0)
    config = SMALL if case.startswith("small") else MIDDLE if case == "middle" else {}
    network = MedSegMamba(**config).eval().to(device, memory_format=torch.channels_last_3d)
    side = network.patch_size
    patch = torch.rand(1, 1, side, side, side, device=device)
    result = {"case": case, "device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    half = case == "full-bfloat16"
    with torch.inference_mode(), torch.autocast(patch.device.type, torch.bfloat16, enabled=half):
        network.probabilities(patch)  # compiles the kernels
        if case in BOXES:
            volume = np.random.default_rng(0).random(BOXES[case], dtype=np.float32)
            start = time.perf_counter()
            step = side // 2 if case.startswith("small") else 16 if case == "volume-16" else 32
            found = predict_volume(network, volume, network.head.out_channels, Patching(side, step), Resources(device))
            seconds = time.perf_counter() - start
            result |= {"seconds_per_volume": seconds, "patches_per_second": found.patches / seconds}
        else:
            seconds = min(timed(network, patch) for _ in range(runs))
            found = floor(network, patch, runs, torch.bfloat16 if half else torch.float32)
            result |= {"seconds_per_patch": seconds, **found, "ratio": seconds / found["floor_s"]}
    result["peak_GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if device.startswith("cuda"):
        result["peak_gpu_GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}


def floor(network, patch, runs, dtype):
    """The arithmetic of a patch at the rate that convolutions of this type reach here; the scans are not in it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

    from medsegmamba_bids.networks import blocks
    from medsegmamba_bids.networks.kernels.winograd import pays

    def by_onednn(x, weight, *rest, out_shape, **more):
        return conv_flop_count(x, weight, out_shape)

    known = {torch.ops.aten.mkldnn_convolution: by_onednn}
    # As they are written: what Winograd's algorithm saves shows in the time. In inference mode the counter would not
    # see what convolutions consist of.
    blocks.pays = lambda x, weight: False
    exact = torch.autocast(patch.device.type, enabled=False)
    counting = FlopCounterMode(display=False, custom_mapping=known)
    with torch.inference_mode(False), torch.no_grad(), exact, counting as counter:
        network.probabilities(patch)
    blocks.pays = pays
    multiplications = counter.get_total_flops() / 2
    rates = []
    for channels, side in ((128, 24), (64, 48), (32, 48)):
        layer = torch.nn.Conv3d(channels, channels, 3, padding=1).to(patch.device, dtype)
        layer = layer.to(memory_format=torch.channels_last_3d)
        volume = torch.rand(1, channels, side, side, side, device=patch.device, dtype=dtype)
        volume = volume.to(memory_format=torch.channels_last_3d)
        seconds = min(
            seconds_of(lambda layer=layer, volume=volume: layer(volume), patch.is_cuda) for _ in range(4 * runs)
        )
        rates.append(channels**2 * 27 * side**3 / seconds)
    return {"GMAC": multiplications / 1e9, "GMAC_per_s": max(rates) / 1e9, "floor_s": multiplications / max(rates)}


def timed(network, patch):
    return seconds_of(lambda: network.probabilities(patch), patch.is_cuda)


def seconds_of(work, on_gpu):
    import torch

    start = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["full", "full-without-scan", "small"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measure(options.cases[0], options.device, options.runs)), flush=True)
        return
    for case in options.cases:
        same = ["--alone", "--cases", case, "--device", options.device, "--runs", str(options.runs)]
        subprocess.run([sys.executable, __file__, *same], check=True)


if __name__ == "__main__":
    main()
