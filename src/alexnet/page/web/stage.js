// The photo, the part of it that the network sees, and the heat maps over it.
import { get } from "./dom.js";
import { meaning, percent } from "./words.js";

const frame = get("frame");
const views = [...document.querySelectorAll("input[name=view]")];
const TINY = 100; // pixels of a side: below, a picture's pixels are drawn as squares

export function startStage(render) {
  const mix = () => {
    frame.style.setProperty("--heat", get("strength").value / 100);
    get("strength").setAttribute("aria-valuetext", `${get("strength").value}%`);
  };
  get("strength").addEventListener("input", mix);
  for (const view of views) view.addEventListener("change", render);
  get("pixels").addEventListener("load", () => frame.classList.toggle("tiny", get("pixels").naturalWidth < TINY));
  get("photo").addEventListener("load", () => get("photo").classList.toggle("tiny", get("photo").naturalWidth < TINY));
  get("photo").addEventListener("error", () => get("photo").src && (get("photo").hidden = true)); // until there is a preview
  mix();
}

// For a backend that has some views alone; the last of them is shown.
export function offer(names) {
  for (const view of views) view.parentElement.hidden = !names.includes(view.value);
  views.find((view) => view.value === names.at(-1)).checked = true;
  get("controls").hidden = names.length === 1;
}

export function showStage(one, model) {
  const view = views.find((each) => each.checked).value;
  const found = one.explanation;
  put(get("photo"), one.url);
  put(get("pixels"), found?.pixels);
  put(get("heat"), found?.heat[view]);
  // The photo under the heat map is as the network sees it: cropped or stretched.
  frame.classList.toggle("stretched", found !== null && model.fit === "stretch");
  frame.style.setProperty("--zoom", found ? model.zoom.join() : 1);
  const there = found ? view : "photo";
  frame.dataset.view = there;
  frame.classList.toggle("whole", view === "photo");
  frame.classList.toggle("thinking", one.state === "thinking" || (one.state === "answered" && !found && !one.unexplained));
  get("strength").disabled = view === "photo" || view === "pixels";
  get("stage").dataset.state = one.state;
  frame.role = "img";
  frame.ariaLabel = { photo: one.name, pixels: `${one.name}, as it goes in` }[there] ?? `${one.name} under a heat map`;
  get("meaning").textContent = words(one, view);
  const sending = one.state === "sending" && one.sent < 1;
  get("doing").hidden = !sending;
  get("doing").textContent = `Sending ${percent(one.sent).replace(/\.\d/, "").replace("<0", "0")}`;
  frame.style.setProperty("--sent", sending ? one.sent : 0);
}

function words(one, view) {
  if (view === "photo") return meaning("photo", "", 0);
  if (one.unexplained) return `No explanation: ${one.unexplained}`;
  if (one.state === "failed") return "";
  if (!one.explanation) return "Heat maps come after the answer.";
  return meaning(view, one.predictions[0].label, get("pixels").naturalWidth || "…");
}

function put(image, source) {
  if (image.getAttribute("src") === (source ?? null)) return;
  if (source) image.src = source;
  else image.removeAttribute("src");
  image.hidden = !source;
}
