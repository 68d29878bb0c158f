// Elements of SVG.

const NAMESPACE = "http://www.w3.org/2000/svg";

/** An element with attributes; `title` is what a pointer or a reader is told of it. */
export function drawn(name, attributes = {}, title = "") {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (title) {
    const told = document.createElementNS(NAMESPACE, "title");
    told.textContent = title;
    element.append(told);
  }
  return element;
}

/** A text at a place. */
export function lettered(text, x, y, attributes = {}) {
  const element = drawn("text", { x, y, ...attributes });
  element.textContent = text;
  return element;
}
