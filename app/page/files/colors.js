// One colour per variant, the same in every view: classes series-0 to series-7 of the style sheet.

import { server } from "./server.js";

const NUM_COLORS = 8;

/** The class of a variant's colour, by its place among the variants of its base. */
export function colorOf(id) {
  const base = id.split("/")[0];
  const index = server.variants.filter((one) => one.base === base).findIndex((one) => one.id === id);
  return `series-${Math.max(0, index) % NUM_COLORS}`;
}
