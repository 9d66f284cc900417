// The layers: a row of tabs, drawn to scale, and the feature maps of the selected layer.
import { get, make } from "./dom.js";
import { count, layer, percent } from "./words.js";

let shown = null; // the explanation on the page
let open = null; // name of the layer, kept from photo to photo
let chosen = 0; // index of the map, kept too

export function startLayers() {
  get("tabs").addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) show(tab.dataset.layer);
  });
  get("tabs").addEventListener("keydown", (event) => {
    const names = Object.keys(shown.maps);
    const here = names.indexOf(open);
    const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: names.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(names[(to + names.length) % names.length]);
    get("tabs").querySelector("[aria-selected=true]").focus();
  });
  get("maps").addEventListener("change", (event) => {
    chosen = Number(event.target.value);
    large(chosen);
  });
}

export function showLayers(one) {
  const found = one.explanation;
  get("layers").hidden = one.state === "failed" || Boolean(one.unexplained);
  get("layers").classList.toggle("pending", !found);
  if (!found || found === shown) return;
  shown = found;
  const names = Object.keys(found.maps);
  if (!names.includes(open)) open = names[0];
  const input = get("chain-input");
  input.src = get("under").src = found.pixels;
  get("chain-answer").textContent = one.predictions[0].label;
  get("chain-share").textContent = percent(one.predictions[0].probability);
  get("tabs").replaceChildren(...names.map((name) => tab(name, found.maps[name])));
  get("panel").hidden = names.length === 0;
  const scale = () => {
    get("chain-size").textContent = `${input.naturalWidth} × ${input.naturalHeight}`;
    input.classList.toggle("tiny", input.naturalWidth < 100);
    // Sides grow with the square root of a layer's width: linearly, 13 would be invisible beside 227.
    for (const each of get("tabs").children) {
      const pixels = found.maps[each.dataset.layer].shape[1];
      each.style.setProperty("--share", Math.sqrt(pixels / Math.max(input.naturalWidth, pixels, 1)));
    }
    if (open) show(open);
  };
  input.decode().then(scale, scale); // the sizes are known once it is decoded
}

function tab(name, { shape: [channels, height, width], pictures }) {
  const face = make("span", { className: "face stack" }, make("img", { src: pictures[0], alt: "" }));
  const size = height === width ? `${height}²` : `${height} × ${width}`;
  const words = [make("span", { textContent: name }), " ", make("small", { textContent: `${count(channels)} × ${size}` })];
  const button = make("button", { type: "button", id: `tab-${name}`, role: "tab" }, face, ...words);
  button.dataset.layer = name;
  button.setAttribute("aria-controls", "panel");
  return button;
}

function show(name) {
  open = name;
  const names = Object.keys(shown.maps);
  const { shape: [channels, height, width], pictures } = shown.maps[name];
  for (const each of get("tabs").children) {
    each.ariaSelected = each.dataset.layer === name;
    each.tabIndex = each.dataset.layer === name ? 0 : -1;
  }
  get("panel").setAttribute("aria-labelledby", `tab-${name}`);
  const across = get("chain-input").naturalWidth;
  const one = Math.round(across / width);
  get("layer-title").textContent = `${name}: ${count(channels)} maps of ${height} × ${width}`;
  const stands = one > 1 ? ` One pixel of a map stands for about ${one} × ${one} of the ${across} × ${across} that went in.` : "";
  get("layer-words").textContent = layer(names.indexOf(name), names.length) + stands;
  const all = pictures.length === channels;
  get("maps-legend").textContent = all ? `All ${count(channels)} maps` : `The ${pictures.length} strongest of its ${count(channels)} maps`;
  get("maps").replaceChildren(...pictures.map(choice));
  large(Math.min(chosen, pictures.length - 1));
}

function choice(source, index) {
  const input = make("input", { type: "radio", name: "map", value: index });
  return make("label", {}, input, make("img", { src: source, alt: `Map ${index + 1}` }));
}

function large(index) {
  get("maps").querySelectorAll("input")[index].checked = true;
  get("map").src = shown.maps[open].pictures[index];
  get("map-caption").textContent = `${open}, map ${index + 1}`;
}
