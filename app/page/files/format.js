// Numbers and times for people. What was not measured is a dash, never a zero.

export const DASH = "–";

const UNITS = ["B", "kB", "MB", "GB", "TB"];

const shown = (format) => (value) => (value === null || value === undefined || !Number.isFinite(value) ? DASH : format(value));

/** 1583936 -> "1.6 MB", in powers of 1000. */
export const bytes = shown((value) => {
  let unit = 0;
  while (Math.abs(value) >= 1000 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? value : digits(value, 3)} ${UNITS[unit]}`;
});

/** Three significant digits, and all before the point: 0.00119, 1.2, 119, 1193. */
export const number = shown((value) => digits(value, 3));

export const count = shown((value) => value.toLocaleString("en"));

export const percent = shown((value) => `${(100 * value).toFixed(1)} %`);

/** Milliseconds: "0.42 ms", "12.3 ms", "1.2 s". */
export const milliseconds = shown((value) => (value < 1000 ? `${digits(value, 3)} ms` : seconds(value / 1000)));

/** Seconds: "3.2 s", "2 min 05 s", "1 h 02 min". */
export const seconds = shown((value) => {
  if (value < 60) return `${digits(value, 2)} s`;
  const minutes = Math.floor(value / 60);
  if (minutes < 60) return `${minutes} min ${String(Math.floor(value % 60)).padStart(2, "0")} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
});

/** Unix seconds as a local date and time. */
export const time = shown((value) => new Date(1000 * value).toLocaleString());

/** 791936 -> "792 k", 8.03e9 -> "8.03 B", as models' parameters are counted. */
export const parameters = shown((value) => {
  for (const [size, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) return `${digits(value / size, 3)} ${unit}`;
  }
  return String(value);
});

function digits(value, significant) {
  if (value === 0) return "0";
  const size = Math.floor(Math.log10(Math.abs(value)));
  // back and forth, so that 1.50 is 1.5
  return String(Number(value.toFixed(Math.min(6, Math.max(0, significant - 1 - size)))));
}
