// Answers in this browser: a worker runs the network, and no photo leaves the machine.
import { Trouble } from "./trouble.js";

let labels = [];
let worker = null;
let waiting = null; // for the answer to one photo: what a promise calls, `resolve` and `reject`
let show = () => {};
const heats = new WeakMap(); // the picture of a photo's heat map, which comes with its answer

// `progress` is called with the fraction of the network that has been loaded; the description does not wait for it.
export async function model(progress) {
  show = progress;
  const described = await fetch("model.json", { cache: "no-cache" }).then((response) => response.json()).catch(() => null);
  if (!described) throw new Trouble("gone", "The page’s files cannot be loaded.");
  labels = described.labels;
  if (!worker) start();
  return described;
}

export async function predict(files, progress, top = 5) {
  progress(1);
  const answers = [];
  for (const file of files) {
    const found = await ask(file);
    if (found.heat) heats.set(file, URL.createObjectURL(found.heat));
    answers.push(answer(found, top));
  }
  return answers;
}

export async function explain(file) {
  if (!heats.has(file)) throw new Trouble("refused", "there are no heat maps here");
  return { heat: { grad_cam: heats.get(file) }, maps: {} };
}

function answer({ probabilities, known, error, gone }, top) {
  if (gone) throw new Trouble("gone", gone);
  if (error) return { error };
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, top);
  return { predictions: order.map((i) => ({ label: labels[i], probability: probabilities[i] })), known };
}

function ask(file) {
  if (!worker) start();
  return new Promise((resolve, reject) => {
    waiting = { resolve, reject };
    worker.postMessage(file);
  });
}

function start() {
  worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => {
    if (data.loaded) return loaded(data.loaded);
    if (data.gone || data.broken) stop();
    waiting.resolve(data);
  };
  worker.onerror = () => {
    stop();
    waiting?.reject(new Trouble("gone", "The network does not run in this browser."));
  };
}

// Another worker is started for the next photo.
function stop() {
  worker.terminate();
  worker = null;
  show(1);
}

function loaded(share) {
  show(share);
  if (share === 1) navigator.serviceWorker?.register("offline.js").catch(() => {}); // from then on, the page opens offline
}
