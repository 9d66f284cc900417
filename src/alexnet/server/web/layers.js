// From layer to layer: a chain of them as tabs, drawn to scale, and the maps of the one that is open.
import { count, layer, percent } from "./words.js";

const get = (id) => document.querySelector(`#${id}`);

let shown = null; // the explanation on the page
let open = null; // name of the layer, kept from photo to photo
let chosen = 0; // place of the map, kept too

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
  get("maps").addEventListener("change", (event) => large(Number(event.target.value)));
}

export function showLayers(one) {
  const found = one?.explanation ?? null;
  get("layers").hidden = !one || one.state === "failed" || Boolean(one.unexplained);
  get("layers").classList.toggle("pending", !found);
  if (!found || found === shown) return;
  shown = found;
  const names = Object.keys(found.maps);
  if (!names.includes(open)) open = names[0];
  get("chain-input").src = get("under").src = found.pixels;
  get("chain-answer").textContent = one.predictions[0].label;
  get("chain-share").textContent = percent(one.predictions[0].probability);
  get("tabs").replaceChildren(...names.map((name) => tab(name, found.maps[name])));
  get("panel").hidden = names.length === 0;
  const input = get("chain-input");
  const scale = () => {
    get("chain-size").textContent = `${input.naturalWidth} × ${input.naturalHeight}`;
    input.classList.toggle("tiny", input.naturalWidth < 100);
    for (const each of get("tabs").children) side(each, found.maps[each.dataset.layer].shape[1], input.naturalWidth);
    if (open) show(open);
  };
  input.decode().then(scale, scale); // the sizes are known when it has been read
}

// Sides grow with the root of a layer's pixels in a row: to scale, 13 beside 227 could not be seen.
function side(each, pixels, input) {
  each.style.setProperty("--share", Math.sqrt(pixels / Math.max(input, pixels, 1)));
}

function tab(name, { shape, pictures }) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", id: `tab-${name}` });
  button.dataset.layer = name;
  button.setAttribute("role", "tab");
  button.setAttribute("aria-controls", "panel");
  const face = document.createElement("span");
  const picture = document.createElement("img");
  const size = document.createElement("small");
  const words = document.createElement("span");
  face.className = "face stack";
  Object.assign(picture, { src: pictures[0], alt: "" });
  face.append(picture);
  words.textContent = name;
  size.textContent = `${count(shape[0])} × ${shape[1]}²`;
  if (shape[1] !== shape[2]) size.textContent = `${count(shape[0])} × ${shape[1]} × ${shape[2]}`;
  button.append(face, words, " ", size);
  return button;
}

function show(name) {
  open = name;
  const names = Object.keys(shown.maps);
  const { shape, pictures } = shown.maps[name];
  for (const each of get("tabs").children) {
    each.setAttribute("aria-selected", each.dataset.layer === name);
    each.tabIndex = each.dataset.layer === name ? 0 : -1;
  }
  get("panel").setAttribute("aria-labelledby", `tab-${name}`);
  const [channels, height, width] = shape;
  const across = get("chain-input").naturalWidth;
  const one = Math.round(across / width);
  get("layer-title").textContent = `${name}: ${count(channels)} maps of ${height} × ${width}`;
  const stands = one > 1 ? ` One pixel of a map stands for about ${one} × ${one} of the ${across} × ${across} that went in.` : "";
  get("layer-words").textContent = layer(names.indexOf(name), names.length) + stands;
  const all = pictures.length === channels;
  get("maps-legend").textContent = all ? `All ${count(channels)} maps` : `The ${pictures.length} strongest of its ${count(channels)} maps`;
  get("maps").replaceChildren(...pictures.map((picture, place) => choice(picture, place)));
  large(Math.min(chosen, pictures.length - 1), false);
}

function choice(source, place) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  const picture = document.createElement("img");
  Object.assign(input, { type: "radio", name: "map", value: place });
  Object.assign(picture, { src: source, alt: `Map ${place + 1}` });
  label.append(input, picture);
  return label;
}

function large(place, remember = true) {
  if (remember) chosen = place;
  const { pictures } = shown.maps[open];
  const input = get("maps").querySelectorAll("input")[place];
  if (input) input.checked = true;
  get("map").src = pictures[place];
  get("map-caption").textContent = `${open}, map ${place + 1}`;
}
