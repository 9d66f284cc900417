// Messages above the photo: what was left out, what stands still and how it goes on.

const place = document.querySelector("#notices");
const shown = new Map();

// `until`: a time in milliseconds; the seconds left are shown, not spoken.
export function notice(id, text, { label = null, act = null, until = null } = {}) {
  dismiss(id);
  const box = document.createElement("div");
  box.className = "notice";
  box.dataset.kind = id;
  const words = document.createElement("p");
  words.setAttribute("role", "alert");
  place.append(box);
  box.append(words);
  words.textContent = text; // after it is in the page, so that it is spoken
  let timer = null;
  if (until) {
    const left = document.createElement("span");
    left.setAttribute("aria-hidden", "true");
    const tick = () => (left.textContent = ` Trying again in ${Math.max(0, Math.ceil((until - Date.now()) / 1000))} s.`);
    tick();
    timer = setInterval(tick, 500);
    words.after(left);
  }
  if (act) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "button";
    button.textContent = label;
    button.addEventListener("click", act);
    box.append(button);
  }
  shown.set(id, { box, timer });
}

export function dismiss(id) {
  const old = shown.get(id);
  if (!old) return;
  clearInterval(old.timer);
  const focused = old.box.contains(document.activeElement);
  old.box.remove();
  shown.delete(id);
  if (focused) document.querySelector("#label").focus(); // not lost at the top of the page
}
