// The photos of this session, and checks of a file before anything is sent.
import { bytes, count } from "./words.js";

const UNREADABLE = ["image/svg+xml"]; // drawings, not photos
const UNTYPED = /\.(heic|heif|hif)$/i; // not every browser or system knows their type
const AROUND = 1024; // bytes of a request besides each photo, with a margin
const EXPLAINED = 12; // number of photos that keep their maps in memory; others are requested again

let made = 0;

// A photo's `state`: "waiting", "sending", "thinking", "answered", "failed". `blind`: the browser cannot show it (HEIC, TIFF).
// `unexplained`: why there are no heat maps, or null.
export function photo(file) {
  const source = { id: ++made, file, name: file.name || "pasted photo", url: URL.createObjectURL(file) };
  return { ...source, blind: false, state: "waiting", sent: 0, predictions: null, error: null, explanation: null, unexplained: null, alone: false };
}

// What is wrong with a file by its kind and size, or null.
export function fault(file, limits) {
  const photo = file.type.startsWith("image/") || (!file.type && UNTYPED.test(file.name));
  if (!photo || UNREADABLE.includes(file.type)) return "is not a photo (JPEG, PNG, WebP and the like)";
  if (file.size === 0) return "is empty";
  if (limits && file.size + AROUND > limits.bytes) return `has ${bytes(file.size)}; the limit is ${bytes(limits.bytes)}`;
  return null;
}

// What is wrong with its pixels, or null; also null if the browser cannot show it, as a server may still read it.
export async function tooLarge(one, limits) {
  const image = new Image();
  await new Promise((done) => {
    image.onload = image.onerror = done;
    image.src = one.url;
  });
  const { naturalWidth: width, naturalHeight: height } = image;
  one.blind = width === 0;
  if (width * height <= limits.pixels) return null;
  return `It has ${count(width)} × ${count(height)} pixels; the limit is ${count(limits.pixels)}.`;
}

// The waiting photos that fit into one request, from `first` on.
export function group(photos, limits) {
  const some = [];
  let size = 0;
  for (const one of photos) {
    if (one.state !== "waiting") continue;
    size += one.file.size + AROUND;
    if (some.length && (one.alone || size > limits.bytes || some.length >= Math.min(8, limits.files))) break;
    some.push(one);
    if (one.alone) break;
  }
  return some;
}

const kept = [];

export function keepExplanation(one, explanation) {
  one.explanation = explanation;
  kept.push(one);
  if (kept.length > EXPLAINED) kept.shift().explanation = null;
}
