// Asks for the server's key in a dialog.

const dialog = document.querySelector("#key");
const field = document.querySelector("#key-field");
const words = document.querySelector("#key-words");

// Returns what was typed, or null for "not now".
export function askKey(refused) {
  words.textContent = refused ? "The last one was not accepted. " : "Whoever started it has the key.";
  field.value = "";
  dialog.returnValue = "cancel";
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    const done = () => resolve(dialog.returnValue === "ok" ? field.value.trim() || null : null);
    dialog.addEventListener("close", done, { once: true });
  });
}
