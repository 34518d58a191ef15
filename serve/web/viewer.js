// An X-ray with boxes over it. Boxes are in pixels of the original image; the SVG's viewBox is that image.

const SVG = "http://www.w3.org/2000/svg";

function rectangle(box, kind) {
  const [x0, y0, x1, y1] = box;
  const element = document.createElementNS(SVG, "rect");
  element.setAttribute("x", x0);
  element.setAttribute("y", y0);
  element.setAttribute("width", Math.max(1, x1 - x0));
  element.setAttribute("height", Math.max(1, y1 - y0));
  element.setAttribute("class", kind);
  return element;
}

// Closed polygons as one shape.
function shape(outline, kind) {
  const element = document.createElementNS(SVG, "path");
  element.setAttribute("d", outline.map((ring) => `M${ring.map(([x, y]) => `${x} ${y}`).join("L")}Z`).join(""));
  element.setAttribute("fill-rule", "evenodd");
  element.setAttribute("class", kind);
  return element;
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
    this.svg = null;
    this.regions = new Map();
  }

  // Shows an image; `fallback` is shown where the browser cannot read the first (a DICOM).
  show(url, { width, height }, alt, fallback = "") {
    this.clear();
    const image = new Image();
    image.alt = alt;
    image.addEventListener("error", () => {
      if (fallback && image.src !== fallback) image.src = fallback;
      else image.classList.add("unreadable");
    });
    image.src = url;
    this.image = image;
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "group");
    this.svg.setAttribute("aria-label", "Regions on the X-ray; arrow keys move from region to region");
    this.layers = Object.fromEntries(
      ["truth", "regions", "marks"].map((name) => {
        const layer = document.createElementNS(SVG, "g");
        layer.setAttribute("class", name);
        this.svg.append(layer);
        return [name, layer];
      }),
    );
    const frame = document.createElement("div");
    frame.className = "frame";
    frame.style.aspectRatio = `${width} / ${height}`;
    frame.style.setProperty("--ratio", width / height);
    frame.append(image, this.svg);
    this.stage.replaceChildren(frame);
  }

  useFallback(url) {
    if (this.image?.classList.contains("unreadable") || !this.image?.complete) {
      this.image.classList.remove("unreadable");
      this.image.src = url;
    }
  }

  setTruth(boxes) {
    this.layers?.truth.replaceChildren(...boxes.map((box) => rectangle(box, "truth")));
  }

  // regions: [{ patch, box, label }]; larger ones lie beneath, so that every one can be pointed at.
  setRegions(regions) {
    const sorted = [...regions].sort((a, b) => area(b.box) - area(a.box));
    this.regions = new Map();
    const elements = sorted.map(({ patch, box, label }, index) => {
      const element = rectangle(box, "region");
      element.setAttribute("role", "img");
      element.setAttribute("aria-label", label);
      element.setAttribute("tabindex", index === 0 ? "0" : "-1");
      element.dataset.patch = patch;
      element.addEventListener("pointerenter", () => this.onRegion(patch));
      element.addEventListener("pointerleave", () => this.onRegion(null));
      element.addEventListener("focus", () => this.onRegion(patch));
      element.addEventListener("click", () => this.onRegion(patch));
      this.regions.set(patch, element);
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
