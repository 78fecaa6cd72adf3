"""The selective scan as CPU kernels: reads voxels through the path tables, so that no reordered copy exists.

Shape letters: B batch; K directions (8); L voxels = steps; C channels; N states.
Everything is in voxel order; only the loop over steps follows a path. A task is some directions of one sample
and one block of channels; channels are innermost, so that they fill vectors. A path jumps from one memory page to
another, and without asking for the next step's rows ahead of time a third of the time is waiting for them.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from llvmlite import ir
from numba import float32, get_num_threads, get_thread_id, njit, prange, types, void
from numba.core import cgutils
from numba.extending import intrinsic, overload

from medsegmamba_bids.networks.kernels.compiled import (
    FAST,
    arrays_are_apart,
    bits_of_float,
    float_of_bits,
    number,
    stored,
)

#: Channels of a task: a fixed count lets the compiler unroll. Few enough for their states to stay in a near cache and
#: for what does not change from state to state to stay in registers.
WIDTH = 64
TASKS = 16  # at least, for each sample
LINE = 16  # float32 of a cache line
LOG2_E, LN_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
#: A float32 this large has no bits for fractions: added to a small number it leaves the whole part in the last bits.
_NO_FRACTIONS = np.float32(1.5 * 2**23)


@intrinsic
def _sum_as_written(typing_context, one, other):
    """``one + other``, which fast-math does not regroup: an instruction with a flag of its own gets no others."""

    def codegen(context, builder, signature, args):
        return builder.fadd(*args, flags=("nsz",))

    return float32(float32, float32), codegen


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


@njit(inline="always", fastmath=FAST)
def _rounded(t):
    """A number, or -126 for what is below -> its whole part, in the last bits, and what rounding leaves."""
    t = max(t, np.float32(-126.0))
    whole = _sum_as_written(t, _NO_FRACTIONS)
    return whole, t - _sum_as_written(whole, -_NO_FRACTIONS)


@njit(inline="always")
def _times_whole_power(power, whole):
    return float_of_bits(bits_of_float(power) + (bits_of_float(whole) << np.int32(23)))


@njit(inline="always", fastmath=FAST)
def exp2_of_negative(t):
    """2^t of t <= 0, float32, relative error below 2e-7: a polynomial of what rounding leaves, and whole powers.

    From -126 on, where the smallest normal number is reached, it stays what it is there.
    """
    whole, rest = _rounded(t)
    power = np.float32(1.32647273e-3)
    power = power * rest + np.float32(9.67151299e-3)
    power = power * rest + np.float32(5.55073358e-2)
    power = power * rest + np.float32(2.40222424e-1)
    power = power * rest + np.float32(6.93147004e-1)
    power = power * rest + np.float32(1)
    return _times_whole_power(power, whole)


@njit(inline="always", fastmath=FAST)
def _rough_exp2_of_negative(t):
    """2^t of t <= 0 with a relative error below 1.3e-4, a thirtieth of a bfloat16's.

    It is exact at 0, and so is its slope: states that fade slowly would sum an error up.
    """
    whole, rest = _rounded(t)
    power = np.float32(5.549128e-2)
    power = power * rest + np.float32(2.4212e-1)
    power = power * rest + LN_2
    power = power * rest + np.float32(1)
    return _times_whole_power(power, whole)


def _decay(t, step):
    """2^t of t <= 0, as exactly as the step size is stored that it comes from."""


def _decay_by_type(t, step):
    if step == types.int16:
        return lambda t, step: _rough_exp2_of_negative(t)
    return lambda t, step: exp2_of_negative(t)


overload(_decay, inline="always")(_decay_by_type)


@njit(inline="always", fastmath=FAST)
def _softplus(x):
    """log(1 + e^x), relative error below 5e-7 + 6e-8 |x|; the polynomial stands for log(1 + y) / y of y = e^-|x|."""
    y = exp2_of_negative(-abs(x) * LOG2_E)
    ratio = np.float32(-8.57605e-3)
    ratio = ratio * y + np.float32(4.422898e-2)
    ratio = ratio * y + np.float32(-1.078856e-1)
    ratio = ratio * y + np.float32(1.7759743e-1)
    ratio = ratio * y + np.float32(-2.4500643e-1)
    ratio = ratio * y + np.float32(3.3276354e-1)
    ratio = ratio * y + np.float32(-4.9997464e-1)
    ratio = ratio * y + np.float32(9.9999981e-1)
    return max(x, np.float32(0)) + y * ratio


@njit(inline="always")
def _fetch_row(array, start, length):
    """Start to load ``length`` items of a flat array."""
    for i in range(0, length, LINE):
        _fetch(array, start + i)


@njit(fastmath=FAST)
def _take_steps(delta, bias, soft, steps):
    """Write the step sizes of a block of channels, float32: softplus(delta + bias) if ``soft``, or delta."""
    arrays_are_apart()
    if soft:
        for i in range(WIDTH):
            steps[i] = _softplus(number(delta[i]) + bias[i])
    else:
        for i in range(WIDTH):
            steps[i] = number(delta[i])


@njit(fastmath=FAST)
def _advance(h, rate, delta, dt, x, write, read, y):
    """One step of a block of channels: h = 2^(dt rate) h + dt B x; y += C h; dt stands for ``delta``."""
    arrays_are_apart()
    for n in range(h.shape[0]):
        b, c = write[n], read[n]
        for i in range(WIDTH):
            state = _decay(dt[i] * rate[n, i], delta[i]) * h[n, i] + b * (dt[i] * x[i])
            h[n, i] = state
            y[i] += c * state


@njit(fastmath=FAST)
def _walk(u, delta, bias, soft, b, c, rates, path, channels, scratch, out):
    """One direction for a block of channels of one sample, added to ``out`` (L, C); ``scratch`` (2 N + 1, WIDTH)."""
    length, states = len(path), len(rates)
    here = slice(channels, channels + WIDTH)
    h, rate, steps = scratch[:states], scratch[states : 2 * states], scratch[2 * states]
    h[:] = 0
    rate[:] = rates[:, here] * LOG2_E
    flat_u, flat_delta, flat_out = u.reshape(-1), delta.reshape(-1), out.reshape(-1)
    for step in range(length):
        voxel, ahead = path[step], path[min(step + 1, length - 1)]
        start = ahead * u.shape[1] + channels
        _fetch_row(flat_u, start, WIDTH)
        _fetch_row(flat_delta, start, WIDTH)
        _fetch_row(flat_out, start, WIDTH)
        _fetch_row(b[ahead], 0, states)
        _fetch_row(c[ahead], 0, states)
        _take_steps(delta[voxel, here], bias[here], soft, steps)
        _advance(h, rate, delta[voxel, here], steps, u[voxel, here], b[voxel], c[voxel], out[voxel, here])


@njit(parallel=True, fastmath=FAST, cache=True)
def _forward(u, delta, bias, soft, b, c, a, paths, scratch, out):
    """Add the outputs to ``out`` (G, B, L, C), in voxel order; each of its G parts takes K / G directions.

    ``scratch`` has a row for each thread, ``bias`` (K, C) is used if ``soft``; the other arguments are those of
    ``selective_scan``.
    """
    blocks, directions = u.shape[2] // WIDTH, len(paths) // len(out)
    for task in prange(out.shape[0] * out.shape[1] * blocks):
        block, rest = task % blocks, task // blocks
        s, group = rest % len(u), rest // len(u)
        mine, first = scratch[get_thread_id()], block * WIDTH
        for k in range(group * directions, (group + 1) * directions):
            _walk(
                u[s], delta[s, k], bias[k], soft, b[s, :, k], c[s, :, k], a[k], paths[k], first, mine, out[group, s]
            )  # fmt: skip


@njit(fastmath=FAST)
def _remember(before, after, rate, dt, x, write):
    """The next states of a block of channels."""
    arrays_are_apart()
    for n in range(before.shape[0]):
        b = write[n]
        for i in range(WIDTH):
            after[n, i] = exp2_of_negative(dt[i] * rate[n, i]) * before[n, i] + b * (dt[i] * x[i])


@njit(fastmath=FAST)
def _retreat(before, after, carry, rate, dt, x, grad, write, read, grad_x, grad_dt, grad_rate, grad_b, grad_c):
    """One step back for a block of channels: gradients by the chain rule, into the arrays at the end."""
    arrays_are_apart()
    grad_x[:] = 0
    grad_dt[:] = 0
    for n in range(before.shape[0]):
        b, c = write[n], read[n]
        sum_b, sum_c = np.float32(0), np.float32(0)
        for i in range(WIDTH):
            decay = exp2_of_negative(dt[i] * rate[n, i])
            flow = carry[n, i] + grad[i] * c
            carry[n, i] = flow * decay
            past = flow * decay * before[n, i]
            sum_c += grad[i] * after[n, i]
            sum_b += flow * (dt[i] * x[i])
            grad_x[i] += flow * b
            grad_dt[i] += past * rate[n, i]
            grad_rate[n, i] += past * dt[i]
        grad_b[n], grad_c[n] = sum_b, sum_c
    for i in range(WIDTH):
        grad_dt[i] = grad_dt[i] * LN_2 + grad_x[i] * x[i]
        grad_x[i] *= dt[i]


@njit(parallel=True, fastmath=FAST, cache=True)
def _backward(u, delta, b, c, a, paths, grad):
    """Gradients with respect to the inputs of the scan, given ``grad`` (B, L, C) of its output.

    The states are computed again, block by block, and kept for one block only.
    """
    batch, length, channels = u.shape
    directions, states, blocks = paths.shape[0], a.shape[1], channels // WIDTH
    grad_u = np.empty((directions, batch, length, channels), np.float32)
    grad_delta = np.empty((batch, directions, length, channels), np.float32)
    grad_b = np.empty((blocks, batch, length, directions, states), np.float32)
    grad_c = np.empty((blocks, batch, length, directions, states), np.float32)
    grad_a = np.zeros((batch, directions, states, channels), np.float32)
    for task in prange(batch * directions * blocks):
        block, rest = task % blocks, task // blocks
        k, s, first = rest % directions, rest // directions, block * WIDTH
        here = slice(first, first + WIDTH)
        kept = np.zeros((length + 1, states, WIDTH), np.float32)
        carry, grad_rates = np.zeros((states, WIDTH), np.float32), np.zeros((states, WIDTH), np.float32)
        rates = a[k, :, here] * LOG2_E
        for step in range(length):
            voxel = paths[k, step]
            dt, x = delta[s, k, voxel, here], u[s, voxel, here]
            _remember(kept[step], kept[step + 1], rates, dt, x, b[s, voxel, k])
        for step in range(length - 1, -1, -1):
            voxel = paths[k, step]
            _retreat(
                kept[step], kept[step + 1], carry, rates, delta[s, k, voxel, here], u[s, voxel, here],
                grad[s, voxel, here], b[s, voxel, k], c[s, voxel, k], grad_u[k, s, voxel, here],
                grad_delta[s, k, voxel, here], grad_rates, grad_b[block, s, voxel, k], grad_c[block, s, voxel, k],
            )  # fmt: skip
        grad_a[s, k, :, here] = grad_rates
    return grad_u, grad_delta, grad_b, grad_c, grad_a


def _scan(arrays: list[torch.Tensor], paths: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return the outputs (B, L, C) of contiguous float32 inputs; step sizes may be bfloat16.

    Directions go to several tasks where the channels alone would leave threads idle; how many depends neither on the
    threads nor on the batch, so that the sums do not either.
    """
    u, delta, b, c, a = map(stored, arrays)
    directions, states, channels = a.shape
    blocks = channels // WIDTH
    divisors = [n for n in range(1, directions + 1) if directions % n == 0]
    parts = next((n for n in divisors if n * blocks >= TASKS), directions)
    scratch = torch.empty(get_num_threads(), 2 * states + 1, WIDTH)  # of torch, which aligns to cache lines
    out = torch.zeros(parts, *u.shape)
    soft, bias = bias is not None, torch.zeros(directions, channels) if bias is None else bias
    _forward(u, delta, bias.numpy(), soft, b, c, a, paths.numpy(), scratch.numpy(), out.numpy())
    return out.sum(0) if parts > 1 else out[0]


class _NumbaScan(torch.autograd.Function):
    """``numba_scan`` for channels that fill whole blocks, with given step sizes."""

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
    u: torch.Tensor,
    delta: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    a: torch.Tensor,
    paths: torch.Tensor,
    bias: torch.Tensor | None = None,
    skip: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return ``selective_scan`` on a CPU; what is summed is float32, whatever types the inputs have.

    Without gradients step sizes in bfloat16 are read as they are, and decays are as exact as those.
    """
    channels = u.shape[-1]
    missing = -channels % WIDTH
    if missing:
        u, delta, a, bias, skip = (t if t is None else F.pad(t, (0, missing)) for t in (u, delta, a, bias, skip))
    if torch.is_grad_enabled():
        delta = delta.float() if bias is None else F.softplus(delta.float() + bias[:, None])
        out = _NumbaScan.apply(u, delta, b, c, a, paths)
    else:
        u, b, c, a = (t.float() for t in (u, b, c, a))
        out = _scan([t.contiguous() for t in (u, delta, b, c, a)], paths, bias)
    out = out if skip is None else out + u.float() * skip.sum(0)
    return out[..., :channels]
