// Several photos: a strip to walk through. Radio buttons, so that the arrow keys walk without a script.
import { percent } from "./words.js";

const strip = document.querySelector("#strip");
const thumbs = document.querySelector("#thumbs");
const place = document.querySelector("#place");
const made = new Map();

export function startStrip(pick, step) {
  thumbs.addEventListener("change", (event) => pick(Number(event.target.value)));
  document.querySelector("#previous").addEventListener("click", () => step(-1));
  document.querySelector("#next").addEventListener("click", () => step(1));
}

export function showStrip(photos, current) {
  strip.hidden = photos.length < 2;
  if (strip.hidden) return;
  for (const one of photos) {
    if (!made.has(one.id)) made.set(one.id, thumb(one));
    const { label, words } = made.get(one.id);
    label.dataset.state = one.state;
    words.textContent = `${one.name}: ${told(one)}`;
    label.title = words.textContent;
  }
  const { input, label } = made.get(current.id);
  if (!input.checked) {
    input.checked = true;
    // Not scrollIntoView, which would move the page as well.
    thumbs.scrollLeft = label.offsetLeft - (thumbs.clientWidth - label.clientWidth) / 2;
  }
  place.textContent = `${photos.indexOf(current) + 1} of ${photos.length}`;
}

function told(one) {
  if (one.predictions) return `${one.predictions[0].label}, ${percent(one.predictions[0].probability)}`;
  return one.state === "failed" ? "no answer" : "waiting";
}

function thumb(one) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  const picture = document.createElement("img");
  const words = document.createElement("span");
  Object.assign(input, { type: "radio", name: "photo", value: one.id });
  Object.assign(picture, { src: one.url, alt: "", decoding: "async" });
  picture.addEventListener("error", () => label.classList.add("blind"));
  words.className = "hidden";
  label.append(input, picture, words);
  thumbs.append(label);
  return { input, label, words };
}
