"""The loops of `fused`, compiled by numba; one thread each. Arrays are float32 and contiguous, see `fused` for shapes.

A pair's planes are blurred line by line: across into a ring of as many lines as the window has, then down the ring.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from fbmem_core.similarity.gaussian import WINDOW_SIZE, kernel
from fbmem_core.similarity.masked import MIN_WEIGHT
from fbmem_core.similarity.ms_ssim import C1, C2

_REACH = WINDOW_SIZE // 2
_K0, _K1, _K2, _K3, _K4, _K5 = (np.float32(weight) for weight in kernel()[: _REACH + 1])
_C1, _C2, _TWO, _ONE, _HALF = (np.float32(value) for value in (C1, C2, 2, 1, 0.5))
_TINY = np.float32(MIN_WEIGHT)
_ZERO = np.float32(0)


def _compiled(function: Callable[..., Any]) -> Any:
    """Of the bare function: numba cannot compile a wrapper that checks types, as the tests put around every one."""
    return njit(nogil=True, fastmath=True, cache=True)(inspect.unwrap(function))


@_compiled
def _across(line, out, num):  # type: ignore[no-untyped-def]
    for i in range(num):
        out[i] = (
            _K5 * line[i + 5]
            + _K4 * (line[i + 4] + line[i + 6])
            + _K3 * (line[i + 3] + line[i + 7])
            + _K2 * (line[i + 2] + line[i + 8])
            + _K1 * (line[i + 1] + line[i + 9])
            + _K0 * (line[i] + line[i + 10])
        )


@_compiled
def _down(ring, oldest, out, num):  # type: ignore[no-untyped-def]
    a, b, c = ring[oldest % 11], ring[(oldest + 1) % 11], ring[(oldest + 2) % 11]
    d, e, f = ring[(oldest + 3) % 11], ring[(oldest + 4) % 11], ring[(oldest + 5) % 11]
    g, h, p = ring[(oldest + 6) % 11], ring[(oldest + 7) % 11], ring[(oldest + 8) % 11]
    q, r = ring[(oldest + 9) % 11], ring[(oldest + 10) % 11]
    for i in range(num):
        out[i] = (
            _K5 * f[i]
            + _K4 * (e[i] + g[i])
            + _K3 * (d[i] + h[i])
            + _K2 * (c[i] + p[i])
            + _K1 * (b[i] + q[i])
            + _K0 * (a[i] + r[i])
        )


@_compiled
def blur(planes, out):  # type: ignore[no-untyped-def]
    """Gaussian means of the windows inside: planes [n, h, w], out [n, h - 10, w - 10]."""
    _, height, width = out.shape
    ring = np.empty((11, width), np.float32)
    for k in range(len(planes)):
        for r in range(height + 10):
            _across(planes[k, r], ring[r % 11], width)
            if r >= 10:
                _down(ring, r - 10, out[k, r - 10], width)


@_compiled
def _subtract_product(line, u, v):  # type: ignore[no-untyped-def]
    # a loop of its own, so that variances and covariances are rounded alike and cancel where both images are constant
    for i in range(len(line)):
        line[i] -= u[i] * v[i]


@_compiled
def moments(planes, means, halves, alone):  # type: ignore[no-untyped-def]
    """Of the windows inside planes [n, h, w]: means, variances + C2 / 2, and the sum of cs against nothing [n]."""
    _, height, width = means.shape
    rings, squares = np.empty((2, 11, width), np.float32), np.empty(width + 10, np.float32)
    for k in range(len(planes)):
        alone[k] = 0
        for r in range(height + 10):
            line = planes[k, r]
            for i in range(width + 10):
                squares[i] = line[i] * line[i]
            _across(line, rings[0, r % 11], width)
            _across(squares, rings[1, r % 11], width)
            if r >= 10:
                mean, half = means[k, r - 10], halves[k, r - 10]
                _down(rings[0], r - 10, mean, width)
                _down(rings[1], r - 10, half, width)
                _subtract_product(half, mean, mean)
                total = _ZERO
                for i in range(width):
                    half[i] += _HALF * _C2
                    total += _C2 / (half[i] + _HALF * _C2)
                alone[k] += total


@_compiled
def _common_box(of_x, of_y, whole, height, width):  # type: ignore[no-untyped-def]
    if whole:
        return 0, height, 0, width
    top, bottom = max(of_x[0], of_y[0]), min(of_x[1], of_y[1])
    left, right = max(of_x[2], of_y[2]), min(of_x[3], of_y[3])
    if bottom <= top or right <= left:
        return 0, 0, 0, 0
    return top, bottom, left, right


@_compiled
def _plain_line(product, x, y, bright):  # type: ignore[no-untyped-def]
    """Sums of cs, and of what it is against nothing, over the windows of a line; x and y are (means, variances)."""
    (mx, hx), (my, hy) = x, y
    total, alone = _ZERO, _ZERO
    _subtract_product(product, mx, my)
    for i in range(len(product)):
        cs = (_TWO * product[i] + _C2) / (hx[i] + hy[i])
        if bright:
            cs *= (_TWO * mx[i] * my[i] + _C1) / (mx[i] * mx[i] + my[i] * my[i] + _C1)
        total += cs
        alone += _C2 / (hx[i] + _HALF * _C2) + _C2 / (hy[i] + _HALF * _C2)
    return total, alone


@_compiled
def plain(x, y, pairs, bright, factors, masses):  # type: ignore[no-untyped-def]
    """`Plain`: the mean of cs over all windows."""
    (px, mx, hx, bx, ax), (py, my, hy, by, ay) = x, y
    height, width = mx.shape[2:]
    ring, line = np.empty((11, width), np.float32), np.empty(width + 10, np.float32)
    product = np.empty(width, np.float32)
    for k in range(len(pairs)):
        i, j = pairs[k]
        top, bottom, left, right = _common_box(bx[i], by[j], bright[k], height, width)
        num, inside = right - left, (bottom - top) * (right - left)
        for c in range(3):
            total = 0.0 if inside == height * width else ax[i, c] + ay[j, c] - (height * width - inside)
            for r in range(top, bottom + 10 if inside else top):
                u, v = px[i, c, r, left:], py[j, c, r, left:]
                for at in range(num + 10):
                    line[at] = u[at] * v[at]
                _across(line, ring[r % 11], num)
                o = r - 10
                if o >= top:
                    _down(ring, o, product, num)
                    of_x, of_y = (mx[i, c, o, left:], hx[i, c, o, left:]), (my[j, c, o, left:], hy[j, c, o, left:])
                    cs, alone = _plain_line(product[:num], of_x, of_y, bright[k])
                    total += cs if inside == height * width else cs - alone
            factors[k, c] = total / (height * width)
        masses[k] = 1


@_compiled
def _foreground_line(lines, x, y, bright, sums):  # type: ignore[no-untyped-def]
    """Add the weighted cs of a line, less what both images give alone; x and y are (weights, moments, alone)."""
    (u, mx, ax), (v, my, ay), union = x, y, lines[3]
    num, mass = lines.shape[1], _ZERO
    for i in range(num):
        mass -= min(u[i], v[i])  # the union, less both
    sums[3] += mass
    for c in range(3):
        product, fx, fy, gx, gy = lines[c], mx[c], my[c], mx[3 + c], my[3 + c]
        alone_x, alone_y = ax[c], ay[c]
        total = _ZERO
        for i in range(num):
            scale = _ONE / max(union[i], _TINY)
            p, q = fx[i] * scale, fy[i] * scale
            cs = (_TWO * (product[i] * scale - p * q) + _C2) / ((gx[i] + gy[i]) * scale - p * p - q * q + _C2)
            if bright:
                p += _HALF
                q += _HALF
                cs *= (_TWO * p * q + _C1) / (p * p + q * q + _C1)
            total += cs * max(u[i], v[i]) - alone_x[i] - alone_y[i]
        sums[c] += total


@_compiled
def foreground(x, y, pairs, bright, factors, masses):  # type: ignore[no-untyped-def]
    """`Foreground`: the mean of cs over the union."""
    (px, mx, wx, bx, ax), (py, my, wy, by, ay) = x, y
    height, width = mx.shape[2:]
    rings, line = np.empty((4, 11, width), np.float32), np.empty(width + 10, np.float32)
    lines, sums = np.empty((4, width), np.float32), np.empty(4)
    for k in range(len(pairs)):
        i, j = pairs[k]
        top, bottom, left, right = _common_box(bx[i], by[j], bright[k], height, width)
        num = right - left
        sums[:] = ax[i] + ay[j]
        for r in range(top, bottom + 10 if num else top):
            for c in range(4):
                u, v = px[i, c, r, left:], py[j, c, r, left:]
                for at in range(num + 10):
                    line[at] = u[at] * v[at] if c < 3 else max(u[at], v[at])
                _across(line, rings[c, r % 11], num)
            o = r - 10
            if o >= top:
                for c in range(4):
                    _down(rings[c], o, lines[c], num)
                of_x = (px[i, 3, o + 5, left + 5 :], mx[i, :, o, left:], wx[i, :, o, left:])
                of_y = (py[j, 3, o + 5, left + 5 :], my[j, :, o, left:], wy[j, :, o, left:])
                _foreground_line(lines[:, :num], of_x, of_y, bright[k], sums)
        masses[k] = sums[3]
        for c in range(3):
            factors[k, c] = sums[c] / max(sums[3], 1e-12)


@_compiled
def _background_line(lines, x, y, bright, sums):  # type: ignore[no-untyped-def]
    """Add the weighted cs of a line; x and y tell where it is clear."""
    common, u, v = lines[12], x[5:], y[5:]
    num, mass = len(common), _ZERO
    for i in range(num):
        mass += u[i] * v[i]
    sums[3] += mass
    for c in range(3):
        first, second, squares, product = lines[4 * c], lines[4 * c + 1], lines[4 * c + 2], lines[4 * c + 3]
        total = _ZERO
        for i in range(num):
            scale = _ONE / max(common[i], _TINY)
            p, q = first[i] * scale, second[i] * scale
            cs = (_TWO * (product[i] * scale - p * q) + _C2) / (squares[i] * scale - p * p - q * q + _C2)
            if bright:
                p += _HALF
                q += _HALF
                cs *= (_TWO * p * q + _C1) / (p * p + q * q + _C1)
            total += cs * u[i] * v[i]
        sums[c] += total


@_compiled
def background(x, y, pairs, bright, factors, masses):  # type: ignore[no-untyped-def]
    """`Background`: the mean of cs over what is clear in both."""
    (px,), (py,) = x, y
    height, width = px.shape[2] - 10, px.shape[3] - 10
    rings, planes = np.empty((13, 11, width), np.float32), np.empty((13, width + 10), np.float32)
    lines, sums = np.empty((13, width), np.float32), np.empty(4)
    for k in range(len(pairs)):
        i, j = pairs[k]
        sums[:] = 0
        for r in range(height + 10):
            _background_planes(px[i, :, r], py[j, :, r], planes)
            for c in range(13):
                _across(planes[c], rings[c, r % 11], width)
            if r >= 10:
                for c in range(13):
                    _down(rings[c], r - 10, lines[c], width)
                _background_line(lines, px[i, 3, r - 5], py[j, 3, r - 5], bright[k], sums)
        masses[k] = sums[3]
        for c in range(3):
            factors[k, c] = sums[c] / max(sums[3], 1e-12)


@_compiled
def _background_planes(x, y, planes):  # type: ignore[no-untyped-def]
    """Per colour both images, the sum of their squares and their product, where both are clear; and where that is."""
    mx, my = x[3], y[3]
    for c in range(3):
        u, v = x[c], y[c]
        first, second, squares, product = planes[4 * c], planes[4 * c + 1], planes[4 * c + 2], planes[4 * c + 3]
        for at in range(len(u)):
            p, q = u[at] * my[at], v[at] * mx[at]
            first[at], second[at] = p, q
            squares[at], product[at] = p * p + q * q, p * q
    common = planes[12]
    for at in range(len(mx)):
        common[at] = mx[at] * my[at]
