// What the browser tests ask a page about itself. Each test names one of these functions.

// A colour in any notation as [red, green, blue, alpha]: what a canvas makes of it.
const known = new Map();

function rgba(text) {
  if (!known.has(text)) known.set(text, measured(text));
  return known.get(text);
}

function measured(text) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = text;
  context.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
}

function over(front, back) {
  const a = front[3];
  return [...[0, 1, 2].map((i) => front[i] * a + back[i] * (1 - a)), 1];
}

function luminance(colour) {
  const [r, g, b] = colour.slice(0, 3).map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(a, b) {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

function background(element) {
  const layers = [];
  for (let one = element; one; one = one.parentElement) {
    const box = one.classList?.contains("node") && one.querySelector(".outline");
    const colour = rgba(box ? getComputedStyle(box).fill : getComputedStyle(one).backgroundColor);
    layers.push(colour);
    if (colour[3] === 1) break;
  }
  return layers.reverse().reduce((back, front) => over(front, back), [255, 255, 255, 1]);
}

// Texts that are seen and stand out less than 4.5 to 1: [ratio, text, tag and class].
function faintTexts() {
  const faint = [];
  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(element.tagName)) continue;
    if (!element.checkVisibility({ visibilityProperty: true })) continue;
    if (element.closest(".unseen, .skips, :disabled, [aria-disabled=true]")) continue;
    const style = getComputedStyle(element);
    const isSvg = element instanceof SVGElement;
    const colour = over(rgba(isSvg ? style.fill : style.color), background(element));
    const ratio = contrast(colour, background(element));
    seen += 1;
    if (ratio < 4.5) {
      const name = `${element.tagName}.${element.getAttribute("class")}`;
      faint.push([ratio.toFixed(2), node.data.trim().slice(0, 30), name]);
    }
  }
  return { seen, faint };
}

// Lines and shapes that carry meaning and stand out less than 3 to 1 from what is behind them.
function faintShapes() {
  const canvas = rgba(getComputedStyle(document.querySelector(".views")).backgroundColor);
  const faint = [];
  let seen = 0;
  for (const shape of document.querySelectorAll("#world :is(.wire, .stripe, .head)")) {
    const style = getComputedStyle(shape);
    const colour = shape.matches(".head") ? style.fill : style.stroke;
    const behind = shape.matches(".stripe") ? background(shape.parentElement) : canvas;
    seen += 1;
    if (contrast(over(rgba(colour), behind), behind) < 3) faint.push(shape.getAttribute("class"));
  }
  return { seen, faint };
}

// What is wrong with roles and references.
function faults() {
  const found = [];
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  for (const id of ids) if (ids.filter((other) => other === id).length > 1) found.push(`twice ${id}`);
  for (const name of ["aria-labelledby", "aria-describedby", "aria-controls", "for"]) {
    for (const element of document.querySelectorAll(`[${name}]`)) {
      for (const id of element.getAttribute(name).split(/\s+/)) {
        if (!ids.includes(id)) found.push(`${name}=${id} leads nowhere`);
      }
    }
  }
  for (const element of document.querySelectorAll("[tabindex]")) {
    if (element.tabIndex > 0) found.push(`tabindex ${element.tabIndex}`);
  }
  for (const list of document.querySelectorAll("[role=tablist]")) {
    const tabs = [...list.querySelectorAll("[role=tab]")];
    if (tabs.filter((tab) => tab.getAttribute("aria-selected") === "true").length !== 1) {
      found.push("not one tab chosen");
    }
    if (tabs.filter((tab) => tab.tabIndex === 0).length !== 1) found.push("not one tab stop");
  }
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")]
    .filter((heading) => heading.checkVisibility()).map((heading) => Number(heading.tagName[1]));
  levels.forEach((level, i) => {
    if (level > (i ? levels[i - 1] : 0) + 1) found.push(`heading ${level} after ${levels[i - 1]}`);
  });
  for (const area of document.querySelectorAll("*")) {
    const style = getComputedStyle(area);
    const scrolls = /auto|scroll/.test(style.overflowY) && area.scrollHeight > area.clientHeight + 1;
    const reached = area.tabIndex >= 0 || area.querySelector("a, button, [tabindex='0'], summary");
    if (scrolls && area.checkVisibility() && !reached) found.push(`no key scrolls ${area.className}`);
  }
  if (!document.documentElement.lang) found.push("no language");
  return found;
}

// Texts of boxes that overlap each other or stick out of their box, in the graph that is shown.
function crowdedBoxes() {
  const found = [];
  for (const node of document.querySelectorAll("#world .node")) {
    const box = node.querySelector(".outline").getBoundingClientRect();
    const texts = [...node.querySelectorAll("text")].map((text) => text.getBoundingClientRect());
    texts.forEach((one, i) => {
      const out = one.left < box.left - 0.5 || one.right > box.right + 0.5;
      const hit = texts.slice(0, i).some((other) =>
        one.left < other.right && other.left < one.right && one.top + 3 < other.bottom &&
        other.top + 3 < one.bottom);
      if (out || hit) found.push(node.getAttribute("aria-label"));
    });
  }
  return found;
}
