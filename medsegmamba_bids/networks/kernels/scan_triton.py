"""The selective scan as GPU kernels in Triton: reads and writes voxels through the path tables.

Shape letters: B batch; K directions (8); L voxels = steps; C channels; N states; H chunks of steps.
Everything is in voxel order, as it lies in memory (any strides, any floating type); only the loop over steps follows
a path. A program is one direction of one sample and one block of channels. Its states stay in registers, float32, and
it walks the path step by step: exponentials limit the speed, and no scheme that cuts the path gets by with as few.
What the next step needs is loaded while this one is computed.

The directions' outputs are added by a second kernel, in order: atomic additions would give other last digits in every
run. Nothing here depends on the batch, neither the sizes of blocks nor the order of a sum.

For gradients the forward kernel keeps the states before every chunk; the backward kernel takes the chunks from the
last to the first, computes the states of a chunk once more, and follows the path back.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from medsegmamba_bids.errors import DeviceError

MOST_STATES = 256
CHUNK = 32  # steps; the kept states are L / CHUNK times those of one step, the computed ones CHUNK times
_SUM_BLOCK = 1024
_LOG2_E = tl.constexpr(1.4426950408889634)

#: Numbers of which the compiler is told nothing. Knew it that rates lie side by side, it would give a thread four
#: channels of few states instead of many states of one channel, and have eight threads compute each step size; and
#: one kernel is to serve every batch.
_UNSPECIALISED = ["a_n", "a_c", "batch"]


@triton.jit
def _softplus(x):
    """log(1 + exp(x)), relatively exact for large negative x as well."""
    small = tl.exp(-tl.abs(x))
    above = 1 + small
    exact = above == 1
    rest = tl.where(exact, small, tl.log(above) * (small / tl.where(exact, 1.0, above - 1)))
    return tl.maximum(x, 0.0) + rest


@triton.jit
def _step_size(raw, shift, SOFTPLUS: tl.constexpr):
    """The step size from what is stored."""
    if SOFTPLUS:
        raw = _softplus(raw + shift)
    return raw


@triton.jit
def _advance(h, rates, dt, dtx, write):
    """The states after a step: h = exp(dt A) h + B dt u."""
    return tl.exp2(dt[None, :] * (rates * _LOG2_E)) * h + write[:, None] * dtx[None, :]


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _forward_kernel(
    u, steps, b, c, a, bias, paths, out, kept,
    u_b, u_l, u_c, s_b, s_k, s_l, s_c, b_b, b_l, b_k, b_n, c_b, c_l, c_k, c_n, a_k, a_n, a_c,
    batch, length, channels,
    N: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Outputs of every direction (K, B, L, C); with KEEP also the states before every chunk (B, K, H, N, C)."""
    k, sample = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel, state = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    here, there = channel < channels, state < N
    both = there[:, None] & here[None, :]
    rates = tl.load(a + k * a_k + state[:, None] * a_n + channel[None, :] * a_c, both, 0).to(tl.float32)
    shift = tl.load(bias + k * channels + channel, here & SOFTPLUS, 0).to(tl.float32)
    u += sample * u_b + channel * u_c
    steps += sample * s_b + k * s_k + channel * s_c
    b += sample * b_b + k * b_k + state * b_n
    c += sample * c_b + k * c_k + state * c_n
    out += (k * batch + sample) * length * channels + channel
    paths += k * length
    kept += (sample * tl.num_programs(1) + k) * tl.cdiv(length, CHUNK) * N * channels
    tile = state[:, None] * channels + channel[None, :]

    h = tl.zeros([STATES, BLOCK], tl.float32)
    voxel, next_voxel = tl.load(paths), tl.load(paths + tl.minimum(1, length - 1))
    x, raw = tl.load(u + voxel * u_l, here, 0), tl.load(steps + voxel * s_l, here, 0)
    write, read = tl.load(b + voxel * b_l, there, 0), tl.load(c + voxel * c_l, there, 0)
    for step in range(length):
        after_next = tl.load(paths + tl.minimum(step + 2, length - 1))
        next_x, next_raw = tl.load(u + next_voxel * u_l, here, 0), tl.load(steps + next_voxel * s_l, here, 0)
        next_write, next_read = tl.load(b + next_voxel * b_l, there, 0), tl.load(c + next_voxel * c_l, there, 0)
        if KEEP and step % CHUNK == 0:
            tl.store(kept + (step // CHUNK) * N * channels + tile, h, both)
        dt = _step_size(raw.to(tl.float32), shift, SOFTPLUS)
        h = _advance(h, rates, dt, dt * x.to(tl.float32), write.to(tl.float32))
        tl.store(out + voxel * channels, tl.sum(read.to(tl.float32)[:, None] * h, 0), here)
        x, raw, write, read = next_x, next_raw, next_write, next_read
        voxel, next_voxel = next_voxel, after_next


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _backward_kernel(
    u, steps, b, c, a, bias, paths, grad, kept, scratch, grad_u, grad_steps, grad_b, grad_c, grad_a,
    u_b, u_l, u_c, s_b, s_k, s_l, s_c, b_b, b_l, b_k, b_n, c_b, c_l, c_k, c_n, a_k, a_n, a_c,
    batch, length, channels,
    N: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Gradients, given that of the outputs (B, L, C).

    Of u (K, B, L, C); of steps (B, K, L, C); of b and c for every block of channels (blocks, B, K, L, N); of the
    rates (B, K, N, C). ``scratch`` holds the states of a chunk (B, K, CHUNK, N, C).
    """
    k, sample = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel, state = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    here, there = channel < channels, state < N
    both = there[:, None] & here[None, :]
    rates = tl.load(a + k * a_k + state[:, None] * a_n + channel[None, :] * a_c, both, 0).to(tl.float32)
    shift = tl.load(bias + k * channels + channel, here & SOFTPLUS, 0).to(tl.float32)
    u += sample * u_b + channel * u_c
    steps += sample * s_b + k * s_k + channel * s_c
    b += sample * b_b + k * b_k + state * b_n
    c += sample * c_b + k * c_k + state * c_n
    paths += k * length
    grad += sample * length * channels + channel
    grad_u += (k * batch + sample) * length * channels + channel
    task = sample * tl.num_programs(1) + k  # of (B, K)
    grad_steps += task * length * channels + channel
    rows = ((tl.program_id(0) * batch + sample) * tl.num_programs(1) + k) * length * N + state  # of (blocks, B, K)
    grad_b += rows
    grad_c += rows
    tile = state[:, None] * channels + channel[None, :]
    chunks, size = tl.cdiv(length, CHUNK), N * channels
    kept += task * chunks * size + tile
    scratch += task * CHUNK * size + tile

    carry = tl.zeros([STATES, BLOCK], tl.float32)
    grad_rates = tl.zeros([STATES, BLOCK], tl.float32)
    for back in range(chunks):
        first = (chunks - 1 - back) * CHUNK
        count = tl.minimum(CHUNK, length - first)
        h = tl.load(kept + (chunks - 1 - back) * size, both, 0)
        for i in range(count):
            tl.store(scratch + i * size, h, both)
            voxel = tl.load(paths + first + i)
            x = tl.load(u + voxel * u_l, here, 0).to(tl.float32)
            dt = _step_size(tl.load(steps + voxel * s_l, here, 0).to(tl.float32), shift, SOFTPLUS)
            h = _advance(h, rates, dt, dt * x, tl.load(b + voxel * b_l, there, 0).to(tl.float32))
        tl.debug_barrier()
        for i in range(count):
            last = count - 1 - i
            before = tl.load(scratch + last * size, both, 0)
            voxel = tl.load(paths + first + last)
            x = tl.load(u + voxel * u_l, here, 0).to(tl.float32)
            raw = tl.load(steps + voxel * s_l, here, 0).to(tl.float32)
            write = tl.load(b + voxel * b_l, there, 0).to(tl.float32)
            read = tl.load(c + voxel * c_l, there, 0).to(tl.float32)
            g = tl.load(grad + voxel * channels, here, 0)
            dt = _step_size(raw, shift, SOFTPLUS)
            decayed = tl.exp2(dt[None, :] * (rates * _LOG2_E)) * before
            flow = carry + read[:, None] * g[None, :]  # gradient of the states after this step
            past = flow * decayed
            grad_dtx = tl.sum(flow * write[:, None], 0)
            grad_dt = tl.sum(past * rates, 0) + grad_dtx * x
            grad_rates += past * dt[None, :]
            if SOFTPLUS:
                grad_dt *= tl.sigmoid(raw + shift)
            tl.store(grad_u + voxel * channels, grad_dtx * dt, here)
            tl.store(grad_steps + voxel * channels, grad_dt, here)
            dtx = dt * x
            tl.store(grad_b + voxel * N, tl.sum(flow * dtx[None, :], 1), there)
            h = decayed + write[:, None] * dtx[None, :]
            tl.store(grad_c + voxel * N, tl.sum(h * g[None, :], 1), there)
            carry = flow * tl.exp2(dt[None, :] * (rates * _LOG2_E))
        tl.debug_barrier()
    tl.store(grad_a + task * size + tile, grad_rates, both)


@triton.jit
def _sum_kernel(parts, u, skip, out, u_b, u_l, u_c, length, channels, size, K: tl.constexpr, BLOCK: tl.constexpr):
    """Sum of the directions' parts (K, B, L, C), in order, plus u times skip: (B, L, C)."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    channel, row = place % channels, place // channels
    x = tl.load(u + (row // length) * u_b + (row % length) * u_l + channel * u_c, inside, 0).to(tl.float32)
    total = x * tl.load(skip + channel, inside, 0).to(tl.float32)
    parts += place
    for _ in tl.static_range(K):
        total += tl.load(parts, inside, 0)
        parts += size
    tl.store(out + place, total, inside)


def kernel_sizes(states: int, in_thread: int) -> dict[str, int]:
    """Return sizes of blocks for a number of states, with at most so many states in a thread; nothing else matters.

    The forward kernel has registers for 32 states in a thread, the backward kernel for 16. One warp is best where
    that suffices: sums over states then need no barrier.
    """
    padded = max(4, triton.next_power_of_2(states))
    block = 16 if padded >= 64 else 32
    warps = max(1, padded * block // (32 * in_thread))
    return {"N": states, "STATES": padded, "BLOCK": block, "CHUNK": CHUNK, "num_warps": warps}


def _strides(*tensors):
    return [stride for tensor in tensors for stride in tensor.stride()]


class _TritonScan(torch.autograd.Function):
    """``triton_scan`` with all of its inputs there."""

    @staticmethod
    def forward(ctx, u, steps, b, c, a, paths, bias, skip, softplus, keep):
        batch, length, channels = u.shape
        directions, sizes = len(paths), kernel_sizes(a.shape[1], 32)
        out = u.new_empty((directions, batch, length, channels), dtype=torch.float32)
        chunks = triton.cdiv(length, CHUNK)
        kept = out.new_empty((batch, directions, chunks, a.shape[1], channels) if keep else (0,))
        grid = (triton.cdiv(channels, sizes["BLOCK"]), directions, batch)
        _forward_kernel[grid](
            u, steps, b, c, a, bias, paths, out, kept, *_strides(u, steps, b, c, a), batch, length, channels,
            SOFTPLUS=softplus, KEEP=keep, **sizes,
        )  # fmt: skip
        ctx.save_for_backward(u, steps, b, c, a, paths, bias, skip, kept)
        ctx.softplus = softplus
        return _summed(out, u, skip)

    @staticmethod
    def backward(ctx, grad):
        u, steps, b, c, a, paths, bias, skip, kept = ctx.saved_tensors
        batch, length, channels = u.shape
        directions, states = len(paths), a.shape[1]
        sizes = kernel_sizes(states, 16)
        grad = grad.float().contiguous()
        blocks = triton.cdiv(channels, sizes["BLOCK"])
        grad_u = torch.empty((directions, batch, length, channels), device=u.device)
        grad_steps = torch.empty((batch, directions, length, channels), device=u.device)
        grad_b, grad_c = torch.empty((2, blocks, batch, directions, length, states), device=u.device)
        grad_a = torch.empty((batch, directions, states, channels), device=u.device)
        scratch = torch.empty((batch, directions, CHUNK, states, channels), device=u.device)
        _backward_kernel[blocks, directions, batch](
            u, steps, b, c, a, bias, paths, grad, kept, scratch, grad_u, grad_steps, grad_b, grad_c, grad_a,
            *_strides(u, steps, b, c, a), batch, length, channels, SOFTPLUS=ctx.softplus, **sizes,
        )  # fmt: skip
        return (
            _summed(grad_u, grad, skip).to(u.dtype),
            grad_steps.to(steps.dtype),
            grad_b.sum(0).transpose(1, 2).to(b.dtype),
            grad_c.sum(0).transpose(1, 2).to(c.dtype),
            grad_a.sum(0).to(a.dtype),
            None,
            grad_steps.sum((0, 2)).to(bias.dtype) if ctx.softplus else None,
            (u.float() * grad).sum((0, 1)).to(skip.dtype),
            None,
            None,
        )


def _summed(parts, u, skip):
    out = torch.empty_like(parts[0])
    grid = (triton.cdiv(out.numel(), _SUM_BLOCK),)
    _sum_kernel[grid](parts, u, skip, out, *u.stride(), *parts.shape[2:], out.numel(), K=len(parts), BLOCK=_SUM_BLOCK)
    return out


def triton_scan(
    u: torch.Tensor,
    steps: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    a: torch.Tensor,
    paths: torch.Tensor,
    bias: torch.Tensor | None = None,
    skip: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return ``selective_scan.selective_scan`` on a GPU, in float32 whatever the inputs' precision.

    Parameters
    ----------
    u, steps, b, c, a, paths, bias, skip
        As ``selective_scan`` takes them; ``steps`` is its ``delta``.

    Returns
    -------
    float32 (B, L, C)

    Raises
    ------
    DeviceError
        More than 256 states.
    """
    if a.shape[1] > MOST_STATES:
        raise DeviceError(f"{a.shape[1]} states: the triton scan has at most {MOST_STATES}; use another scan backend")
    channels = u.shape[-1]
    softplus = bias is not None
    bias = bias.contiguous() if softplus else a.new_empty(0)
    skip = a.new_zeros(channels) if skip is None else skip.sum(0)
    inputs = (u, steps, b, c, a, paths.contiguous(), bias, skip)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    with torch.cuda.device_of(u):
        return _TritonScan.apply(*inputs, softplus, keep)
