// The photo, what of it goes into the network, and the heat maps over it.
import { aligned } from "./align.js";
import { meaning, percent } from "./words.js";

const get = (id) => document.querySelector(`#${id}`);
const frame = get("frame");
const views = [...document.querySelectorAll("input[name=view]")];
const TINY = 100; // pixels of a side: below, a picture's pixels are drawn as squares

let drawn = null; // the photo that is shown

export function startStage() {
  const mix = () => {
    frame.style.setProperty("--heat", get("strength").value / 100);
    get("strength").setAttribute("aria-valuetext", `${get("strength").value}%`);
  };
  get("strength").addEventListener("input", mix);
  for (const view of views) view.addEventListener("change", () => drawn && showStage(drawn));
  get("pixels").addEventListener("load", () => frame.classList.toggle("tiny", get("pixels").naturalWidth < TINY));
  get("photo").addEventListener("load", () => get("photo").classList.toggle("tiny", get("photo").naturalWidth < TINY));
  get("photo").addEventListener("error", () => get("photo").src && (get("photo").hidden = true)); // HEIC, TIFF: not every browser shows them
  mix();
}

export function showStage(one) {
  const view = views.find((each) => each.checked).value;
  const found = one.explanation;
  if (drawn !== one) {
    get("photo").src = one.url;
    get("photo").hidden = false;
    drawn = one;
  }
  put(get("pixels"), found?.pixels);
  if (found && one.lies === undefined) lay(one);
  frame.classList.toggle("sharp", Boolean(one.lies));
  frame.classList.toggle("squeezed", Boolean(one.lies?.whole));
  frame.style.setProperty("--zoom", 1 / (one.lies?.share ?? 1));
  put(get("heat"), found?.heat[view]);
  const there = found && (view === "photo" || view === "pixels" || found.heat[view]) ? view : "photo";
  frame.dataset.view = there;
  frame.classList.toggle("whole", view === "photo");
  frame.classList.toggle("thinking", one.state === "thinking" || (one.state === "answered" && !found && !one.unexplained));
  get("strength").disabled = view === "photo" || view === "pixels";
  get("stage").dataset.state = one.state;
  const label = one.predictions?.[0].label;
  frame.setAttribute("role", "img");
  frame.setAttribute("aria-label", { photo: one.name, pixels: `${one.name}, as it goes in` }[there] ?? `${one.name} under a heat map`);
  get("meaning").textContent = words(one, view, label);
  doing(one);
}

// Finds how the photo lies under its heat map, once.
async function lay(one) {
  one.lies = null;
  try {
    await Promise.all([get("photo").decode(), get("pixels").decode()]);
    if (drawn === one && get("pixels").naturalWidth >= TINY) one.lies = aligned(get("photo"), get("pixels"));
    if (drawn !== one) one.lies = undefined; // another one came meanwhile: to be done when this one is back
  } catch {
    return; // a photo that this browser cannot show: heat lies over the pixels
  }
  if (one.lies) showStage(one);
}

function words(one, view, label) {
  if (view === "photo") return meaning("photo", "", 0);
  if (one.unexplained) return `No explanation: ${one.unexplained}`;
  if (one.state === "failed") return "";
  if (!one.explanation) return "The heat maps and the layers come after the answer.";
  if (view !== "pixels" && !one.explanation.heat[view]) return "This server does not give this one.";
  const image = get("pixels");
  return meaning(view, label, image.naturalWidth || one.explanation.side || "…");
}

function doing(one) {
  const sending = one.state === "sending" && one.sent < 1;
  get("doing").hidden = !sending;
  if (sending) get("doing").textContent = `Sending ${percent(one.sent).replace(/\.\d/, "").replace("<0", "0")}`;
  frame.style.setProperty("--sent", sending ? one.sent : 0);
}

function put(image, source) {
  if (image.getAttribute("src") === (source ?? null)) return;
  if (source) image.src = source;
  else image.removeAttribute("src");
  image.hidden = !source;
}
