// Making elements. Names and sources come from models: text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";

function setAll(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function el(tag, attributes = {}, ...children) {
  return setAll(document.createElement(tag), attributes, children);
}

function svgEl(tag, attributes = {}, ...children) {
  return setAll(document.createElementNS(SVG, tag), attributes, children);
}

function byId(id) {
  return document.getElementById(id);
}

// Says something to people who hear the page.
function announce(text) {
  const live = byId("live");
  live.textContent = live.textContent === text ? `${text}\u00a0` : text;
}

function countOf(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

function cut(text, limit) {
  const characters = Array.from(text);
  return characters.length <= limit ? text : `${characters.slice(0, limit - 1).join("")}…`;
}

function textButton(text, meaning, click) {
  return el("button", { type: "button", class: "plain", "aria-label": meaning, click }, text);
}

const lessMotion = matchMedia("(prefers-reduced-motion: reduce)");

// Tabs after the pattern of the ARIA guide: arrow keys choose, one of them is in the tab order.
function tabList(list, items, choose, chosen = 0) {
  const tabs = items.map((item, place) =>
    el("button", {
      type: "button", role: "tab", id: item.id, class: "tab", "aria-controls": item.controls,
      click: () => pick(place, false),
    }, item.label));
  function pick(place, focus) {
    tabs.forEach((tab, other) => {
      tab.setAttribute("aria-selected", String(other === place));
      tab.tabIndex = other === place ? 0 : -1;
    });
    if (focus) tabs[place].focus();
    choose(place);
  }
  list.addEventListener("keydown", (event) => {
    const place = tabs.indexOf(event.target);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (place < 0) return;
    if (step) pick((place + step + tabs.length) % tabs.length, true);
    else if (event.key === "Home") pick(0, true);
    else if (event.key === "End") pick(tabs.length - 1, true);
    else return;
    event.preventDefault();
  });
  list.replaceChildren(...tabs);
  if (tabs.length) pick(chosen, false);
  return { pick: (place) => pick(place, false) };
}
