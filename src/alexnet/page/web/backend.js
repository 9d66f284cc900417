// Answers from the server, by XMLHttpRequest, as fetch does not report upload progress. `alexnet export --page` has a file of
// the same name that answers in the browser.
import { Trouble } from "./trouble.js";

const PATIENCE = 180_000; // milliseconds: an explanation on a slow processor takes its time
const KEY = "alexnet-key";

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

export const model = () => ask("GET", "model");

// `progress` is called with the fraction that has been sent, and with 1 when the server has received everything.
export const predict = (files, progress) => ask("POST", "predict?top=5", form(files), progress);

// The photo as a JPEG, for browsers that cannot show it.
export const preview = async (file) => (await ask("POST", "preview", form([file]))).preview;

export const explain = (file, signal) => ask("POST", "explain", form([file]), undefined, signal);

function form(files) {
  const form = new FormData();
  for (const file of files) form.append("images", file, file.name || "pasted.png");
  return form;
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
