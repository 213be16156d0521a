// What shapes, lines and marks mean, as lists.

const MARKS = { new: "M-4 0H4M0 -4V4", changed: "M-4 1Q-2 -3 0 0T4 -1" };

function swatch(...shapes) {
  const size = { width: 40, height: 20, viewBox: "0 0 40 20" };
  return svgEl("svg", { ...size, "aria-hidden": "true" }, ...shapes);
}

function kindSwatch(kind) {
  const group = kind === "sparse" || kind === "selection" ? "c0" : "";
  return swatch(svgEl("g", { class: `node ${kind} ${group}` },
    svgEl("path", { class: "outline", d: outline(kind, 34, 18), transform: "translate(3 1)" })));
}

function wireSwatch(style) {
  const group = style === "packed" ? "c0" : "";
  return swatch(svgEl("path", { class: `wire ${style} ${group}`, d: "M2 10H38" }));
}

function markSwatch(mark) {
  return swatch(svgEl("path", {
    class: `mark ${mark}`, d: MARKS[mark], transform: "translate(20 10)",
  }));
}

function groupSwatch() {
  return swatch(...[0, 1, 2].map((place) =>
    svgEl("path", { class: `stripe c${place}`, d: `M${11 + 9 * place} 2V18` })));
}

function legend(data) {
  const kinds = ["dense", "sparse", "selection", "norm", "parameter", "other", "input"];
  const list = (...lines) =>
    el("ul", {}, ...lines.map(([picture, text]) => el("li", {}, picture, text)));
  const repeated = data.groups.length > COLOURS;
  return [
    list(...kinds.map((kind) => [kindSwatch(kind), KINDS[kind]])),
    list(
      [wireSwatch("dense"), "dense value"], [wireSwatch("packed"), "packed value"],
      [wireSwatch("selection"), "selection: mask or index"]),
    list(
      [groupSwatch(), repeated ? "mask group; colours repeat" : "mask group, by colour"],
      [markSwatch("new"), "new in this stage"], [markSwatch("changed"), "changed in this stage"]),
  ];
}
