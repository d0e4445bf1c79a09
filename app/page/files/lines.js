// Numbers over time: one line per variant, gaps where nothing was measured.

import { frame, linear, sized } from "./axis.js";
import { svg } from "./dom.js";

const WIDE = { width: 520, height: 220, left: 66, right: 14, top: 26, bottom: 34 };

/**
 * series: [{name, color, points: [[seconds ago, value or null], ...]}], oldest first. Draws the last span_s seconds.
 */
export function lines(series, { label, format, span_s }) {
  const size = sized(WIDE);
  const values = series.flatMap((one) => one.points.map(([, value]) => value)).filter((value) => value !== null);
  const most = Math.max(...values, 0) * 1.1 || 1;
  const x = linear([-span_s, 0], [size.left, size.width - size.right]);
  const y = linear([0, most], [size.height - size.bottom, size.top]);
  const minutes = (ago_s) => (ago_s === 0 ? "now" : `${ago_s / 60} min`);
  return svg(
    "svg",
    { class: "chart", viewBox: `0 0 ${size.width} ${size.height}`, role: "img", "aria-label": `${label} over time` },
    ...frame(
      size,
      { scale: Object.assign(x, { ticks: () => minuteTicks(span_s) }), format: minutes, label: "" },
      { scale: y, format, label, ticks: 4 },
    ),
    ...series.flatMap((one) => runs(one.points).map((run) => path(run, one, x, y))),
  );
}

function path(run, { name, color }, x, y) {
  const points = run.map(([ago_s, value]) => `${x(-ago_s).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  if (run.length > 1) return svg("polyline", { class: `line ${color}`, points }, svg("title", {}, name));
  const [[ago_s, value]] = run;
  return svg("circle", { class: `dot ${color}`, cx: x(-ago_s), cy: y(value), r: 2.2 }, svg("title", {}, name));
}

/** The stretches between gaps. */
function runs(points) {
  const found = [[]];
  for (const point of points) {
    if (point[1] === null) found.push([]);
    else found.at(-1).push(point);
  }
  return found.filter((run) => run.length);
}

function minuteTicks(span_s) {
  return Array.from({ length: span_s / 60 + 1 }, (_, index) => -60 * index);
}
