// Quality against a cost: one point per variant, and the line of those that nothing beats in both.

import { frame, linear, sized, symlog } from "./axis.js";
import { svg } from "./dom.js";
import { number } from "./format.js";

const WIDE = { width: 520, height: 330, left: 56, right: 20, top: 26, bottom: 40 };
// Nats per token: below it, differences do not show in text.
const KNEE = 0.001;
const CHAR_WIDTH = 6.4;
const LINE = 12;
const MAX_CHARS = 24;

/**
 * points: [{name, x, kl, isPareto, color}]. x: {label, format, isMoreBetter}. The line is drawn in these two dimensions;
 * filled points are Pareto members in all three.
 */
export function scatter(points, { label, format, isMoreBetter }) {
  const size = sized(WIDE);
  const most = Math.max(...points.map((point) => point.x));
  const x = linear([0, most * 1.08 || 1], [size.left, size.width - size.right]);
  const worst = Math.max(...points.map((point) => point.kl), 10 * KNEE);
  const y = symlog(worst * 1.5, [size.height - size.bottom, size.top], KNEE);
  const title = `KL to the base against ${label}`;
  const along = front(points, isMoreBetter);
  const line = along.map((point) => `${x(point.x)},${y(point.kl)}`);
  const marks = points.map((point) => ({ ...point, label: shortened(point.name), left: x(point.x), top: y(point.kl), isFirst: along.includes(point) }));
  const placed = place(size, marks, y);
  return svg(
    "svg",
    { class: "chart", viewBox: `0 0 ${size.width} ${size.height}`, role: "group", "aria-label": title },
    ...frame(size, { scale: x, format, label, ticks: size.width / 100 }, { scale: y, format: number, label: "KL, nats per token (lower is better)" }),
    svg("polyline", { class: "pareto", points: line.join(" ") }),
    ...placed.map((point) => mark(point, `${point.name}: ${label} ${format(point.x)}, KL ${number(point.kl)}`)),
  );
}

/** The points that no other beats in both, from the cheapest to the dearest. */
export function front(points, isMoreBetter) {
  const sign = isMoreBetter ? -1 : 1;
  const sorted = points.toSorted((a, b) => sign * (a.x - b.x) || a.kl - b.kl);
  let best = Infinity;
  return sorted.filter((point) => point.kl < best && ((best = point.kl), true));
}

/**
 * Labels stand right of their points, or left of them; where another label, a point or an axis' numbers are, on the nearest
 * free line above or below. One that has no room is left out, those off the line first: pointing at it tells its name.
 */
function place(size, points, y) {
  const bottom = size.height - size.bottom;
  const taken = [
    { start: 0, width: size.width, baseline: bottom + 15 },
    ...y.ticks().map((value) => ({ start: 0, width: size.left - 6, baseline: y(value) + 4 })),
    ...points.map(({ left, top }) => ({ start: left - 6, width: 12, baseline: top + 4 })),
  ];
  return points
    .toSorted((a, b) => b.isFirst - a.isFirst || b.top - a.top)
    .map((point) => {
      const width = point.label.length * CHAR_WIDTH;
      const sides = [
        { start: point.left + 9, labelX: point.left + 9, anchor: "start" },
        { start: point.left - 9 - width, labelX: point.left - 9, anchor: "end" },
      ].filter(({ start }) => start > 4 && start + width < size.width - 4);
      const lines = [0, -1, 1, -2, 2].map((line) => point.top + 4 + line * LINE);
      const places = lines.flatMap((baseline) => sides.map((side) => ({ ...side, width, baseline })));
      const chosen = places.find((one) => one.baseline > size.top && one.baseline < bottom + LINE && !taken.some((other) => isHit(one, other)));
      if (!chosen) return { ...point, label: null };
      taken.push(chosen);
      return { ...point, ...chosen };
    });
}

function isHit(one, other) {
  const isSameLine = Math.abs(one.baseline - other.baseline) < LINE;
  return isSameLine && one.start < other.start + other.width && other.start < one.start + one.width;
}

function shortened(name) {
  return name.length > MAX_CHARS ? `${name.slice(0, MAX_CHARS - 1)}…` : name;
}

function mark(point, text) {
  return svg(
    "g",
    { class: `point ${point.color}`, tabindex: 0, role: "img", "aria-label": text },
    svg("title", {}, text),
    svg("circle", { cx: point.left, cy: point.top, r: 6, class: point.isPareto ? "member" : "" }),
    ...(point.label ? [svg("text", { x: point.labelX, y: point.baseline, "text-anchor": point.anchor }, point.label)] : []),
  );
}
