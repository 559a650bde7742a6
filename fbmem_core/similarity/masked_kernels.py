"""The loops of `fused` for regions; see `kernels`."""

import numpy as np

from fbmem_core.similarity.kernels import C2, HALF, TWO, ZERO, across, brighten, common_box, compiled, down
from fbmem_core.similarity.masked import MIN_VARIANCE, MIN_WEIGHT

_ONE, _TINY, _SMOOTH = np.float32(1), np.float32(MIN_WEIGHT), np.float32(MIN_VARIANCE)


@compiled
def shared(x, y, pairs, with_luminance, min_area, factors, textures):  # type: ignore[no-untyped-def]
    """`Shared`: the mean of cs by texture over what both show, and the mean texture."""
    (px, bx), (py, by) = x, y
    height, width = px.shape[2] - 10, px.shape[3] - 10
    rings, planes = np.empty((13, 11, width), np.float32), np.empty((13, width + 10), np.float32)
    lines, cs = np.empty((13, width), np.float32), np.empty(width, np.float32)
    for k in range(len(pairs)):
        i, j = pairs[k]
        top, bottom, left, right = common_box(bx[i], by[j], False, height, width)
        num = right - left
        agreement, texture, area = 0.0, 0.0, 0.0
        for r in range(top, bottom + 10 if num else top):
            _products(px[i, :, r, left:], py[j, :, r, left:], planes[:, : num + 10])
            for c in range(13):
                across(planes[c], rings[c, r % 11], num)
            if r < top + 10:
                continue
            u, v = px[i, 3, r - 5, left + 5 :], py[j, 3, r - 5, left + 5 :]
            shown = ZERO
            for at in range(num):
                shown += u[at] * v[at]
            if shown == ZERO:
                continue
            area += float(shown)
            for c in range(13):
                down(rings[c], r - 10, lines[c], num)
            for at in range(num):
                lines[12, at] = _ONE / max(lines[12, at], _TINY)
            for c in range(3):
                line = lines[4 * c : 4 * c + 4, :num], lines[12, :num], cs[:num]
                one, two = _line(line, u, v, with_luminance[k])
                agreement += one
                texture += two
        textures[k] = texture / max(3 * area, 1e-12) if area >= min_area * height * width else 0.0
        factors[k, :] = agreement / max(texture, 1e-12)


@compiled
def _line(line, u, v, with_luminance):  # type: ignore[no-untyped-def]
    """The sums of cs by texture and of texture over a line of one channel, where u and v are both 1.

    `line`: blurred values of both images, sums of their squares, and products; what to divide them by; room.
    """
    (mx, my, squares, products), scales, cs = line
    for i in range(len(cs)):
        mx[i] *= scales[i]
        my[i] *= scales[i]
        cs[i] = TWO * (products[i] * scales[i] - mx[i] * my[i])
    for i in range(len(cs)):
        squares[i] = max(squares[i] * scales[i] - mx[i] * mx[i] - my[i] * my[i], ZERO)
        cs[i] = min(max(cs[i] / max(squares[i], _SMOOTH), -_ONE), _ONE)
    if with_luminance:
        brighten(cs, mx, my, HALF)
    agreement, texture = ZERO, ZERO
    for i in range(len(cs)):
        weight = u[i] * v[i] * squares[i] / (squares[i] + C2)
        texture += weight
        agreement += weight * cs[i]
    return agreement, texture


@compiled
def _products(x, y, planes):  # type: ignore[no-untyped-def]
    """Per colour both images, the sum of their squares and their product, where both show it; and where that is."""
    mx, my = x[3], y[3]
    for c in range(3):
        u, v = x[c], y[c]
        first, second, squares, product = planes[4 * c], planes[4 * c + 1], planes[4 * c + 2], planes[4 * c + 3]
        for at in range(len(first)):
            first[at] = u[at] * my[at]
        for at in range(len(first)):
            second[at] = v[at] * mx[at]
        for at in range(len(first)):
            squares[at] = first[at] * first[at] + second[at] * second[at]
        for at in range(len(first)):
            product[at] = first[at] * second[at]
    common = planes[12]
    for at in range(len(common)):
        common[at] = mx[at] * my[at]
