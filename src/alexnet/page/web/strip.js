// A strip of thumbnails for several photos. Radio buttons, so that the arrow keys work without a script.
import { get, make } from "./dom.js";
import { percent } from "./words.js";

const made = new Map();

export function startStrip(pick, step) {
  get("thumbs").addEventListener("change", (event) => pick(Number(event.target.value)));
  get("previous").addEventListener("click", () => step(-1));
  get("next").addEventListener("click", () => step(1));
}

export function showStrip(photos, current) {
  get("strip").hidden = photos.length < 2;
  if (get("strip").hidden) return;
  for (const one of photos) {
    if (!made.has(one.id)) made.set(one.id, thumb(one));
    const label = made.get(one.id);
    const picture = label.querySelector("img");
    if (picture.getAttribute("src") !== one.url) {
      picture.src = one.url; // the server's preview
      label.classList.remove("blind");
    }
    const [best] = one.predictions ?? [];
    const result = best ? `${best.label}, ${percent(best.probability)}` : one.state === "failed" ? "no answer" : "waiting";
    label.dataset.state = one.state;
    label.title = label.lastChild.textContent = `${one.name}: ${result}`;
  }
  const label = made.get(current.id);
  if (!label.control.checked) {
    label.control.checked = true;
    // Not scrollIntoView, which would move the page as well.
    get("thumbs").scrollLeft = label.offsetLeft - (get("thumbs").clientWidth - label.clientWidth) / 2;
  }
  get("place").textContent = `${photos.indexOf(current) + 1} of ${photos.length}`;
}

function thumb(one) {
  const input = make("input", { type: "radio", name: "photo", value: one.id });
  const picture = make("img", { src: one.url, alt: "", decoding: "async" });
  const label = make("label", {}, input, picture, make("span", { className: "hidden" }));
  picture.addEventListener("error", () => label.classList.add("blind"));
  get("thumbs").append(label);
  return label;
}
