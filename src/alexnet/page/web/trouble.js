// Why there is no answer. `kind`: "gone" (no backend), "busy", "key", "refused" (this request, for good), "stopped" (by the page).
export class Trouble extends Error {
  constructor(kind, message, wait = 0) {
    super(message);
    this.kind = kind;
    this.wait = wait; // seconds
  }
}
