// The photos of this visit, and what is wrong with a file before anything is sent.
import { bytes, count } from "./words.js";

const UNREADABLE = ["image/svg+xml"]; // drawings, not photos
const AROUND = 1024; // bytes that a request has beside each photo, with room to spare
const EXPLAINED = 12; // photos whose maps stay in memory; those of others are asked for again

let made = 0;

// A photo's `state`: "waiting", "sending", "thinking", "answered", "failed".
export function photo(file) {
  const made_ = { id: ++made, file, name: file.name || "pasted photo", url: URL.createObjectURL(file), state: "waiting", sent: 0 };
  return Object.assign(made_, { predictions: null, error: null, explanation: null, unexplained: null, alone: false, shows: true });
}

// What is wrong with a file by its kind and size, or null.
export function fault(file, limits) {
  if (!file.type.startsWith("image/") || UNREADABLE.includes(file.type)) return "is not a photo (JPEG, PNG, WebP and the like)";
  if (file.size === 0) return "is empty";
  if (limits && file.size + AROUND > limits.bytes) return `has ${bytes(file.size)}; this server takes up to ${bytes(limits.bytes)}`;
  return null;
}

// Width and height of a photo, or null where this browser cannot show it; the server may still read it.
export async function measured(one) {
  if (one.size === undefined) {
    one.size = await new Promise((resolve) => {
      const image = new Image();
      image.onload = () => resolve([image.naturalWidth, image.naturalHeight]);
      image.onerror = () => resolve(null);
      image.src = one.url;
    });
    one.shows = one.size !== null;
  }
  return one.size;
}

export async function tooLarge(one, limits) {
  const size = await measured(one);
  if (!size || !limits.pixels || size[0] * size[1] <= limits.pixels) return null;
  return `It has ${count(size[0])} × ${count(size[1])} pixels; this server takes up to ${count(limits.pixels)} pixels.`;
}

// The waiting photos that may go together in one request, from `first` on.
export function group(photos, limits) {
  const some = [];
  let size = 0;
  for (const one of photos) {
    if (one.state !== "waiting") continue;
    size += one.file.size + AROUND;
    if (some.length && (one.alone || size > limits.bytes || some.length >= Math.min(8, limits.files ?? 1))) break;
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
