// Calculator in network.md: recomputes the sizes of a network when the reader changes its input, windows, strides or paddings.
// The data in the page is the output of `alexnet model summary VARIANT --json`; without JavaScript, the page shows a table.
"use strict";

(() => {
  const container = document.getElementById("arithmetic");
  const source = document.getElementById("shapes");
  if (!container || !source) return;
  const variants = JSON.parse(source.textContent);
  const FIELDS = ["kernel", "stride", "padding"];
  let variant = variants.find((v) => v.variant === "paper");
  let input; // pixels per side
  let steps; // layers that change the size, in order

  // From the formula that the program prints: "(55 + 2*0 - 3) / 2 + 1 = 27", or "224 + 3 = 227" where zeros are added.
  function step(layer) {
    const window = layer.formula.match(/^\((\d+) \+ 2\*(\d+) - (\d+)\) \/ (\d+) \+ 1/);
    const added = layer.formula.match(/^\d+ \+ (\d+) = \d+$/);
    const base = { name: layer.name, kind: layer.kind, channels: layer.output[0] };
    if (window) return { ...base, padding: +window[2], kernel: +window[3], stride: +window[4] };
    if (added) return { ...base, added: +added[1] };
    return null;
  }

  function size(before, { kernel, stride, padding, added }) {
    if (added !== undefined) return { exact: before + added, after: before + added };
    const exact = (before + 2 * padding - kernel) / stride + 1;
    return { exact, after: Math.floor(exact) };
  }

  function make(tag, properties = {}, ...inside) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...inside);
    return element;
  }

  function number(label, value, least, change) {
    const field = make("input", { type: "number", value, min: least, max: 9999, step: 1 });
    field.setAttribute("aria-label", label);
    field.addEventListener("input", () => {
      const whole = Number(field.value);
      const good = field.value !== "" && Number.isInteger(whole) && whole >= least && whole <= 9999;
      field.setAttribute("aria-invalid", String(!good));
      if (good) change(whole);
      work();
    });
    return field;
  }

  const rows = make("tbody");
  const message = make("p", { className: "arithmetic-result" });
  message.setAttribute("aria-live", "polite");
  const top = make("div", { className: "arithmetic-top" });

  function choose(name) {
    variant = variants.find((v) => v.variant === name);
    input = variant.input[1];
    steps = variant.layers.map(step).filter(Boolean);
    draw();
  }

  function draw() {
    const names = make("select", {}, ...variants.map((v) => make("option", { value: v.variant, textContent: v.variant })));
    names.value = variant.variant;
    names.addEventListener("change", () => {
      choose(names.value);
      top.querySelector("select").focus();
    });
    const reset = make("button", { type: "button", textContent: "Reset", className: "md-button" });
    reset.addEventListener("click", () => {
      choose(variant.variant);
      top.querySelector("button").focus();
    });
    const pixels = number("input size in pixels", input, 1, (value) => { input = value; });
    top.replaceChildren(
      make("label", {}, "variant ", names),
      make("label", {}, "input W ", pixels),
      reset,
    );
    rows.replaceChildren(...steps.map((layer) => {
      const fields = layer.added !== undefined
        ? [make("td", { colSpan: 3 }, "zeros right and below ",
          number(`${layer.name}, zeros`, layer.added, 0, (value) => { layer.added = value; }))]
        : FIELDS.map((field) => {
          const cell = make("td", {}, number(`${layer.name}, ${field}`, layer[field], field === "padding" ? 0 : 1,
            (value) => { layer[field] = value; }));
          cell.dataset.label = field;
          return cell;
        });
      const head = make("th", { scope: "row" }, make("code", { textContent: layer.name }));
      return make("tr", {}, head, ...fields, make("td", { className: "worked" }), make("td", { className: "after" }));
    }));
    work();
  }

  function work() {
    let before = input;
    let failed = "";
    steps.forEach((layer, i) => {
      const [worked, after] = rows.children[i].querySelectorAll(".worked, .after");
      if (failed) {
        worked.textContent = after.textContent = "";
        return;
      }
      const found = size(before, layer);
      const exact = Number.isInteger(found.exact) ? `${found.exact}` : `${found.exact.toFixed(2)} → ${found.after}`;
      worked.textContent = layer.added !== undefined
        ? `${before} + ${layer.added} = ${found.after}`
        : `(${before} + 2×${layer.padding} − ${layer.kernel}) / ${layer.stride} + 1 = ${exact}`;
      if (layer.kernel > before + 2 * layer.padding) {
        failed = `${layer.name} does not fit: its window of ${layer.kernel} is larger than the padded input of ${before + 2 * layer.padding} pixels.`;
        after.textContent = "–";
        return;
      }
      after.textContent = `${found.after} × ${found.after} × ${layer.channels}`;
      before = found.after;
    });
    rows.parentElement?.classList.toggle("failed", Boolean(failed));
    const wrong = container.querySelector("[aria-invalid=true]");
    message.textContent = wrong
      ? `${wrong.getAttribute("aria-label")} must be a whole number of at least ${wrong.min}; the previous value is still used.`
      : failed || summary(before);
  }

  function summary(side) {
    const channels = steps.at(-1).channels;
    const length = side * side * channels;
    const dense = variant.layers.find((layer) => layer.kind === "dense");
    const weights = length * dense.output[0] + dense.output[0];
    const say = (n) => n.toLocaleString("en");
    return `Flattened: ${side} × ${side} × ${channels} = ${say(length)}. The first dense layer, ${dense.name}, has `
      + `${say(length)} × ${say(dense.output[0])} + ${say(dense.output[0])} = ${say(weights)} parameters.`;
  }

  const head = make("tr", {}, ...["layer", "kernel K", "stride S", "padding P", "calculation", "output"]
    .map((title) => make("th", { scope: "col", textContent: title })));
  container.append(top, make("div", { className: "arithmetic-scroll" },
    make("table", { className: "arithmetic" }, make("thead", {}, head), rows)), message);
  container.hidden = false;
  choose("paper");
})();
