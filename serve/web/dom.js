// Elements made in one line: a name, its properties (of HTML) or attributes (of SVG), what is inside.

export function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

export function draw(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// Calls `act(true)` when an element is pointed at, reached by keyboard or pressed, `act(false)` when it is left.
export function onPoint(element, act) {
  for (const type of ["pointerenter", "focus", "click"]) element.addEventListener(type, () => act(true));
  element.addEventListener("pointerleave", () => act(false));
}
