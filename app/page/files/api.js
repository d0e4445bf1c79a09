// Calls of the HTTP API under the user's key, which lives as long as this tab.

const KEY = "slimserve.key";

/** What the server refused, in its own words. status 0: it could not be reached. */
export class ApiError extends Error {
  constructor(status, { message, code = null, param = null }) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** The decoded JSON of an answer; `accept: "text"` gives its text. Throws ApiError. */
export async function call(method, path, body, { accept = "json", signal } = {}) {
  const response = await send(method, path, body, signal);
  return (accept === "text" ? response.text() : response.json()).catch(tellLoss);
}

/**
 * Server-sent events of one answer as {id, event, data}, decoded, until `[DONE]` or its end. EventSource would do, but it
 * can send neither a key nor a body. Throws ApiError, also for an error that comes as an event.
 */
export async function* events(method, path, body, { signal } = {}) {
  const response = await send(method, path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(tellLoss);
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const found = parse(part);
        if (found.data === "[DONE]") return;
        if (!found.data) continue;
        const data = JSON.parse(found.data);
        if (data.error && !found.event) throw new ApiError(response.status, data.error);
        yield { ...found, data };
      }
    }
  } finally {
    // a reader that is left early ends the request, and with it the generation
    reader.cancel().catch(() => {});
  }
}

/** A connection that ends within an answer is the server's failure like one that ends before it. */
function tellLoss(error) {
  if (error.name === "AbortError") throw error;
  throw new ApiError(0, { message: "The server's answer broke off." });
}

function parse(part) {
  const found = { id: null, event: null, data: "" };
  for (const line of part.split("\n")) {
    const [, name, value] = /^(\w+): ?(.*)$/.exec(line) ?? [];
    if (name in found) found[name] = name === "data" ? found.data + value : value;
  }
  return found;
}

async function send(method, path, body, signal) {
  const headers = {};
  if (/[^\x21-\x7e]/.test(key.get())) throw new ApiError(401, { message: "This API key has characters that no key can have." });
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The server does not answer." });
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  throw new ApiError(response.status, answer?.error ?? { message: `The server answered ${response.status}.` });
}
