// Messages above the photo: skipped files, and why requests are paused and how to continue.
import { get, make } from "./dom.js";

// `until`: a time in milliseconds; the seconds left are shown, but not read aloud.
export function notice(id, text, { label = null, act = null, until = null } = {}) {
  dismiss(id);
  const words = make("p", { role: "alert" });
  const box = make("div", { className: "notice" }, words);
  box.dataset.kind = id;
  get("notices").append(box);
  words.textContent = text; // set once it is in the page, so that screen readers announce it
  if (until) {
    const left = make("span", { ariaHidden: "true" });
    const tick = () => (left.textContent = ` Trying again in ${Math.max(0, Math.ceil((until - Date.now()) / 1000))} s.`);
    tick();
    box.timer = setInterval(tick, 500);
    box.append(left);
  }
  if (act) box.append(make("button", { type: "button", className: "button", textContent: label, onclick: act }));
}

export function dismiss(id) {
  const box = get("notices").querySelector(`[data-kind=${id}]`);
  if (!box) return;
  clearInterval(box.timer);
  const focused = box.contains(document.activeElement);
  box.remove();
  if (focused) get("label").focus(); // otherwise the focus would move to the top of the page
}
