// Charts of the last five minutes, read from GET /metrics while the page is open. For longer there is Prometheus.

import { ApiError, call } from "./api.js";
import { colorOf } from "./colors.js";
import { h } from "./dom.js";
import { median, parse, sum } from "./exposition.js";
import { bytes, milliseconds, number } from "./format.js";
import { lines } from "./lines.js";
import { server } from "./server.js";

const INTERVAL_MS = 2000;
const SPAN_S = 300;
// What a point looks back at: shorter, and a slow model has no request in it.
const WINDOW_S = 10;

/** Title, label of the axis, format, and the value of one variant between two readings `elapsed_s` apart. */
const CHARTS = [
  ["TTFT", "median of 10 s", milliseconds, (a, b, variant) => inMilliseconds(median(a, b, "slimserve_time_to_first_token_seconds", { variant }))],
  ["TPOT", "median of 10 s", milliseconds, (a, b, variant) => inMilliseconds(median(a, b, "slimserve_time_per_output_token_seconds", { variant }))],
  ["Throughput", "tokens per second", number, (a, b, variant, elapsed_s) => rate(a, b, "slimserve_generation_tokens_total", variant, elapsed_s)],
  ["Memory", "of the worker", bytes, (a, b, variant) => sum(b, "slimserve_memory_bytes", { variant }) || null],
  ["Running", "requests", number, (a, b, variant) => sum(b, "slimserve_requests_running", { variant })],
  ["Waiting", "requests", number, (a, b, variant) => sum(b, "slimserve_requests_waiting", { variant })],
];

/** Fill the section; readings are taken in every view, so that nothing is missing when one comes back. */
export function mountLive(section) {
  const readings = [];
  const history = new Map();
  const charts = h("div", { class: "charts" });
  const legend = h("p", { class: "legend" });
  const problem = h("p", { class: "problem", role: "alert" });
  section.append(h("h2", {}, "Live"), legend, problem, charts);

  async function read() {
    if (document.hidden) return;
    try {
      const reading = parse(await call("GET", "metrics", undefined, { accept: "text" }));
      problem.textContent = "";
      take(reading);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      problem.textContent = error.message;
    }
    if (!section.hidden) draw();
  }

  function take(reading) {
    const at_s = performance.now() / 1000;
    readings.push({ at_s, reading });
    while (readings.length > 2 && readings[1].at_s <= at_s - WINDOW_S) readings.shift();
    const [earlier] = readings;
    const point = { at_s, values: {} };
    for (const { id } of server.ready) {
      point.values[id] = CHARTS.map(([, , , value]) => value(earlier.reading, reading, id, at_s - earlier.at_s));
    }
    history.set(at_s, point);
    for (const old of history.keys()) if (old < at_s - SPAN_S) history.delete(old);
  }

  function draw() {
    const now_s = performance.now() / 1000;
    const points = [...history.values()];
    const ids = [...new Set(points.flatMap((point) => Object.keys(point.values)))].sort();
    legend.replaceChildren(...ids.map((id) => h("span", { class: `key ${colorOf(id)}` }, id)));
    if (!ids.length) legend.textContent = "No variant is loaded.";
    charts.replaceChildren(
      ...CHARTS.map(([title, label, format], index) => {
        const series = ids.map((id) => ({
          name: id,
          color: colorOf(id),
          points: points.map((point) => [now_s - point.at_s, point.values[id]?.[index] ?? null]),
        }));
        return h("figure", { class: "card" }, h("figcaption", {}, title), lines(series, { label, format, span_s: SPAN_S }));
      }),
    );
  }

  setInterval(read, INTERVAL_MS);
  section.addEventListener("shown", draw);
}

function rate(a, b, name, variant, elapsed_s) {
  const change = sum(b, name, { variant }) - sum(a, name, { variant });
  return elapsed_s > 0 && change >= 0 ? change / elapsed_s : null;
}

const inMilliseconds = (value_s) => (value_s === null ? null : 1000 * value_s);
