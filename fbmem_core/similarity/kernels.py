"""The loops of `fused`, compiled by numba; one thread each. Arrays are float32 and contiguous, see `fused` for shapes.

A pair's planes are blurred line by line: across into a ring of as many lines as the window has, then down the ring.
Notation: mx, my are window means of two images (mu_x, mu_y), hx, hy window variances + C2 / 2 (sigma^2 + C2 / 2), so
that contrast-structure is cs = (2 sigma_xy + C2) / (hx + hy), and luminance l = (2 mu_x mu_y + C1) / (mu_x^2 + mu_y^2 +
C1) (Wang, Simoncelli and Bovik 2003, equations 6 to 8, with C3 = C2 / 2).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from fbmem_core.similarity import ms_ssim
from fbmem_core.similarity.gaussian import WINDOW_SIZE, kernel

_REACH = WINDOW_SIZE // 2
# half of the symmetric window: weights at distance 5 to 0 of its middle
_K0, _K1, _K2, _K3, _K4, _K5 = (np.float32(weight) for weight in kernel()[: _REACH + 1])
# of this width, or the sums of the loops would be of twice that
_C1, C2, ZERO, HALF, TWO = (np.float32(value) for value in (ms_ssim.C1, ms_ssim.C2, 0, 0.5, 2))


def compiled(function: Callable[..., Any]) -> Any:
    """A kernel, of the bare function: the tests wrap every function to check types, which numba cannot compile."""
    return njit(nogil=True, fastmath=True, cache=True)(inspect.unwrap(function))


@compiled
def across(line, out, num):  # type: ignore[no-untyped-def]
    """The blur along a line, of the first `num` windows inside."""
    for i in range(num):
        out[i] = (
            _K5 * line[i + 5]
            + _K4 * (line[i + 4] + line[i + 6])
            + _K3 * (line[i + 3] + line[i + 7])
            + _K2 * (line[i + 2] + line[i + 8])
            + _K1 * (line[i + 1] + line[i + 9])
            + _K0 * (line[i] + line[i + 10])
        )


@compiled
def down(ring, oldest, out, num):  # type: ignore[no-untyped-def]
    """The blur over the eleven lines of a ring, of which that of number `oldest` came first."""
    # in three steps: a loop over more arrays than four is not vectorized, as any could overlap with `out`
    middle, above, below = ring[(oldest + 5) % 11], ring[(oldest + 4) % 11], ring[(oldest + 6) % 11]
    for i in range(num):
        out[i] = _K5 * middle[i] + _K4 * (above[i] + below[i])
    _add_two(
        ring[(oldest + 3) % 11],
        ring[(oldest + 7) % 11],
        ring[(oldest + 2) % 11],
        ring[(oldest + 8) % 11],
        (_K3, _K2),
        out[:num],
    )
    _add_two(
        ring[(oldest + 1) % 11],
        ring[(oldest + 9) % 11],
        ring[oldest % 11],
        ring[(oldest + 10) % 11],
        (_K1, _K0),
        out[:num],
    )


@compiled
def _add_two(above, below, farther_above, farther_below, weights, out):  # type: ignore[no-untyped-def]
    near, far = weights
    for i in range(len(out)):
        out[i] += near * (above[i] + below[i]) + far * (farther_above[i] + farther_below[i])


@compiled
def blur(planes, out):  # type: ignore[no-untyped-def]
    """Gaussian means of the windows inside: planes [n, h, w], out [n, h - 10, w - 10]."""
    _, height, width = out.shape
    ring = np.empty((11, width), np.float32)
    for k in range(len(planes)):
        for r in range(height + 10):
            across(planes[k, r], ring[r % 11], width)
            if r >= 10:
                down(ring, r - 10, out[k, r - 10], width)


@compiled
def _subtract_product(line, u, v):  # type: ignore[no-untyped-def]
    # a loop of its own, so that variances and covariances are rounded alike and cancel where both images are constant
    for i in range(len(line)):
        line[i] -= u[i] * v[i]


@compiled
def moments(planes, means, halves, alone):  # type: ignore[no-untyped-def]
    """Window moments inside planes [n, h, w]: means, variances + C2 / 2, and the sum of cs against zeros [n]."""
    _, height, width = means.shape
    rings, squares = np.empty((2, 11, width), np.float32), np.empty(width + 10, np.float32)
    for k in range(len(planes)):
        alone[k] = 0
        for r in range(height + 10):
            # 1. blur the line and its squares across
            line = planes[k, r]
            for i in range(width + 10):
                squares[i] = line[i] * line[i]
            across(line, rings[0, r % 11], width)
            across(squares, rings[1, r % 11], width)
            if r >= 10:
                # 2. blur down: E[x] and E[x^2]
                mean, half = means[k, r - 10], halves[k, r - 10]
                down(rings[0], r - 10, mean, width)
                down(rings[1], r - 10, half, width)
                # 3. sigma^2 = E[x^2] - E[x]^2
                _subtract_product(half, mean, mean)
                # 4. cs against an image of zeros, of which variance and covariance are 0: C2 / (sigma^2 + C2)
                total = ZERO
                for i in range(width):
                    half[i] += HALF * C2
                    total += C2 / (half[i] + HALF * C2)
                alone[k] += total


@compiled
def common_box(of_x, of_y, whole, height, width):  # type: ignore[no-untyped-def]
    """Top, bottom, left, right of what two boxes share."""
    if whole:
        return 0, height, 0, width
    top, bottom = max(of_x[0], of_y[0]), min(of_x[1], of_y[1])
    left, right = max(of_x[2], of_y[2]), min(of_x[3], of_y[3])
    if bottom <= top or right <= left:
        return 0, 0, 0, 0
    return top, bottom, left, right


@compiled
def brighten(cs, mx, my, middle):  # type: ignore[no-untyped-def]
    """Multiply cs by the luminance of means about `middle`."""
    for i in range(len(cs)):
        p, q = mx[i] + middle, my[i] + middle
        cs[i] *= (TWO * p * q + _C1) / (p * p + q * q + _C1)


@compiled
def _plain_line(line, x, y, bright):  # type: ignore[no-untyped-def]
    """The sum of cs over the windows of a line, from blurred products; x and y are (means, variances)."""
    (mx, hx), (my, hy) = x, y
    _subtract_product(line, mx, my)  # sigma_xy = E[xy] - E[x] E[y]
    for i in range(len(line)):
        line[i] = (TWO * line[i] + C2) / (hx[i] + hy[i])
    if bright:
        brighten(line, mx, my, ZERO)
    total = ZERO
    for i in range(len(line)):
        total += line[i]
    return total


@compiled
def _against_nothing(hx, hy):  # type: ignore[no-untyped-def]
    """The sums of cs of two lines of variances, each against a constant image."""
    total = ZERO
    for i in range(len(hx)):
        p, q = hx[i] + HALF * C2, hy[i] + HALF * C2
        total += C2 * (p + q) / (p * q)
    return total


@compiled
def plain(x, y, pairs, bright, factors, masses):  # type: ignore[no-untyped-def]
    """`Plain`: the mean of cs over all windows."""
    (px, mx, hx, bx, ax), (py, my, hy, by, ay) = x, y
    height, width = mx.shape[2:]
    ring, line = np.empty((11, width), np.float32), np.empty(width + 10, np.float32)
    product = np.empty(width, np.float32)
    for k in range(len(pairs)):
        # 1. outside the windows in which both images show anything, one image is zeros: their cs is known from
        # `moments`, so the loop runs over the common box alone
        i, j = pairs[k]
        top, bottom, left, right = common_box(bx[i], by[j], bright[k], height, width)
        num, inside = right - left, (bottom - top) * (right - left)
        for c in range(3):
            # 2. outside, cs is that of the image that shows something against zeros; the term of the other is 1 and
            # is taken off
            total = 0.0 if inside == height * width else ax[i, c] + ay[j, c] - (height * width - inside)
            for r in range(top, bottom + 10 if inside else top):
                # 3. blur the products xy: across, then down the ring
                u, v = px[i, c, r, left:], py[j, c, r, left:]
                for at in range(num + 10):
                    line[at] = u[at] * v[at]
                across(line, ring[r % 11], num)
                o = r - 10
                if o >= top:
                    down(ring, o, product, num)
                    of_x = (mx[i, c, o, left:right], hx[i, c, o, left:right])
                    of_y = (my[j, c, o, left:right], hy[j, c, o, left:right])
                    # 4. inside the box the pair's own cs takes the place of those against zeros
                    total += _plain_line(product[:num], of_x, of_y, bright[k])
                    if inside != height * width:
                        total -= _against_nothing(of_x[1], of_y[1])
            factors[k, c] = total / (height * width)
        masses[k] = 1
