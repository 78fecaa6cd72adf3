"""What can be known of the Triton kernels without a GPU, as JSON; a process of its own, run by test_scan_triton.py.

    python triton_without_gpu.py interpret|compile

``interpret`` runs them in Triton's interpreter (slow: tiny sizes) against the reference. ``compile`` makes machine
code for several GPUs and says what it needs.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "helpers"))
if sys.argv[1:] == ["interpret"]:
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: it decides what a kernel is

CASES = {  # of fused_inputs
    "few states, two blocks of channels, the last not full": {"batch": 2, "side": 2, "channels": 37, "states": 5},
    "published states, bfloat16": {"batch": 1, "side": 2, "channels": 20, "states": 64, "dtype": "bfloat16"},
    "float16": {"batch": 1, "side": 2, "channels": 4, "states": 16, "dtype": "float16"},
    "more chunks than one, the last not full": {"batch": 1, "side": 3, "channels": 8, "states": 16, "orientation": 1},
    "many states, no power of two": {"batch": 1, "side": 2, "channels": 3, "states": 130, "orientation": 5},
}


def interpret():
    import torch

    import scan_cases
    from medsegmamba_bids.networks.kernels import scan_triton

    scan_triton.CHUNK = 4
    results = {}
    for name, case in CASES.items():
        case = dict(case, dtype=getattr(torch, case.get("dtype", "float32")))
        leaves, paths = scan_cases.fused_inputs(**case)
        found = scan_cases.run(scan_triton.triton_scan, leaves, paths)
        results[name] = scan_cases.errors(found, scan_cases.run(scan_cases.reference, leaves, paths))
    results["extremes"] = extremes(scan_cases, scan_triton.triton_scan)
    results["bare"] = bare(scan_triton.triton_scan)
    results["group norm"] = group_norms()
    results["samples are apart"] = samples_apart(scan_cases, scan_triton.triton_scan)
    return results


def extremes(scan_cases, scan):
    """Decays from almost 1 to far below the smallest float; steps whose exponential float32 cannot hold."""
    import torch

    leaves, paths = scan_cases.fused_inputs(1, 2, 9, 3)
    with torch.no_grad():
        leaves[2][..., ::3] = 120.0
        leaves[2][..., 1::3] = -30.0
    found, expected = (scan_cases.run(one, leaves, paths) for one in (scan, scan_cases.reference))
    return scan_cases.errors(found, expected) | {"finite": all(bool(t.isfinite().all()) for t in found)}


def bare(scan):
    """One path, neither bias nor skip, as SegMamba's scans."""
    import torch

    from medsegmamba_bids.networks.kernels.selective_scan import reference_scan

    torch.manual_seed(0)
    shapes = ((2, 6, 5), (2, 1, 6, 5), (2, 6, 1, 4), (2, 6, 1, 4), (1, 4, 5))
    u, delta, b, c, a = (torch.randn(shape) for shape in shapes)
    inputs = (u, delta.abs(), b, c, -a.abs(), torch.tensor([[3, 1, 0, 5, 4, 2]], dtype=torch.int32))
    return {"out": float((scan(*inputs) - reference_scan(*inputs)).abs().max())}


def group_norms():
    """Errors of the fused group norm with ReLU, as parts of the largest value; whether a sample is alone the same."""
    import torch
    import torch.nn.functional as F

    from medsegmamba_bids.networks.kernels import group_norm_triton

    group_norm_triton._SPLITS = 32
    torch.manual_seed(0)
    results = {}
    for dtype, channels in ((torch.float32, 16), (torch.float16, 64)):
        x, weight, bias = torch.randn(2, channels, 3, 5, 7) * 3 + 5, torch.randn(channels), torch.randn(channels)
        x = x.to(dtype).contiguous(memory_format=torch.channels_last_3d)
        expected = F.relu(F.group_norm(x.float(), 8, weight, bias, 1e-5))
        second = x[1:].clone(memory_format=torch.preserve_format)
        found = group_norm_triton.group_norm_relu_in_place(x, 8, weight, bias, 1e-5)
        alone = group_norm_triton.group_norm_relu_in_place(second, 8, weight, bias, 1e-5)
        results[str(dtype)] = {
            "error": float((found.float() - expected).abs().max() / expected.abs().max()),
            "in_place": found.data_ptr() == x.data_ptr() and found.dtype == dtype,
            "alone": torch.equal(alone[0], found[1]),
        }
    return results


def samples_apart(scan_cases, scan):
    """Whether a sample gives the same bits alone and among others, and in a second run."""
    import torch

    leaves, paths = scan_cases.fused_inputs(3, 2, 6, 5)
    with torch.no_grad():
        u, delta, b, c, a, bias, skip = scan_cases.arguments(leaves)
        whole, again = (scan(u, delta, b, c, a, paths, bias, skip) for _ in range(2))
        alone = scan(u[1:2], delta[1:2], b[1:2], c[1:2], a, paths, bias, skip)
    return {"alone": torch.equal(alone[0], whole[1]), "again": torch.equal(whole, again)}


def machine_code():
    warnings.simplefilter("ignore")  # triton's, about its own future
    from medsegmamba_bids.networks.kernels import scan_triton

    results = {}
    for capability in (75, 80, 90):
        for states in (16, 64, 256):
            name = f"forward, sm_{capability}, {states} states"
            results[name] = built(scan_triton._forward_kernel, capability, states, 32, KEEP=False)
    for states in (16, 64, 256):
        name = f"forward with kept states, sm_90, {states} states"
        results[name] = built(scan_triton._forward_kernel, 90, states, 32, KEEP=True)
        results[f"backward, sm_90, {states} states"] = built(scan_triton._backward_kernel, 90, states, 16)
    results |= group_norms_built()
    return results


def group_norms_built():
    """The group norm's kernels for the network's last level, 64 channels."""
    from medsegmamba_bids.networks.kernels import group_norm_triton as module

    common = {"C": 64, "SPLITS": 512}
    return {
        "group norm, sums": assembled(module._sums_kernel, 90, {**common, "ROWS": 64}, {"x": "*bf16"}),
        "group norm, statistics": assembled(
            module._statistics_kernel, 90, {**common, "G": 8, "ROWS": 32}, {"epsilon": "fp32"}
        ),
        "group norm, normalise": assembled(module._normalise_kernel, 90, {"C": 64, "BLOCK": 4096}, {"x": "*bf16"}),
    }


def built(kernel, capability, states, in_thread, **options):
    """Compile a scan as for a network under autocast: bfloat16 projections, float32 steps, last axes contiguous."""
    from medsegmamba_bids.networks.kernels import scan_triton

    constants = dict(scan_triton.kernel_sizes(states, in_thread), SOFTPLUS=True, **options)
    warps = constants.pop("num_warps")
    constants |= dict.fromkeys(("u_c", "s_c", "b_n", "c_n"), 1)
    types = dict.fromkeys(("u", "b", "c"), "*bf16") | {"paths": "*i32"}
    code = assembled(kernel, capability, constants, types, warps)
    return code | {"states_in_thread": constants["STATES"] * constants["BLOCK"] // (32 * warps)}


#: Of the kernels' arguments that are no number.
POINTERS = {
    *("u", "steps", "b", "c", "a", "bias", "paths", "out", "kept"),
    *("grad", "scratch", "grad_u", "grad_steps", "grad_b", "grad_c", "grad_a"),
    *("x", "sums", "weight", "scale", "shift"),
}


def assembled(kernel, capability, constants, types, warps=4):
    """Compile a kernel; numbers are taken for multiples of 16 where the compiler may be told so."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    told_nothing = {param.name for param in kernel.params if param.do_not_specialize}
    signature, places, aligned = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], places[(place,)] = "constexpr", constants[name]
            continue
        signature[name] = types.get(name, "*fp32" if name in POINTERS else "i32")
        if name not in told_nothing and signature[name] != "fp32":
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, places, aligned)
    code = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    return usage(code.asm["cubin"]) | {"exponentials": code.asm["ptx"].count("ex2.approx")}


def usage(cubin):
    """Registers of a thread, and bytes that did not fit into them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        said = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", said).groups())
    return {"registers": registers, "spilled": stack + local}


if __name__ == "__main__":
    print(json.dumps(interpret() if sys.argv[1] == "interpret" else machine_code(), indent=1))
