// Quality against a cost: one point per variant, and the line of those that nothing beats in both.

import { frame, linear, symlog } from "./axis.js";
import { svg } from "./dom.js";
import { number } from "./format.js";

const SIZE = { width: 520, height: 330, left: 56, right: 20, top: 26, bottom: 40 };
// Nats per token: below it, differences do not show in text.
const KNEE = 0.001;
const CHAR_WIDTH = 6.4;
const MAX_CHARS = 24;

/**
 * points: [{name, x, kl, isPareto, color}]. x: {label, format, isMoreBetter}. The line is drawn in these two dimensions;
 * filled points are Pareto members in all three.
 */
export function scatter(points, { label, format, isMoreBetter }) {
  const most = Math.max(...points.map((point) => point.x));
  const x = linear([0, most * 1.08 || 1], [SIZE.left, SIZE.width - SIZE.right]);
  const worst = Math.max(...points.map((point) => point.kl), 10 * KNEE);
  const y = symlog(worst * 1.5, [SIZE.height - SIZE.bottom, SIZE.top], KNEE);
  const title = `KL to the base against ${label}`;
  const line = front(points, isMoreBetter).map((point) => `${x(point.x)},${y(point.kl)}`);
  const placed = place(points.map((point) => ({ ...point, label: shortened(point.name), left: x(point.x), top: y(point.kl) })));
  return svg(
    "svg",
    { class: "chart", viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, role: "group", "aria-label": title },
    ...frame(SIZE, { scale: x, format, label, ticks: 5 }, { scale: y, format: number, label: "KL, nats per token (lower is better)" }),
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

/** Labels stand right of their points, left of them at the right edge, and one line up where one stands already. */
function place(points) {
  const taken = [];
  return points
    .toSorted((a, b) => b.top - a.top)
    .map((point) => {
      const width = point.label.length * CHAR_WIDTH;
      const isLeft = point.left + 9 + width > SIZE.width - 4;
      const start = isLeft ? point.left - 9 - width : point.left + 9;
      let baseline = point.top + 4;
      const isHit = () =>
        taken.some((one) => Math.abs(one.baseline - baseline) < 12 && one.start < start + width && start < one.start + one.width);
      while (isHit() && baseline > SIZE.top + 12) baseline -= 12;
      taken.push({ start, width, baseline });
      return { ...point, labelX: isLeft ? point.left - 9 : start, anchor: isLeft ? "end" : "start", baseline };
    });
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
    svg("text", { x: point.labelX, y: point.baseline, "text-anchor": point.anchor }, point.label),
  );
}
