// Adds photos: chosen files, a phone's camera, drag and drop, and paste.
import { get } from "./dom.js";
import { notice } from "./notices.js";

export function startPicking(add) {
  for (const [button, input] of [["choose", "files"], ["take", "camera"]]) {
    get(button).addEventListener("click", () => get(input).click());
    get(input).addEventListener("change", () => {
      add([...get(input).files]);
      get(input).value = ""; // the same file may be chosen again
    });
  }
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) add(files);
    else if (!event.target.closest?.("input")) notice("left-out", "What you pasted contains no image.");
  });
  let inside = 0; // dragenter and dragleave fire for every element on the way
  const over = (by) => {
    inside = Math.max(0, inside + by);
    document.body.classList.toggle("dragging", inside > 0);
  };
  document.addEventListener("dragenter", () => over(1));
  document.addEventListener("dragleave", () => over(-1));
  document.addEventListener("dragover", (event) => event.preventDefault()); // else the browser would open the file
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(-inside);
    const files = [...event.dataTransfer.files];
    if (files.length) add(files);
    else notice("left-out", "That is a link, not a file: save the picture first, or copy and paste it.");
  });
}
