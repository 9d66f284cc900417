// Figures and findings in words. Nothing here touches the page.

export const count = (number) => number.toLocaleString("en-US");

// Never "100%" or "0%": the probability is only rounded to that.
export function percent(share) {
  if (share > 0.999) return ">99.9%";
  if (share < 0.001) return "<0.1%";
  return `${(100 * share).toFixed(1)}%`;
}

// For counted values, which may be 100%.
const measured = (share) => `${(100 * share).toFixed(1)}%`;

export function bytes(number) {
  return number < 1e6 ? `${Math.max(1, Math.round(number / 1e3))} kB` : `${(number / 1e6).toFixed(1).replace(/\.0$/, "")} MB`;
}

// How confident the network is, in words.
export function sureness({ predictions, known }, labels) {
  const [first, second] = predictions;
  if (known === false) return "Perhaps none of these: it is unlike the photos that it was trained on.";
  if (first.probability >= 0.9) return "Sure.";
  if (first.probability >= 0.7) return "Fairly sure.";
  if (first.probability < Math.min(0.5, 2 / labels)) return "A guess: no label stands out.";
  if (second && first.probability - second.probability < 0.15) return `Undecided: it could also be ${quoted(second.label)}.`;
  return first.probability >= 0.5 ? "More likely than not." : "Not sure.";
}

// What a calibrated probability means.
export function gloss(share) {
  const right = share > 0.995 ? "more than 99" : `about ${Math.max(1, Math.round(100 * share))}`;
  return `Of 100 answers given with this probability, ${right} are right, if the photos are like those it was trained on.`;
}

export function accuracy(model) {
  const found = model.accuracy;
  if (!found) return "Its accuracy was not measured.";
  const interval = found.top1_interval ? ` (95% interval: ${found.top1_interval.map(measured).join(" to ")})` : "";
  const images = `${count(found.images)} ${found.split} ${found.images === 1 ? "image" : "images"}`;
  return `Accuracy: ${measured(found.top1)} of ${images}${interval}.`;
}

export function kinds(labels) {
  const shown = labels.slice(0, labels.length > 14 ? 10 : 14);
  const rest = labels.length - shown.length;
  return rest ? `${shown.join(", ")} and ${count(rest)} more` : shown.join(", ").replace(/, ([^,]*)$/, " or $1");
}

export const closed = (labels) =>
  `It knows ${count(labels)} ${labels === 1 ? "label" : "labels"} and always picks among them, even if the photo shows something else.`;

export const quoted = (label) => `“${label}”`;

export function meaning(view, label, pixels) {
  const name = quoted(label);
  return {
    photo: "Your photo, as it is.",
    pixels: `What the network sees: ${pixels} × ${pixels} pixels.`,
    grad_cam: `Where the last feature maps support ${name}. This is coarse: those maps are small, and each position in them sees most of the photo. Hiding regions is more reliable.`,
    occlusion: `What it needs to see: a grey patch is moved over the photo. Orange where hiding a region makes ${name} less likely, blue where it makes it more likely.`,
    integrated_gradients: `Integrated gradients: what each pixel adds to ${name} as the photo fades in from grey: orange for it, blue against it. Detailed, but noisy.`,
  }[view];
}

// A layer in plain words, by its position among `layers`.
export function layer(place, layers) {
  if (place === 0) return "It sees the photo itself, a few pixels at a time, and finds edges and spots of colour.";
  if (place === layers - 1) return "The last convolution finds parts of objects, anywhere in the photo. The answer is computed from these maps.";
  if (place === 1) return "It combines the first layer’s edges into corners, curves and textures.";
  return "It sees larger regions of the photo and combines textures into patterns, and patterns into parts.";
}
