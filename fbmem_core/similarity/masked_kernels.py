"""The loops of `fused` for regions; see `kernels`."""

import numpy as np

from fbmem_core.similarity.kernels import C2, HALF, TWO, ZERO, across, brighten, common_box, compiled, down
from fbmem_core.similarity.masked import MIN_WEIGHT

_ONE, _TINY = np.float32(1), np.float32(MIN_WEIGHT)


@compiled
def _region_line(line, x, y, bright, weights):  # type: ignore[no-untyped-def]
    """The weighted sum of cs over a line, from means of products; x and y are (means about grey, sums of squares)."""
    (mx, sx), (my, sy) = x, y
    for i in range(len(line)):
        p, q = mx[i], my[i]
        line[i] = (TWO * (line[i] - p * q) + C2) / (sx[i] + sy[i] - p * p - q * q + C2)
    if bright:
        brighten(line, mx, my, HALF)
    total = ZERO
    for i in range(len(line)):
        total += line[i] * weights[i]
    return total


@compiled
def _scale(line, scales):  # type: ignore[no-untyped-def]
    for i in range(len(line)):
        line[i] *= scales[i]


@compiled
def _scaled(line, scales, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] = line[i] * scales[i]
    return out


@compiled
def _foreground_line(lines, x, y, bright, sums):  # type: ignore[no-untyped-def]
    """Add the weighted cs of a line, less what both images give alone; x and y are (weights, moments, alone).

    `lines`: blurred products, the blurred union, and room for five more.
    """
    (u, mx, ax), (v, my, ay), num = x, y, lines.shape[1]
    scales, union, room = lines[3], lines[4], lines[5:]
    mass = ZERO
    for i in range(num):
        scales[i] = _ONE / max(scales[i], _TINY)
        union[i] = max(u[i], v[i])
        mass += union[i] - u[i] - v[i]
    sums[3] += mass
    for c in range(3):
        of_x = _scaled(mx[c], scales, room[0]), _scaled(mx[3 + c], scales, room[1])
        of_y = _scaled(my[c], scales, room[2]), _scaled(my[3 + c], scales, room[3])
        _scale(lines[c], scales)
        sums[c] += _region_line(lines[c], of_x, of_y, bright, union)
        alone_x, alone_y, alone = ax[c], ay[c], ZERO
        for i in range(num):
            alone += alone_x[i] + alone_y[i]
        sums[c] -= alone


@compiled
def foreground(x, y, pairs, bright, factors, masses):  # type: ignore[no-untyped-def]
    """`Foreground`: the mean of cs over the union."""
    (px, mx, wx, bx, ax), (py, my, wy, by, ay) = x, y
    height, width = mx.shape[2:]
    rings, line = np.empty((4, 11, width), np.float32), np.empty(width + 10, np.float32)
    lines, sums = np.empty((9, width), np.float32), np.empty(4)
    for k in range(len(pairs)):
        i, j = pairs[k]
        top, bottom, left, right = common_box(bx[i], by[j], bright[k], height, width)
        num = right - left
        sums[:] = ax[i] + ay[j]
        for r in range(top, bottom + 10 if num else top):
            for c in range(4):
                u, v = px[i, c, r, left:], py[j, c, r, left:]
                for at in range(num + 10):
                    line[at] = u[at] * v[at] if c < 3 else max(u[at], v[at])
                across(line, rings[c, r % 11], num)
            o = r - 10
            if o >= top:
                for c in range(4):
                    down(rings[c], o, lines[c], num)
                of_x = (px[i, 3, o + 5, left + 5 :], mx[i, :, o, left:], wx[i, :, o, left:])
                of_y = (py[j, 3, o + 5, left + 5 :], my[j, :, o, left:], wy[j, :, o, left:])
                _foreground_line(lines[:, :num], of_x, of_y, bright[k], sums)
        masses[k] = sums[3]
        for c in range(3):
            factors[k, c] = sums[c] / max(sums[3], 1e-12)


@compiled
def _background_line(lines, x, y, bright, sums):  # type: ignore[no-untyped-def]
    """Add the weighted cs of a line; x and y tell where it is clear. `lines`: as blurred, and room for two more."""
    scales, common, nothing = lines[12], lines[13], lines[14]
    mass = ZERO
    for i in range(len(scales)):
        scales[i] = _ONE / max(scales[i], _TINY)
        common[i] = x[i + 5] * y[i + 5]
        mass += common[i]
    sums[3] += mass
    for c in range(12):
        _scale(lines[c], scales)
    for c in range(3):
        of_x, of_y = (lines[4 * c], lines[4 * c + 2]), (lines[4 * c + 1], nothing)
        sums[c] += _region_line(lines[4 * c + 3], of_x, of_y, bright, common)


@compiled
def background(x, y, pairs, bright, factors, masses):  # type: ignore[no-untyped-def]
    """`Background`: the mean of cs over what is clear in both."""
    (px,), (py,) = x, y
    height, width = px.shape[2] - 10, px.shape[3] - 10
    rings, planes = np.empty((13, 11, width), np.float32), np.empty((13, width + 10), np.float32)
    lines, sums = np.zeros((15, width), np.float32), np.empty(4)
    for k in range(len(pairs)):
        i, j = pairs[k]
        sums[:] = 0
        for r in range(height + 10):
            _background_planes(px[i, :, r], py[j, :, r], planes)
            for c in range(13):
                across(planes[c], rings[c, r % 11], width)
            if r >= 10:
                for c in range(13):
                    down(rings[c], r - 10, lines[c], width)
                _background_line(lines, px[i, 3, r - 5], py[j, 3, r - 5], bright[k], sums)
        masses[k] = sums[3]
        for c in range(3):
            factors[k, c] = sums[c] / max(sums[3], 1e-12)


@compiled
def _background_planes(x, y, planes):  # type: ignore[no-untyped-def]
    """Per colour both images, the sum of their squares and their product, where both are clear; and where that is."""
    mx, my = x[3], y[3]
    for c in range(3):
        u, v = x[c], y[c]
        first, second, squares, product = planes[4 * c], planes[4 * c + 1], planes[4 * c + 2], planes[4 * c + 3]
        for at in range(len(u)):
            first[at] = u[at] * my[at]
        for at in range(len(u)):
            second[at] = v[at] * mx[at]
        for at in range(len(u)):
            squares[at] = first[at] * first[at] + second[at] * second[at]
        for at in range(len(u)):
            product[at] = first[at] * second[at]
    common = planes[12]
    for at in range(len(mx)):
        common[at] = mx[at] * my[at]
