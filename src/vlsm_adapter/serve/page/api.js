// The service's HTTP interface. Every failure becomes a Failure with a sentence for the person at the page.
// Addresses are relative, so the page also works behind a proxy that serves it under a path.

const TOKEN = "vlsm-token";

export class Failure extends Error {
  /** kind: network | token | busy | gone | refused | server */
  constructor(kind, message, details = {}) {
    super(message);
    Object.assign(this, { kind, ...details });
  }
}

let askToken = async () => null;
let memory = null;

/** The function that asks the person for a token: (wrongBefore) => token or null. */
export function onTokenWanted(ask) {
  askToken = ask;
}

function token() {
  try {
    return sessionStorage.getItem(TOKEN) ?? memory;
  } catch {
    return memory;
  }
}

function keepToken(value) {
  memory = value;
  try {
    if (value === null) sessionStorage.removeItem(TOKEN);
    else sessionStorage.setItem(TOKEN, value);
  } catch {
    // Storage is refused: the token lives as long as the page.
  }
}

let asking = null; // one dialog, however many requests wait for it

async function newToken(wrongBefore) {
  asking ??= askToken(wrongBefore).finally(() => (asking = null));
  const value = await asking;
  if (value !== null && !/^[!-~]+$/.test(value)) return newToken(true); // no header can carry it, so no server wants it
  if (value === null) throw new Failure("token", "This server answers only with an access token.");
  keepToken(value);
}

async function failure(response) {
  let said = "";
  let field = null;
  try {
    const body = await response.json();
    field = body.field ?? null;
    said = typeof body.error === "string" ? body.error : "";
  } catch {
    // Not JSON: a proxy answered.
  }
  const details = { field, status: response.status, said };
  if (response.status === 503 || response.status === 429) {
    const wait = Number(response.headers.get("Retry-After")) || 1;
    return new Failure("busy", "The server is busy.", { ...details, wait: Math.min(wait, 10) });
  }
  if (response.status === 404) return new Failure("gone", said || "The server does not know this any more.", details);
  if (response.status === 413) return new Failure("refused", said || "Too large for this server.", details);
  if (response.status < 500) return new Failure("refused", said || `The server refused this (${response.status}).`, details);
  return new Failure("server", said || `The server failed (${response.status}).`, details);
}

async function send(path, { signal, body, method = body ? "POST" : "GET", retried = false } = {}) {
  const headers = {};
  const used = token();
  if (used) headers.Authorization = `Bearer ${used}`;
  const json = body !== undefined && !(body instanceof FormData);
  if (json) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: json ? JSON.stringify(body) : body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("network", "The server cannot be reached.");
  }
  if (response.status === 401 || (response.status === 403 && response.headers.has("WWW-Authenticate"))) {
    // Another request may have brought a new token meanwhile: that one is tried first.
    if (token() === used) await newToken(retried && used !== null);
    return send(path, { signal, body, method, retried: true });
  }
  if (!response.ok) throw await failure(response);
  return response;
}

/** Sends again while the server is busy, a few times; told(seconds) hears of each wait. */
async function patient(path, options, told = () => {}) {
  for (let attempt = 0; ; attempt++) {
    try {
      return await send(path, options);
    } catch (error) {
      if (error.kind !== "busy" || attempt === 3) throw error;
      told(error.wait * 2 ** attempt);
      await new Promise((done) => setTimeout(done, 1000 * error.wait * 2 ** attempt));
      if (options.signal?.aborted) throw new DOMException("aborted", "AbortError");
    }
  }
}

export const api = {
  async models() {
    return (await send("v1/adapters")).json();
  },
  /** Loads an adapter that the server has on disk. */
  async load(name, told) {
    return (await patient(`v1/adapters/${encodeURIComponent(name)}`, { method: "POST" }, told)).json();
  },
  async upload(file, name, told) {
    const body = new FormData();
    body.append("file", file, name);
    return (await patient("v1/images", { body }, told)).json();
  },
  async picture(id, frame, signal) {
    return (await patient(`v1/images/${encodeURIComponent(id)}/picture?frame=${frame}`, { signal })).blob();
  },
  forget(id) {
    return send(`v1/images/${encodeURIComponent(id)}`, { method: "DELETE" }).catch(() => {});
  },
  /** Maps of probability, or with form "mask" finished masks. */
  async segment(id, frame, queries, { signal, told, form = "probability" } = {}) {
    const body = { image_id: id, frame, queries, return: form };
    return (await patient("v1/segment", { body, signal }, told)).json();
  },
  async download(id, frame, format, masks) {
    const response = await patient("v1/download", { body: { image_id: id, frame, format, masks } });
    const header = response.headers.get("Content-Disposition") ?? "";
    const name = /filename\*=UTF-8''([^;]+)/i.exec(header)?.[1] ?? /filename="?([^";]+)"?/i.exec(header)?.[1];
    return { blob: await response.blob(), name: name ? decodeURIComponent(name) : `mask.${format}` };
  },
  async correction(record) {
    return (await patient("v1/corrections", { body: record })).json();
  },
};
