// The prediction for a photo, and how reliable it is.
import { get, make } from "./dom.js";
import { accuracy, closed, gloss, kinds, percent, quoted, sureness } from "./words.js";

let shown = null;

export function showWelcome(model) {
  if (!model) return;
  get("gloss").textContent = `It says which of these it sees: ${kinds(model.labels)}.`;
  get("accuracy").textContent = accuracy(model);
}

// How much of a network that runs in the browser is there.
export function showLoading(share) {
  get("loading").hidden = share >= 1;
  get("loaded").value = share;
}

export function showAnswer(one, model) {
  const state = `${one.id} ${one.state} ${one.error}`;
  if (state === shown) return; // otherwise the bars would be animated again
  shown = state;
  const best = one.predictions?.[0];
  get("answer").dataset.state = one.state;
  get("which").textContent = one.name;
  get("label").textContent = best?.label ?? { failed: "No answer.", thinking: "Looking…", sending: "Sending…" }[one.state] ?? "Waiting…";
  get("label").classList.toggle("long", (best?.label.length ?? 0) > 16);
  get("sure").textContent = best ? sureness(one, model.labels.length) : sentence(one.error ?? "");
  get("again").hidden = one.state !== "failed" || !one.mayRetry;
  get("bars").hidden = !best;
  get("bars").replaceChildren(...(one.predictions ?? []).map(bar));
  get("gloss").textContent = best ? gloss(best.probability) : "";
  get("accuracy").textContent = best ? accuracy(model) : "";
  get("closed").textContent = best ? closed(model.labels.length) : "";
}

// For screen readers.
export function spoken(one, model) {
  if (one.state === "failed") return `${one.name}: no answer. ${one.error}`;
  const [best] = one.predictions;
  return `${one.name}: ${quoted(best.label)}, ${percent(best.probability)}. ${sureness(one, model.labels.length)}`;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$|^$/.test(text) ? "" : ".");

function bar({ label, probability }) {
  const name = make("span", { className: "name", textContent: label });
  const share = make("data", { value: probability, textContent: percent(probability) });
  const filled = make("i", { ariaHidden: "true" });
  filled.style.setProperty("--share", probability);
  return make("li", {}, name, " ", share, filled);
}
