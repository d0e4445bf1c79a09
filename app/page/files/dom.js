// Elements from data. Text always becomes text nodes, so nothing that a model or a server wrote is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element: h("td", {class: "number", onclick: f}, "text", child). False, null and undefined children are left out. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** The head of a table; the last column holds the buttons. */
export function headRow(labels) {
  const heads = labels.map((label, index) => h("th", { scope: "col", class: index === labels.length - 1 ? "buttons" : null }, label));
  return h("thead", {}, h("tr", {}, heads));
}

/**
 * Show one element per item, in order, and touch only those whose item has changed: focus, selection and open details
 * of the others stay. A button that had the focus in a replaced element hands it to its successor (same data-action).
 */
export function keep(parent, items, keyOf, render) {
  const present = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let before = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    const state = JSON.stringify(item);
    let child = present.get(key);
    present.delete(key);
    if (!child || child.shown !== state) {
      const fresh = render(item);
      fresh.dataset.key = key;
      fresh.shown = state;
      if (child) {
        if (before === child) before = fresh;
        replace(child, fresh);
      }
      child = fresh;
    }
    if (child === before) before = before.nextElementSibling;
    else parent.insertBefore(child, before);
  }
  for (const gone of present.values()) gone.remove();
}

function replace(old, fresh) {
  const action = old.contains(document.activeElement) && document.activeElement.dataset.action;
  old.replaceWith(fresh);
  if (action) fresh.querySelector(`[data-action="${action}"]`)?.focus();
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== false && child !== null && child !== undefined));
  return element;
}
