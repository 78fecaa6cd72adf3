"""Everything that docs/performance.md says about a GPU, measured by one command; a JSON line per case, then the table.

    python benchmarks/gpu.py [--device cuda:0] [--image T1W ...] [--reference LABELS ...] [--runs 10]

The published configuration with random weights: a patch in each precision, the scan alone, a 160 x 176 x 208 box at
steps 16 and 32 (also with --low-memory), and many scans in a row. The embedded weights: what half precision loses on
the images (by default the MNI152 template of nilearn; with references, in Dice against those). Times are the minimum of
the runs, after one that compiles. Nothing else should run on the GPU.

The floor of a patch is what its products take at the rate of a large matrix product, measured in the same precision,
and what the scans' exponentials take at 16 a clock and multiprocessor, the hardware's limit; both are said.

--tiny runs all of it in a minute on a CPU, with small networks, to see that it runs: its numbers mean nothing.
"""

import argparse
import importlib.util
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch


def sibling(name):
    """Another script of this folder, as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


memory_benchmark, precision_benchmark = sibling("memory"), sibling("precision")

GIB = 2**30
PUBLISHED = {}  # the network's defaults
TINY = {"channels": (8, 8, 8, 8), "bottleneck": 16, "state": 4, "blocks": 2, "classes": 5, "patch_size": 16}


class Bench:
    """The options, the device, and the rows so far."""

    def __init__(self, options):
        self.options, self.device = options, torch.device(options.device)
        self.cuda = self.device.type == "cuda"
        self.config = TINY if options.tiny else PUBLISHED
        self.box = (24, 20, 28) if options.tiny else (160, 176, 208)
        self.steps = (8, 16) if options.tiny else (16, 32)
        self.batches = (1, 2) if options.tiny else (1, 4, 8)
        self.precisions = ("float32", "bfloat16", "float16") if self.cuda else ("float32", "bfloat16")
        self.rows = []

    def row(self, what, value, unit, goal="", met=None, **more):
        """Keep and print a result."""
        said = {"case": what, "value": value, "unit": unit, "goal": goal, "met": met, **more}
        self.rows.append(said)
        print(json.dumps(said), flush=True)

    def seconds(self, call):
        """Least time of a call; and the most memory in use meanwhile, GiB, None on a CPU."""
        call()
        self.wait()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        times = []
        for _ in range(self.options.runs):
            start = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - start)
        return min(times), torch.cuda.max_memory_allocated(self.device) / GIB if self.cuda else None

    def wait(self):
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def network(self):
        from medsegmamba_bids.networks.medsegmamba import MedSegMamba

        torch.manual_seed(0)
        return MedSegMamba(**self.config).eval()


def versions(bench):
    """The card and what runs on it."""
    from medsegmamba_bids.networks.kernels.selective_scan import available_backends

    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    for name in ("triton", "mamba_ssm"):
        if importlib.util.find_spec(name):
            found[name] = getattr(importlib.import_module(name), "__version__", "unknown")
    if bench.cuda:
        found["cudnn"] = torch.backends.cudnn.version()
    found["scan backends"] = ", ".join(available_backends(bench.device))
    card = torch.cuda.get_device_name(bench.device) if bench.cuda else platform.processor() or "CPU"
    bench.row("card", card, "", **found)


def work_of_a_patch(bench):
    """Multiplications with additions, and exponentials of the scans."""
    from torch.utils.flop_counter import FlopCounterMode

    counter, network = memory_benchmark.forward_on_meta(lambda one: FlopCounterMode(display=False), **bench.config)
    voxels, rates = (network.patch_size // 8) ** 3, network.bottleneck[0].scan.log_rates
    return counter.get_total_flops() / 2, len(network.bottleneck) * voxels * rates.numel()


def rates(bench, precision):
    """Multiply-adds a second of a large matrix product, and exponentials a second (None: not known)."""
    from medsegmamba_bids.inference.predict import AUTOCAST_TYPES

    size = 256 if bench.options.tiny else 8192
    one = torch.randn(size, size, device=bench.device, dtype=AUTOCAST_TYPES[precision] or torch.float32)
    products = size**3 / bench.seconds(lambda: one @ one)[0]
    properties = torch.cuda.get_device_properties(bench.device) if bench.cuda else None
    clock = getattr(properties, "clock_rate", None)  # kHz
    return products, 16 * properties.multi_processor_count * clock * 1e3 if clock else None


def patches(bench):
    """A patch in each precision and batch; returns the best seconds per patch of each precision."""
    from medsegmamba_bids.inference.predict import AUTOCAST_TYPES, weights_channels_last

    multiplications, exponentials = work_of_a_patch(bench)
    network, best = bench.network().to(bench.device), {}
    weights_channels_last(network)
    side = network.patch_size
    for precision in bench.precisions:
        products, exps = rates(bench, precision)
        floor = multiplications / products
        whole = floor + exponentials / exps if exps else None
        for batch in bench.batches:
            x = torch.rand(batch, 1, side, side, side, device=bench.device)
            dtype = AUTOCAST_TYPES[precision]
            on = dtype is not None

            def forward(x=x, dtype=dtype, on=on):
                with torch.inference_mode(), torch.autocast(bench.device.type, dtype or torch.bfloat16, enabled=on):
                    return network.probabilities(x)

            seconds, memory = bench.seconds(forward)
            seconds /= batch
            best[precision] = min(best.get(precision, np.inf), seconds)
            more = {"patches_at_once": batch, "memory_GiB": memory, "floor_ms": 1e3 * floor}
            if whole:
                more |= {"floor_with_exponentials_ms": 1e3 * whole, "fraction_with_exponentials": whole / seconds}
            fraction = floor / seconds
            bench.row(f"patch, {precision}, {batch} at once", 1e3 * seconds, "ms", fraction=fraction, **more)
        fraction = floor / best[precision]
        bench.row(f"fraction of the floor, {precision}", fraction, "", "at least 0.4", fraction >= 0.4)
    graph_row(bench, network)
    return best


def graph_row(bench, network):
    """What a CUDA graph would gain: one patch launched anew against one replayed, bfloat16."""
    if not bench.cuda:
        return
    side = network.patch_size
    x = torch.rand(1, 1, side, side, side, device=bench.device)

    def forward():
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            return network.probabilities(x)

    eager = bench.seconds(forward)[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward()
    replayed = bench.seconds(graph.replay)[0]
    bench.row("patch replayed from a CUDA graph, bfloat16", 1e3 * replayed, "ms", launched_ms=1e3 * eager)


def scans(bench):
    """One block's scan by every backend, inputs as autocast gives them; forward, and with gradients."""
    from medsegmamba_bids.networks.kernels.selective_scan import available_backends, selective_scan
    from medsegmamba_bids.networks.scan_paths import scan_paths

    network = bench.network()
    side, scan = network.patch_size // 8, network.bottleneck[0].scan
    channels, states, batch = scan.in_proj.out_features, scan.state, bench.batches[-2]
    half, full = {"device": bench.device, "dtype": torch.bfloat16}, {"device": bench.device}
    length, directions = side**3, 8
    u, b, c = (
        torch.randn(shape, **half) for shape in ((batch, length, channels), *2 * ((batch, length, directions, states),))
    )
    delta = torch.randn(batch, directions, length, channels, **full)
    a = -torch.rand(directions, states, channels, **full) * states
    bias, skip = (torch.randn(directions, channels, **full) for _ in range(2))
    paths = torch.tensor(scan_paths(side, 0), device=bench.device)
    leaves = [t.requires_grad_() for t in (u, delta, b, c, a, bias, skip)]
    least = {}
    names = [name for name in available_backends(bench.device) if name != "reference" or bench.options.tiny]
    for name in names:

        def forward(name=name):
            with torch.no_grad():
                return selective_scan(u, delta, b, c, a, paths, backend=name, bias=bias, skip=skip)

        def both(name=name):
            out = selective_scan(u, delta, b, c, a, paths, backend=name, bias=bias, skip=skip)
            torch.autograd.grad(out.sum(), leaves)

        least[name], memory = bench.seconds(forward)
        learning, memory_too = bench.seconds(both)
        more = {"memory_GiB": memory, "with_gradients_ms": 1e3 * learning, "memory_with_gradients_GiB": memory_too}
        bench.row(f"scan of one block, {name}, {batch} patches", 1e3 * least[name], "ms", **more)
    if {"triton", "cuda"} <= least.keys():
        ratio = least["cuda"] / least["triton"]
        bench.row("scan: mamba_ssm's time by Triton's", ratio, "", "at least 2", ratio >= 2)


def boxes(bench):
    """A whole box of patches; returns the fastest precision, of which the goals speak."""
    from medsegmamba_bids.inference.device import limit_memory
    from medsegmamba_bids.inference.predict import Patching, Resources, predict_volume

    network = bench.network()
    volume = np.random.default_rng(0).random(bench.box, dtype=np.float32)
    limits = dict(zip(bench.steps, (5.0, 1.5), strict=True))

    def run(step, precision, low_memory=False):
        resources = Resources(bench.device, precision, bench.batches[-2], low_memory=low_memory)
        return predict_volume(network, volume, network.head.out_channels, Patching(network.patch_size, step), resources)

    for precision in bench.precisions:
        for step, limit in limits.items():
            seconds, memory = bench.seconds(lambda p=precision, s=step: run(precision=p, step=s))
            met = seconds < limit if precision != "float32" else None
            count = run(precision=precision, step=step).patches
            more = {"patches": count, "patches_per_second": count / seconds, "memory_GiB": memory}
            shape = " x ".join(map(str, bench.box))
            goal = f"under {limit:g} s"
            bench.row(f"box of {shape}, step {step}, {precision}", seconds, "s", goal, met, **more)
    limit_memory(bench.device)
    for precision in bench.precisions[:2]:
        step = bench.steps[-1]
        seconds, memory = bench.seconds(lambda p=precision, s=step: run(precision=p, step=s, low_memory=True))
        run_on = str(run(precision=precision, step=step, low_memory=True).device)
        met = memory < 2 and run_on != "cpu" if bench.cuda else None
        more = {"seconds": seconds, "ran_on": run_on}
        bench.row(f"--low-memory, step {step}, {precision}: memory", memory, "GiB", "under 2 GiB", met, **more)
    if bench.cuda:
        torch.cuda.set_per_process_memory_fraction(1.0)


def images(bench):
    """The images to segment, conformed."""
    from medsegmamba_bids.image.geometry import conform
    from medsegmamba_bids.image.io import load_image
    from medsegmamba_bids.stats.intracranial import nilearn_template

    paths = bench.options.image or [nilearn_template()]
    return [(Path(path).name, conform(load_image(path))) for path in paths]


def agreement(bench, conformed):
    """What half precision changes with trained weights."""
    from medsegmamba_bids.image.io import load_labels
    from medsegmamba_bids.inference.segmenter import InferenceSettings, Segmenter

    weights = bench.options.weights
    references = [load_labels(path) for path in bench.options.reference] or [None] * len(conformed)
    for (name, image), reference in zip(conformed, references, strict=True):
        exact = None
        for precision in bench.precisions:
            found = Segmenter(InferenceSettings(str(bench.device), precision)).segment(image, weights)
            if exact is None:
                exact = found
                continue
            numbers = precision_benchmark.agreement(found, exact)
            same = numbers.pop("argmax_agreement")
            bench.row(f"agreement, {precision}, {name}", same, "", "at least 0.998", same >= 0.998, **numbers)
            if reference is not None:
                losses = precision_benchmark.dice_loss(found, exact, reference)
                loss = losses.pop("mean_dice_loss")
                bench.row(f"Dice loss, {precision}, {name}", loss, "", "under 0.0005", loss < 0.0005, **losses)


def many(bench, conformed):
    """Scans in a row by one process, against the time that their patches alone take."""
    from medsegmamba_bids.inference import segmenter as module
    from medsegmamba_bids.inference.segmenter import InferenceSettings, Segmenter

    spent = []
    real = module.predict_volume

    def timed(*args, **options):
        bench.wait()
        start = time.perf_counter()
        found = real(*args, **options)
        bench.wait()
        spent.append(time.perf_counter() - start)
        return found

    segmenter = Segmenter(InferenceSettings(str(bench.device), "bfloat16"))
    segmenter.segment(conformed[0][1], bench.options.weights)
    module.predict_volume = timed
    try:
        start = time.perf_counter()
        for i in range(bench.options.scans):
            segmenter.segment(conformed[i % len(conformed)][1], bench.options.weights)
        whole = time.perf_counter() - start
    finally:
        module.predict_volume = real
    share = sum(spent) / whole
    what = f"{bench.options.scans} scans: part of the time in which patches run"
    bench.row(what, share, "", "at least 0.9", share >= 0.9, seconds_per_scan=whole / bench.options.scans)


def table(rows):
    """The results as Markdown."""
    lines = ["| what | result | goal | met | more |", "|---|---|---|---|---|"]
    for row in rows:
        known = ("case", "value", "unit", "goal", "met")
        more = ", ".join(f"{key.replace('_', ' ')} {short(row[key])}" for key in row if key not in known)
        met = {None: "", True: "yes", False: "no"}[row["met"]]
        lines.append(f"| {row['case']} | {short(row['value'])} {row['unit']} | {row['goal']} | {met} | {more} |")
    return "\n".join(lines)


def short(value):
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--image", type=Path, action="append", default=[], help="may be given again")
    parser.add_argument("--reference", type=Path, action="append", default=[], help="labels of each --image")
    parser.add_argument("--weights", help="for agreement and many scans (default: the embedded ones)")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--scans", type=int, default=10)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    return parser


def main(argv=None):
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.reference and len(options.reference) != len(options.image):
        parser.error("as many --reference as --image are needed")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device: nothing was measured (--tiny --device cpu tries the script)", file=sys.stderr)
        return 1
    bench = Bench(options)
    versions(bench)
    patches(bench)
    scans(bench)
    boxes(bench)
    conformed = images(bench)
    agreement(bench, conformed)
    many(bench, conformed)
    print("\n" + table(bench.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
