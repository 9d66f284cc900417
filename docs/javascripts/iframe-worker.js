// Search runs in a worker, which browsers refuse to pages that were opened from the disk. There, a hidden frame takes its
// place; over HTTP nothing changes.
"use strict";

if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<!doctype html><title>search</title>";
      frame.addEventListener("load", () => {
        const inside = frame.contentWindow;
        inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        const script = inside.document.createElement("script");
        script.src = new URL(address, document.baseURI).href;
        script.addEventListener("load", () => {
          this.inside = inside;
          for (const data of this.waiting.splice(0)) this.postMessage(data);
        });
        inside.document.head.append(script);
      }, { once: true });
      document.body.append(frame);
    }

    postMessage(data) {
      if (this.inside) this.inside.dispatchEvent(new MessageEvent("message", { data }));
      else this.waiting.push(data);
    }

    terminate() {}
  };
}
