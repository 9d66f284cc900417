// The page: takes photos, sends one request at a time to the backend, and shows the results for the current photo.
import { showAnswer, showLoading, showWelcome, spoken } from "./answer.js";
import * as backend from "./backend.js";
import { get } from "./dom.js";
import { showLayers, startLayers } from "./layers.js";
import { dismiss, notice } from "./notices.js";
import { fault, group, keepExplanation, photo, tooLarge } from "./photos.js";
import { startPicking } from "./pick.js";
import { offer, showStage, startStage } from "./stage.js";
import { showStrip, startStrip } from "./strip.js";

const SETTLE = 250; // milliseconds on a photo before its explanation is requested, so that browsing through many requests none
const photos = [];
let current = null;
let model = null;
let running = false;
let halted = false;
let stop = new AbortController(); // of the explanation in progress

const say = (text) => (get("live").textContent = text);
const pause = (time) => new Promise((resolve) => setTimeout(resolve, time));

function render() {
  const state = (document.body.dataset.state = current ? "photo" : "empty");
  for (const button of document.querySelectorAll(".pick button")) button.textContent = button.dataset[state];
  if (!current) return showWelcome(model);
  showStrip(photos, current);
  showStage(current, model);
  if (model) showAnswer(current, model);
  if (model && !model.views) showLayers(current);
}

function add(files) {
  dismiss("left-out");
  const wrong = [];
  const added = [];
  for (const file of files) {
    const reason = fault(file, model?.limits);
    if (reason) wrong.push(`“${file.name}” ${reason}.`);
    else added.push(photo(file));
  }
  if (wrong.length) {
    const more = wrong.length > 3 ? ` And ${wrong.length - 3} more.` : "";
    const words = `Left out: ${wrong.slice(0, 3).join(" ")}${more}`;
    notice("left-out", words, { label: "OK", act: () => dismiss("left-out") });
  }
  if (!added.length) return;
  photos.push(...added);
  window.scrollTo({ top: 0, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  select(added[0]);
}

function select(one) {
  if (one === current) return;
  current = one;
  stop.abort();
  if (one.predictions && model) say(spoken(one, model));
  render();
  work();
}

// One request at a time, so that a small server stays free for others; the current photo goes first.
async function work() {
  if (running || halted) return;
  running = true;
  for (let job = next(); job && !halted; job = next()) await job();
  running = false;
}

function next() {
  if (!model) return greet;
  if (current?.state === "waiting") return () => predict([current]);
  if (lacksPreview(current)) return () => preview(current);
  if (current?.state === "answered" && !current.explanation && !current.unexplained) return () => explain(current);
  const some = group(photos, model.limits);
  if (some.length) return () => predict(some);
  const unseen = photos.find(lacksPreview);
  return unseen ? () => preview(unseen) : null;
}

const lacksPreview = (one) => one?.blind && one.state === "answered";

async function greet() {
  try {
    model = await backend.model(showLoading);
    get("run").textContent = model.run;
    document.title = `${model.run} · AlexNet`;
    if (model.views) offer(model.views);
    dismiss("halt");
  } catch (error) {
    await halt(error);
  }
  render();
}

async function predict(some) {
  for (const one of some) {
    one.state = "sending";
    one.sent = 0;
    const reason = fault(one.file, model.limits);
    const error = reason ? `This file ${reason}.` : await tooLarge(one, model.limits);
    if (error) fail(one, error, false);
  }
  const sent = some.filter((one) => one.state === "sending");
  if (!sent.length) return render();
  const progress = (share) => {
    for (const one of sent) Object.assign(one, { sent: share, state: share < 1 ? "sending" : "thinking" });
    render();
  };
  progress(0);
  try {
    const answers = await backend.predict(sent.map((one) => one.file), progress);
    sent.forEach((one, place) => {
      const { predictions, known, error } = answers[place] ?? {};
      if (predictions?.length) Object.assign(one, { predictions, known, state: "answered" });
      else fail(one, error ?? "There is no answer for it.", !error);
    });
    dismiss("halt");
  } catch (error) {
    const refused = error.kind === "refused";
    for (const one of sent) {
      if (refused && sent.length === 1) fail(one, error.message, true);
      else Object.assign(one, { state: "waiting", alone: refused || one.alone }); // one photo may have made the whole request fail
    }
    if (!refused) await halt(error);
  }
  if (current && sent.includes(current) && (current.predictions || current.error)) say(spoken(current, model));
  render();
}

function fail(one, error, mayRetry) {
  Object.assign(one, { state: "failed", error, mayRetry });
}

// A server converts a photo that this browser cannot show.
async function preview(one) {
  try {
    one.url = await backend.preview(one.file);
    one.blind = false;
  } catch (error) {
    if (error.kind === "refused") one.blind = false; // there is an answer, without a picture
    else await halt(error);
  }
  render();
}

async function explain(one) {
  await pause(SETTLE);
  if (one !== current) return;
  stop = new AbortController();
  try {
    const found = await backend.explain(one.file, stop.signal);
    keepExplanation(one, found);
    if (one === current) say(model.views ? "The heat map is ready." : "Heat maps and layers are ready.");
  } catch (error) {
    if (error.kind === "refused") one.unexplained = error.message;
    else if (error.kind !== "stopped") await halt(error);
  }
  render();
}

// Returns the key that was typed, or null for "not now".
function askKey() {
  get("key-words").textContent = backend.hasKey() ? "The last one was not accepted. " : "Ask whoever started the server for it.";
  get("key-field").value = "";
  get("key").returnValue = "cancel";
  get("key").showModal();
  return new Promise((resolve) => {
    const done = () => resolve(get("key").returnValue === "ok" ? get("key-field").value.trim() || null : null);
    get("key").addEventListener("close", done, { once: true });
  });
}

// The backend is unreachable, busy or needs a key: requests are paused, nothing is lost, and the user can continue.
async function halt(error) {
  if (error.kind === "key") {
    const typed = await askKey();
    if (typed) return backend.useKey(typed);
  }
  halted = true;
  const label = { key: "Enter the key", busy: "Try now" }[error.kind] ?? "Try again";
  const act = () => {
    clearTimeout(timer);
    halted = false;
    dismiss("halt");
    work();
  };
  const wait = error.kind === "busy" ? error.wait * 1000 : null;
  const timer = wait && setTimeout(act, wait);
  const lost = current ? " Your photos are kept." : "";
  notice("halt", `${error.message}${lost}`, { label, act, until: wait && Date.now() + wait });
}

startStrip(
  (id) => select(photos.find((one) => one.id === id)),
  (by) => select(photos[(photos.indexOf(current) + by + photos.length) % photos.length]),
);
startStage(() => current && render());
startLayers();
startPicking(add);
get("again").addEventListener("click", () => {
  Object.assign(current, { state: "waiting", error: null });
  get("label").focus();
  render();
  work();
});
work();
