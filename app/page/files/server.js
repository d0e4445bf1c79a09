// What the server holds, asked for every two seconds while somebody looks, and told to the views when it has changed.

import { ApiError, call, events } from "./api.js";

const INTERVAL_MS = 2000;
// A question that nobody answers must not keep the next from being asked.
const PATIENCE_MS = 15_000;

class ServerState extends EventTarget {
  bases = [];
  variants = [];
  jobs = [];
  methods = [];
  /** How many of the jobs that have ended are asked for. */
  jobLimit = 20;
  /** The last failure, or null. */
  error = null;
  #followed = null;
  #shown = "";
  #asking = null;

  start() {
    setInterval(() => !document.hidden && this.refresh(), INTERVAL_MS);
    document.addEventListener("visibilitychange", () => !document.hidden && this.refresh());
    return this.refresh();
  }

  /** Ask now. Several callers share one round of questions; whoever has changed something asks for a new round. */
  refresh({ again = false } = {}) {
    if (again && this.#asking) return this.#asking.then(() => this.refresh());
    this.#asking ??= this.#ask().finally(() => (this.#asking = null));
    return this.#asking;
  }

  /** The variants that take requests now. */
  get ready() {
    return this.variants.filter((one) => one.state === "ready");
  }

  /** True once the server has told what it holds; before, and while it fails, an empty list says nothing. */
  get isKnown() {
    return !this.error && this.methods.length > 0;
  }

  base(name) {
    return this.bases.find((one) => one.id === name);
  }

  async #ask() {
    try {
      const [bases, variants, jobs] = await Promise.all(["v1/bases", "v1/variants", `v1/jobs?limit=${this.jobLimit}`].map(look));
      if (!this.methods.length) this.methods = (await look("v1/methods")).data;
      Object.assign(this, { bases: bases.data, variants: variants.data, jobs: this.#withProgress(jobs.data), error: null });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.error = error;
      // what a former key opened is not for the next reader
      if (error.status === 401) Object.assign(this, { bases: [], variants: [], jobs: [] });
      if (error.status === 403) await this.#askForInference();
    }
    this.#follow();
    this.#tell();
  }

  /** A key for inference may see the names of models, which is what the playground needs. */
  async #askForInference() {
    const models = await look("models").catch(() => ({ data: [] }));
    Object.assign(this, { bases: [], jobs: [] });
    this.variants = models.data.map(({ id, status }) => ({
      id,
      base: id.split("/")[0],
      state: status.value === "loaded" ? "ready" : "registered",
    }));
  }

  /** The list has a job's progress too, but up to two seconds old. */
  #withProgress(jobs) {
    const known = new Map(this.jobs.map((job) => [job.id, job]));
    for (const job of jobs) {
      const before = known.get(job.id)?.progress;
      if (job.state === "running" && before && before.ratio > (job.progress?.ratio ?? 0)) job.progress = before;
    }
    return jobs;
  }

  /** Listen to the job that runs, one at a time, as the server runs them. */
  async #follow() {
    const job = this.jobs.find((one) => one.state === "running");
    if (!job || this.#followed === job.id) return;
    this.#followed = job.id;
    try {
      for await (const { event, data } of events("GET", `v1/jobs/${job.id}/events`)) {
        const now = this.jobs.find((one) => one.id === job.id);
        // the events of a job that has run for a while begin with its past
        if (event === "progress" && now && data.ratio >= (now.progress?.ratio ?? 0)) {
          now.progress = data;
          this.#tell();
        } else if (event === "state" && data.state !== "running") await this.refresh({ again: true });
      }
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
    } finally {
      // the next job may have begun meanwhile, and is followed already
      if (this.#followed === job.id) this.#followed = null;
    }
  }

  #tell() {
    const now = JSON.stringify([this.bases, this.variants, this.jobs, this.error?.message]);
    if (now === this.#shown) return;
    this.#shown = now;
    this.dispatchEvent(new Event("change"));
  }
}

function look(path) {
  return call("GET", path, undefined, { signal: AbortSignal.timeout(PATIENCE_MS) });
}

export const server = new ServerState();
