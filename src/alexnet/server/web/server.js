// Talks to the server with XMLHttpRequest, as fetch does not report upload progress.

const PATIENCE = 180_000; // milliseconds: an explanation on a slow processor takes its time
const KEY = "alexnet-key";

// Why there is no answer. `kind`: "gone" (no server), "busy", "key", "refused" (this request, for good), "stopped" (by the page).
export class Trouble extends Error {
  constructor(kind, message, wait = 0) {
    super(message);
    this.kind = kind;
    this.wait = wait; // seconds
  }
}

let storage = null;
try {
  storage = sessionStorage;
} catch {
  // Storage is switched off: the key lives as long as the page.
}
let key = storage?.getItem(KEY) ?? null;

export const hasKey = () => Boolean(key);

export function useKey(text) {
  key = text;
  storage?.setItem(KEY, text);
}

export const model = () => ask("GET", "/model");

// `progress` is called with the fraction that has been sent, and with 1 when the server has received everything.
export function send(path, files, { progress, signal } = {}) {
  const form = new FormData();
  for (const file of files) form.append("images", file, file.name || "pasted.png");
  return ask("POST", path, form, progress, signal);
}

function ask(method, path, body = null, progress = () => {}, signal = null) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, path);
    request.timeout = PATIENCE;
    request.responseType = "json"; // null if it is not JSON
    try {
      if (key) request.setRequestHeader("X-API-Key", key);
    } catch {
      return reject(new Trouble("key", "A key may contain plain characters only.")); // not allowed in a header
    }
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.upload.onload = () => progress(1);
    request.onerror = () => reject(new Trouble("gone", "The server does not answer."));
    request.ontimeout = () => reject(new Trouble("gone", "The server takes too long."));
    request.onabort = () => reject(new Trouble("stopped", "Stopped."));
    request.onload = () => {
      if (request.status < 400 && request.response !== null) resolve(request.response);
      else reject(trouble(request, request.response));
    };
    signal?.addEventListener("abort", () => request.abort());
    request.send(body);
  });
}

function trouble(request, answer) {
  const message = answer?.error ?? `The server answered with an error (${request.status}).`;
  const wait = Number(request.getResponseHeader("Retry-After")) || 5;
  if (request.status === 401) return new Trouble("key", message);
  if (request.status === 429) return new Trouble("busy", message, wait);
  if ([502, 503, 504].includes(request.status)) return new Trouble("gone", message);
  return new Trouble("refused", message);
}
