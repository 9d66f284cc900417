// Loads the network, decodes photos and answers, away from the page, which stays responsive.
import * as ort from "./ort.js";

const here = (name) => new URL(`../${name}`, import.meta.url);
const [NEUTRAL, ORANGE] = [[247, 247, 247], [213, 94, 0]];
const opened = open().catch((error) => ({ error }));

async function open() {
  const { files } = await (await fetch(here("model.json"), { cache: "no-cache" })).json();
  const whole = Object.values(files).reduce((sum, size) => sum + size, 0);
  let done = 0;
  const arrived = (size) => postMessage({ loaded: Math.min(0.99, (done += size) / whole) });
  const [model, wasm] = await Promise.all(["model.onnx", "static/ort.wasm"].map((name) => load(name, files[name], arrived)));
  ort.env.wasm.numThreads = 1; // more need headers that most static hosts do not send
  ort.env.wasm.wasmBinary = wasm.buffer;
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  postMessage({ loaded: 1 });
  return { session };
}

async function load(name, size, arrived) {
  const response = await fetch(here(name), { cache: "no-cache" }); // "no-cache": unchanged files are not sent again
  if (!response.ok) throw new Error(`${name}: status ${response.status}`);
  const content = new Uint8Array(size);
  let at = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    content.set(value, at);
    at += value.length;
    arrived(value.length);
  }
  if (at !== size) throw new Error(`${name} has ${at} bytes, not ${size}`);
  return content;
}

self.onmessage = async ({ data: file }) => {
  const { session, error } = await opened;
  postMessage(error ? { gone: `The network cannot be loaded: ${error.message}.` } : await answer(session, file));
};

async function answer(session, file) {
  let image;
  try {
    image = await pixels(file);
  } catch {
    return { error: "This browser cannot read it: save it as JPEG or PNG." };
  }
  try {
    const { probabilities, known, heat } = await session.run({ image });
    const picture = heat && (await painted(heat.data, heat.dims[0]));
    return { probabilities: [...probabilities.data], known: known && Boolean(known.data[0]), heat: picture };
  } catch (error) {
    return { error: `The network fails at this photo: ${error.message}.`, broken: true };
  }
}

// The picture of a heat map, which is nowhere below 0, as the server paints it: the weaker, the more transparent.
async function painted(heat, side) {
  const most = Float32Array.from(heat).sort()[Math.round(0.995 * (heat.length - 1))] || 1; // a few pixels would pale the others
  const image = new ImageData(side, side);
  heat.forEach((value, i) => {
    const share = Math.min(value / most, 1);
    const colour = ORANGE.map((end, channel) => NEUTRAL[channel] + (end - NEUTRAL[channel]) * share);
    image.data.set([...colour, 255 * 0.85 * share ** 0.7], 4 * i); // which rounds them
  });
  const canvas = new OffscreenCanvas(side, side);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas.convertToBlob();
}

// H W 3 uint8, upright, on white, in the file's own colours, as `alexnet predict` decodes.
async function pixels(file) {
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const rgb = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    rgb[to++] = data[from];
    rgb[to++] = data[from + 1];
    rgb[to++] = data[from + 2];
  }
  return new ort.Tensor("uint8", rgb, [height, width, 3]);
}
