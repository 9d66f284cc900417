// Keeps what is decided about each photo, and makes a CSV file of the whole dataset from it.
"use strict";
const { name, labels, columns } = JSON.parse(document.getElementById("data").textContent);
const photos = [...document.querySelectorAll(".photo")];
const choiceOf = (photo) => photo.querySelector("input:checked")?.value ?? "";
const labelOf = (photo) => Number(photo.querySelector("select").value);
const storage = `alexnet-doubts-${document.body.dataset.key}`;
const file = `${name}-corrected.csv`;
document.getElementById("command").textContent = `alexnet train ${/^[\w.-]+$/.test(file) ? file : `'${file.replaceAll("'", "'\\''")}'`}`;

function choose(photo, choice) {
  for (const input of photo.querySelectorAll("input")) input.checked = input.value === choice;
  update();
}

function update() {
  const kept = {};
  const counts = { right: 0, wrong: 0, out: 0, "": 0 };
  for (const photo of photos) {
    const choice = choiceOf(photo);
    photo.dataset.choice = choice;
    counts[choice] += 1;
    if (choice) kept[photo.dataset.row] = [choice, labelOf(photo)];
  }
  const text = `${photos.length - counts[""]} of ${photos.length} decided: ${counts.wrong} corrected, ${counts.out} left out`;
  document.getElementById("count").textContent = text;
  try {
    localStorage.setItem(storage, JSON.stringify(kept)); // so that closing the page loses nothing
  } catch {}
}

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(storage) ?? "{}");
    for (const photo of photos) {
      const [choice, label] = kept[photo.dataset.row] ?? [];
      if (choice) photo.querySelector("select").value = String(label);
      for (const input of photo.querySelectorAll("input")) input.checked = input.value === choice;
    }
  } catch {}
}

function cell(text) {
  return /[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function corrected() {
  const changed = new Map(photos.map((photo) => [Number(photo.dataset.row), photo]));
  const names = Object.keys(columns).filter((column) => columns[column] !== null);
  const lines = [names.join(",")];
  columns.image.forEach((_, row) => {
    const photo = changed.get(row);
    const choice = photo ? choiceOf(photo) : "";
    if (choice === "out") return;
    const label = choice === "wrong" ? labelOf(photo) : columns.label[row];
    lines.push(names.map((column) => cell(column === "label" ? labels[label] : columns[column][row])).join(","));
  });
  return `${lines.join("\n")}\n`;
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([corrected()], { type: "text/csv" }));
  link.download = file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function move(from, step) {
  const to = photos[Math.min(photos.length - 1, Math.max(0, photos.indexOf(from) + step))];
  to?.focus();
  to?.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("select")) {
    if (key === "escape") event.target.closest(".photo").focus();
    return;
  }
  const photo = document.activeElement.closest(".photo");
  const choice = { r: "right", w: "wrong", o: "out", u: "" }[key];
  const radio = event.target.matches("input"); // its arrow keys choose among the three
  if (key === "d") download();
  else if (key === "j" || (key === "arrowdown" && !radio)) move(photo, 1);
  else if (key === "k" || (key === "arrowup" && !radio)) move(photo, -1);
  else if (photo && key === "l") photo.querySelector("select").focus();
  else if (photo && choice !== undefined) {
    choose(photo, choice);
    if (choice) move(photo, 1);
  } else return;
  event.preventDefault();
});

for (const photo of photos) {
  photo.querySelector("select").addEventListener("change", () => choose(photo, "wrong"));
  photo.addEventListener("change", update);
  const image = photo.querySelector("img");
  const small = () => image.classList.toggle("small", image.naturalWidth < 96);
  image?.addEventListener("load", small);
  if (image?.complete) small();
}
document.getElementById("download").addEventListener("click", download);
restore();
update();
