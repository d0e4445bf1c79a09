// GET /metrics, read: samples of Prometheus' text format, and quantiles of what came between two readings.

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** Map from a metric's name to its samples [{labels, value}]. */
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : SAMPLE.exec(line);
    if (!match) continue;
    const [, name, inner = "", value] = match;
    const labels = Object.fromEntries([...inner.matchAll(LABEL)].map(([, label, text]) => [label, text.replace(/\\(.)/g, unescape)]));
    if (!found.has(name)) found.set(name, []);
    found.get(name).push({ labels, value: value === "+Inf" ? Infinity : Number(value) });
  }
  return found;
}

/** The sum of the samples with these labels; 0 without any. */
export function sum(reading, name, labels) {
  return (reading.get(name) ?? []).filter((one) => matches(one.labels, labels)).reduce((total, one) => total + one.value, 0);
}

/**
 * The median of the observations between two readings of a histogram, by linear interpolation within its bucket (as
 * PromQL's histogram_quantile does). null if there were none, or if the counter began anew between them.
 */
export function median(earlier, later, name, labels) {
  const before = buckets(earlier, name, labels);
  const after = buckets(later, name, labels);
  const counts = after.map(([bound, count], index) => [bound, count - (before[index]?.[1] ?? 0)]);
  const total = counts.at(-1)?.[1] ?? 0;
  if (!(total > 0)) return null;
  let [low, below] = [0, 0];
  for (const [bound, count] of counts) {
    if (count >= total / 2) return bound === Infinity ? low : low + ((bound - low) * (total / 2 - below)) / (count - below);
    [low, below] = [bound, count];
  }
  return null;
}

function buckets(reading, name, labels) {
  return (reading.get(`${name}_bucket`) ?? [])
    .filter((one) => matches(one.labels, labels))
    .map((one) => [one.labels.le === "+Inf" ? Infinity : Number(one.labels.le), one.value])
    .sort(([a], [b]) => a - b);
}

function matches(labels, wanted) {
  return Object.entries(wanted).every(([name, value]) => labels[name] === value);
}

function unescape(_, char) {
  return char === "n" ? "\n" : char;
}
