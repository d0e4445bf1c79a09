// Scales, ticks and the frame of a chart: what the scatter and the lines share.

import { svg } from "./dom.js";

/**
 * The size to draw in: a narrow screen gets a narrower drawing, not the same one in letters too small to read. Drawn at the
 * next change of the numbers, after a turn of the device.
 */
export const sized = (size) => (matchMedia("(max-width: 700px)").matches ? { ...size, width: 340 } : size);

/** Numbers between low and high that people would write at an axis: 1, 2 or 5 times a power of ten apart. */
export function ticks(low, high, wanted = 5) {
  const step = niceStep((high - low) / wanted);
  const found = [];
  for (let index = Math.ceil(low / step); index * step <= high + step * 1e-9; index += 1) found.push(index * step);
  return found;
}

/** Maps [low, high] to [from, to]. */
export function linear([low, high], [from, to]) {
  const span = high - low || 1;
  const scale = (value) => from + ((value - low) / span) * (to - from);
  return Object.assign(scale, { ticks: (wanted) => ticks(low, high, wanted) });
}

/**
 * Maps [0, high] to [from, to]: linear below `knee`, logarithmic far above it (asinh). For KL, where the base itself is
 * 0 and variants lie powers of ten apart.
 */
export function symlog(high, [from, to], knee) {
  const size = Math.asinh(high / knee) || 1;
  const scale = (value) => from + (Math.asinh(value / knee) / size) * (to - from);
  const decades = [0];
  for (let value = knee; value <= high * 1.0001; value *= 10) decades.push(value);
  return Object.assign(scale, { ticks: () => decades });
}

/**
 * The frame: grid, axes and labels. x and y: {scale, format, label, ticks}. size: {width, height, left, right, top,
 * bottom} in the units of the view box. Returns elements.
 */
export function frame(size, x, y) {
  const bottom = size.height - size.bottom;
  const right = size.width - size.right;
  return [
    ...y.scale.ticks(y.ticks).flatMap((value) => [
      svg("line", { class: "grid", x1: size.left, x2: right, y1: y.scale(value), y2: y.scale(value) }),
      svg("text", { class: "tick", x: size.left - 6, y: y.scale(value) + 3.5, "text-anchor": "end" }, y.format(value)),
    ]),
    ...x.scale.ticks(x.ticks).flatMap((value) => [
      svg("line", { class: "grid", x1: x.scale(value), x2: x.scale(value), y1: size.top, y2: bottom }),
      svg("text", { class: "tick", x: x.scale(value), y: bottom + 15, "text-anchor": "middle" }, x.format(value)),
    ]),
    svg("text", { class: "label", x: (size.left + right) / 2, y: size.height - 4, "text-anchor": "middle" }, x.label),
    svg("text", { class: "label", x: size.left - 6, y: size.top - 8, "text-anchor": "start" }, y.label),
  ];
}

function niceStep(rough) {
  const size = 10 ** Math.floor(Math.log10(rough || 1));
  return size * [1, 2, 5, 10].find((factor) => factor * size >= rough * 0.999999);
}
