"""The selective scan as CPU kernels: reads voxels through the path tables, so that no reordered copy exists.

Shape letters: B batch; K directions (8); L voxels = steps; C channels; N states.
Everything is in voxel order; only the loop over steps follows a path. A task is some directions of one sample
and one block of channels; channels are innermost, so that they fill vectors. A path jumps from one memory page to
another, and without asking for the next step's rows ahead of time a third of the time is waiting for them.
"""

from __future__ import annotations

import numpy as np
import torch
from llvmlite import ir
from numba import float32, get_num_threads, get_thread_id, int32, njit, prange, void
from numba.core import cgutils
from numba.extending import intrinsic

#: Fast-math but for infinities and NaN; sums may be regrouped, so that they fill vectors. ``exp_of_negative`` takes its
#: whole part by ``floor``, which regrouping cannot break (the usual addition of a large constant it would).
_FAST = {"nsz", "contract", "arcp", "reassoc"}
#: Channels of a task: a fixed count lets the compiler unroll, and a block's states stay in a near cache.
WIDTH = 128
#: The same on the way back, which keeps the states of all steps.
BLOCK = 64
TASKS = 16  # at least, for each sample
LINE = 16  # float32 of a cache line


@intrinsic
def _float_of_bits(typing_context, bits):
    """The float32 with these bits; a register move, which keeps the loops around it vectorised."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return float32(int32), codegen


@intrinsic
def _fetch(typing_context, array, index):
    """Start to load the cache line that holds an item of a C-contiguous array."""

    def codegen(context, builder, signature, args):
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.bitcast(builder.gep(data, [args[1]]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(prefetch, [address, number(0), number(3), number(1)])  # to read, soon again, data
        return context.get_dummy_value()

    return void(array, index), codegen


@njit(inline="always", fastmath=_FAST)
def exp_of_negative(x):
    """Exponential of x <= 0, float32, relative error below 3e-7: 2^whole * 2^rest, the latter by a polynomial."""
    t = max(x * np.float32(1.4426950408889634), np.float32(-126.0))
    whole = np.floor(t)
    rest = t - whole
    power = np.float32(1.8775767e-3)
    power = power * rest + np.float32(8.9893397e-3)
    power = power * rest + np.float32(5.5826318e-2)
    power = power * rest + np.float32(2.4015361e-1)
    power = power * rest + np.float32(6.9315308e-1)
    power = power * rest + np.float32(9.9999994e-1)
    return power * _float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23))


@njit(inline="always")
def _fetch_row(array, start, length):
    """Start to load ``length`` items of a flat array."""
    for i in range(0, length, LINE):
        _fetch(array, start + i)


@njit(fastmath=_FAST)
def _advance(h, rate, dt, dtx, write, read, y):
    """One step of a block of channels: h = exp(dt A) h + dt B x; y = C h."""
    y[:] = 0
    for n in range(h.shape[0]):
        b, c = write[n], read[n]
        for i in range(WIDTH):
            state = exp_of_negative(dt[i] * rate[n, i]) * h[n, i] + b * dtx[i]
            h[n, i] = state
            y[i] += c * state


@njit(fastmath=_FAST)
def _walk(u, delta, b, c, rates, path, channels, scratch, out):
    """One direction for a block of channels of one sample, added to ``out`` (L, C); ``scratch`` (2 N + 3, WIDTH)."""
    length, states = len(path), len(rates)
    here = slice(channels, channels + WIDTH)
    h, rate = scratch[:states], scratch[states : 2 * states]
    dt, dtx, y = scratch[2 * states], scratch[2 * states + 1], scratch[2 * states + 2]
    h[:] = 0
    rate[:] = rates[:, here]
    flat_delta = delta.reshape(-1)
    for step in range(length):
        voxel, ahead = path[step], path[min(step + 1, length - 1)]
        _fetch_row(flat_delta, ahead * delta.shape[1] + channels, WIDTH)
        _fetch_row(b[ahead], 0, states)
        _fetch_row(c[ahead], 0, states)
        steps, x, sums = delta[voxel, here], u[voxel, here], out[voxel, here]
        for i in range(WIDTH):
            dt[i] = steps[i]
            dtx[i] = steps[i] * x[i]
        _advance(h, rate, dt, dtx, b[voxel], c[voxel], y)
        for i in range(WIDTH):
            sums[i] += y[i]


@njit(parallel=True, fastmath=_FAST, cache=True)
def _forward(u, delta, b, c, a, paths, scratch, out):
    """Add the outputs to ``out`` (G, B, L, C), in voxel order; each of its G parts takes K / G directions.

    ``scratch`` has a row for each thread; the other arguments are those of ``selective_scan``.
    """
    blocks, directions = u.shape[2] // WIDTH, len(paths) // len(out)
    for task in prange(out.shape[0] * out.shape[1] * blocks):
        block, rest = task % blocks, task // blocks
        s, group = rest % len(u), rest // len(u)
        mine = scratch[get_thread_id()]
        for k in range(group * directions, (group + 1) * directions):
            _walk(u[s], delta[s, k], b[s, :, k], c[s, :, k], a[k], paths[k], block * WIDTH, mine, out[group, s])


@njit(fastmath=_FAST)
def _remember(before, after, rate, dt, dtx, write):
    """The next states of a block of channels."""
    for n in range(before.shape[0]):
        b = write[n]
        for i in range(BLOCK):
            after[n, i] = exp_of_negative(dt[i] * rate[n, i]) * before[n, i] + b * dtx[i]


@njit(fastmath=_FAST)
def _retreat(before, after, carry, rate, dt, dtx, grad, write, read, grad_dtx, grad_dt, grad_rate, grad_b, grad_c):
    """One step back for a block of channels: gradients by the chain rule, into the arrays at the end."""
    grad_dtx[:] = 0
    grad_dt[:] = 0
    for n in range(before.shape[0]):
        b, c = write[n], read[n]
        sum_b, sum_c = np.float32(0), np.float32(0)
        for i in range(BLOCK):
            decay = exp_of_negative(dt[i] * rate[n, i])
            flow = carry[n, i] + grad[i] * c
            carry[n, i] = flow * decay
            past = flow * decay * before[n, i]
            sum_c += grad[i] * after[n, i]
            sum_b += flow * dtx[i]
            grad_dtx[i] += flow * b
            grad_dt[i] += past * rate[n, i]
            grad_rate[n, i] += past * dt[i]
        grad_b[n], grad_c[n] = sum_b, sum_c


@njit(parallel=True, fastmath=_FAST, cache=True)
def _backward(u, delta, b, c, a, paths, grad):
    """Gradients with respect to the inputs of the scan, given ``grad`` (B, L, C) of its output.

    The states are computed again, block by block, and kept for one block only.
    """
    batch, length, channels = u.shape
    directions, states, blocks = paths.shape[0], a.shape[1], channels // BLOCK
    grad_u = np.empty((directions, batch, length, channels), np.float32)
    grad_delta = np.empty((batch, directions, length, channels), np.float32)
    grad_b = np.empty((blocks, batch, length, directions, states), np.float32)
    grad_c = np.empty((blocks, batch, length, directions, states), np.float32)
    grad_a = np.zeros((batch, directions, states, channels), np.float32)
    for task in prange(batch * directions * blocks):
        block, rest = task % blocks, task // blocks
        k, s, first = rest % directions, rest // directions, block * BLOCK
        here = slice(first, first + BLOCK)
        kept = np.zeros((length + 1, states, BLOCK), np.float32)
        carry, grad_rates = np.zeros((states, BLOCK), np.float32), np.zeros((states, BLOCK), np.float32)
        rates, dtx = a[k, :, here].copy(), np.empty(BLOCK, np.float32)
        grad_dt, grad_dtx = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
        for step in range(length):
            voxel = paths[k, step]
            dt, x = delta[s, k, voxel, here], u[s, voxel, here]
            for i in range(BLOCK):
                dtx[i] = dt[i] * x[i]
            _remember(kept[step], kept[step + 1], rates, dt, dtx, b[s, voxel, k])
        for step in range(length - 1, -1, -1):
            voxel = paths[k, step]
            dt, x, g = delta[s, k, voxel, here], u[s, voxel, here], grad[s, voxel, here]
            for i in range(BLOCK):
                dtx[i] = dt[i] * x[i]
            _retreat(
                kept[step], kept[step + 1], carry, rates, dt, dtx, g, b[s, voxel, k], c[s, voxel, k],
                grad_dtx, grad_dt, grad_rates, grad_b[block, s, voxel, k], grad_c[block, s, voxel, k],
            )  # fmt: skip
            for i in range(BLOCK):
                grad_u[k, s, voxel, first + i] = grad_dtx[i] * dt[i]
                grad_delta[s, k, voxel, first + i] = grad_dt[i] + grad_dtx[i] * x[i]
        grad_a[s, k, :, here] = grad_rates
    return grad_u, grad_delta, grad_b, grad_c, grad_a


def _scan(arrays: list[torch.Tensor], paths: torch.Tensor) -> torch.Tensor:
    """Return the outputs (B, L, C) of contiguous float32 inputs.

    Directions go to several tasks where the channels alone would leave threads idle; how many depends neither on the
    threads nor on the batch, so that the sums do not either.
    """
    u, (directions, states), threads = arrays[0], arrays[4].shape[:2], get_num_threads()
    blocks = u.shape[2] // WIDTH
    divisors = [n for n in range(1, directions + 1) if directions % n == 0]
    parts = next((n for n in divisors if n * blocks >= TASKS), directions)
    scratch = torch.empty(threads, 2 * states + 3, WIDTH)  # of torch, which aligns to cache lines
    out = torch.zeros(parts, *u.shape)
    _forward(*(t.numpy() for t in (*arrays, paths, scratch, out)))
    return out.sum(0) if parts > 1 else out[0]


class _NumbaScan(torch.autograd.Function):
    """``numba_scan`` for channels that fill whole blocks."""

    @staticmethod
    def forward(ctx, u, delta, b, c, a, paths):
        arrays = [t.detach().float().contiguous() for t in (u, delta, b, c, a)]
        ctx.save_for_backward(*arrays, paths)
        return _scan(arrays, paths)

    @staticmethod
    def backward(ctx, grad):
        *arrays, paths = ctx.saved_tensors
        grad = grad.float().contiguous()
        grads = _backward(*(t.numpy() for t in arrays), paths.numpy(), grad.numpy())
        grad_u, grad_delta, grad_b, grad_c, grad_a = map(torch.from_numpy, grads)
        return grad_u.sum(0), grad_delta, grad_b.sum(0), grad_c.sum(0), grad_a.sum(0), None


def numba_scan(
    u: torch.Tensor, delta: torch.Tensor, b: torch.Tensor, c: torch.Tensor, a: torch.Tensor, paths: torch.Tensor
) -> torch.Tensor:
    """Return ``selective_scan.reference_scan`` on a CPU, in float32."""
    channels = u.shape[-1]
    missing = -channels % WIDTH
    if missing:
        u, delta, a = (torch.nn.functional.pad(t, (0, missing)) for t in (u, delta, a))
    return _NumbaScan.apply(u, delta, b, c, a, paths)[..., :channels]
