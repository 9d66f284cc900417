// Which part of a photo went into the network: found by looking, so that heat can lie over the sharp photo, not over its few pixels.

const SIDE = 32; // both are compared at this size
const CLOSE = 9; // grey levels between them, on average: less is the same picture, shrunk by other means
const SHARES = [1, 0.875, 0.9, 0.886, 0.95, 0.8]; // of the inner square; 0.875 is 224 of 256, 0.886 is 227 of 256

// Returns { whole } (the photo was squeezed into a square), { share } (the inner square, and so much of it) or null: cannot tell.
export function aligned(photo, pixels) {
  const [width, height] = [photo.naturalWidth, photo.naturalHeight];
  const target = sample(pixels, 0, 0, pixels.naturalWidth, pixels.naturalHeight);
  const square = Math.min(width, height);
  const tries = SHARES.map((share) => {
    const side = square * share;
    return { share, levels: sample(photo, (width - side) / 2, (height - side) / 2, side, side) };
  });
  if (width !== height) tries.push({ whole: true, levels: sample(photo, 0, 0, width, height) });
  for (const each of tries) each.apart = apart(each.levels, target);
  const best = tries.reduce((a, b) => (b.apart < a.apart ? b : a));
  return best.apart < CLOSE ? best : null;
}

function sample(image, x, y, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(image, x, y, width, height, 0, 0, SIDE, SIDE);
  return context.getImageData(0, 0, SIDE, SIDE).data;
}

function apart(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += Math.abs(a[i] - b[i]);
  return sum / (a.length * 0.75); // one in four is opacity
}
