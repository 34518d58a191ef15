// An X-ray with boxes over it. Boxes are in pixels of the original image; the SVG's viewBox is that image.

import { draw, make, onPoint } from "./dom.js";

function rectangle([x0, y0, x1, y1], kind, attributes = {}) {
  const size = { width: Math.max(1, x1 - x0), height: Math.max(1, y1 - y0) };
  return draw("rect", { x: x0, y: y0, ...size, class: kind, ...attributes });
}

// Closed polygons as one shape.
function shape(outline, kind) {
  const d = outline.map((ring) => `M${ring.map(([x, y]) => `${x} ${y}`).join("L")}Z`).join("");
  return draw("path", { d, "fill-rule": "evenodd", class: kind });
}

const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);

export class Viewer {
  // `onRegion(patch or null)` is called when a region is pointed at or reached by keyboard.
  constructor(stage, onRegion) {
    this.stage = stage;
    this.onRegion = onRegion;
    this.clear();
  }

  clear() {
    this.stage.replaceChildren();
  }

  show(url, { width, height }, alt) {
    this.image = make("img", { alt, onerror: ({ target }) => target.classList.add("unreadable"), src: url });
    const names = ["truth", "regions", "marks"];
    this.layers = Object.fromEntries(names.map((name) => [name, draw("g", { class: name })]));
    const label = "Regions on the X-ray; arrow keys move from region to region";
    const view = { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" };
    const svg = draw("svg", { ...view, role: "group", "aria-label": label });
    svg.append(...names.map((name) => this.layers[name]));
    const frame = make("div", { className: "frame" }, this.image, svg);
    frame.style.aspectRatio = `${width} / ${height}`;
    frame.style.setProperty("--ratio", width / height);
    this.stage.replaceChildren(frame);
  }

  setTruth(boxes) {
    this.layers?.truth.replaceChildren(...boxes.map((box) => rectangle(box, "truth")));
  }

  // regions: [{ patch, box, label }]; larger ones lie beneath, so that every one can be pointed at.
  setRegions(regions) {
    const sorted = [...regions].sort((a, b) => area(b.box) - area(a.box));
    const elements = sorted.map(({ patch, box, label }, index) => {
      const spoken = { role: "img", "aria-label": label, tabindex: index === 0 ? "0" : "-1" };
      const element = rectangle(box, "region", { ...spoken, "data-patch": patch });
      onPoint(element, (pointed) => this.onRegion(pointed ? patch : null));
      return element;
    });
    this.layers.regions.replaceChildren(...elements);
    this.layers.regions.onkeydown = (event) => move(event, elements);
  }

  // marks: [{ box or outline, kind, strength }], strength from 0 to 1; the leader line points at the first.
  mark(marks) {
    if (!this.layers) return null;
    const elements = marks.map(({ box, outline, kind, strength = 1 }) => {
      const element = outline ? shape(outline, kind) : rectangle(box, kind);
      element.style.setProperty("--strength", strength.toFixed(2));
      return element;
    });
    this.layers.marks.replaceChildren(...elements.toReversed());
    this.stage.classList.toggle("marked", marks.length > 0);
    return elements[0] ?? null;
  }
}

// Arrow keys, Home and End among elements of which one is a tab stop.
export function move(event, elements) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  const now = elements.indexOf(event.target);
  let next = event.key in steps ? now + steps[event.key] : { Home: 0, End: elements.length - 1 }[event.key];
  if (now < 0 || next === undefined) return;
  event.preventDefault();
  next = (next + elements.length) % elements.length;
  elements[now].setAttribute("tabindex", "-1");
  elements[next].setAttribute("tabindex", "0");
  elements[next].focus();
}
