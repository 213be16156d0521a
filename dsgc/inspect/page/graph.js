// Draws the graph of one stage.

const KINDS = {
  input: "input or output", output: "input or output", dense: "dense layer", sparse: "sparse layer",
  selection: "selection", norm: "normalisation", parameter: "parameter", other: "other operation",
};

// The outline of a box of a kind, from (0, 0) to (w, h): kinds differ by shape, not colour alone.
function outline(kind, w, h) {
  const rounded = (r) =>
    `M${r} 0H${w - r}A${r} ${r} 0 0 1 ${w} ${r}V${h - r}A${r} ${r} 0 0 1 ${w - r} ${h}` +
    `H${r}A${r} ${r} 0 0 1 0 ${h - r}V${r}A${r} ${r} 0 0 1 ${r} 0Z`;
  if (kind === "input" || kind === "output") return rounded(h / 2);
  if (kind === "norm") return rounded(Math.min(12, h * 0.4));
  if (kind === "selection") {
    const c = 11;
    return `M${c} 0H${w - c}L${w} ${h / 2}L${w - c} ${h}H${c}L0 ${h / 2}Z`;
  }
  if (kind === "parameter") return `M0 0H${w - 12}L${w} 12V${h}H0Z`;
  return rounded(4);
}

function curve(x, y, toX, toY) {
  if (x === toX) return `M${x} ${y}V${toY}`;
  const middle = (y + toY) / 2;
  return `M${x} ${y}C${x} ${middle} ${toX} ${middle} ${toX} ${toY}`;
}

class GraphView {
  constructor(store, svg, world) {
    this.store = store;
    this.svg = svg;
    this.world = world;
    this.boxes = [];
    this.graph = null;
    this.focused = -1;
  }

  draw(graph, marks) {
    const { layout } = graph;
    this.graph = graph;
    this.height = this.store.data.boxHeight;
    this.wires = svgEl("g", { class: "wires", role: "none" });
    this.trace = svgEl("path", { class: "trace" });
    const heads = new Map();
    for (const wire of graph.wires) {
      const { style } = wire;
      const group = style === "packed" ? this.store.colour(graph.nodes[wire.source].group) : "";
      const look = `${style} ${group}`;
      this.wires.append(svgEl("path", { class: `wire ${look}`, d: this.wirePath(wire) }));
      for (let i = 0; i < wire.ends.length; i += 2) {
        const head = this.head(wire.ends[i], wire.ends[i + 1], style);
        heads.set(look, (heads.get(look) ?? "") + head);
      }
    }
    for (const [look, d] of heads) this.wires.append(svgEl("path", { class: `head ${look}`, d }));
    const nodes = svgEl("g", { class: "nodes", role: "none" });
    this.boxes = new Array(graph.nodes.length);
    // In reading order, which is also the order in which a screen reader meets them.
    for (const place of graph.order) {
      this.boxes[place] = this.box(place, graph.nodes[place], layout, marks.get(place));
      nodes.append(this.boxes[place]);
    }
    this.world.replaceChildren(this.trace, this.wires, nodes);
    this.focused = -1;
    this.setTabStop(graph.first ?? -1);
  }

  box(place, node, layout, mark) {
    const { label, name, shape } = this.store.data.limits;
    const width = layout.widths[place];
    const x = layout.x[place] - width / 2;
    const y = layout.tops[layout.row[place]];
    const group = svgEl("g", {
      class: `node ${node.kind} ${node.packed ? "packed" : ""} ${this.store.colour(node.group)}`,
      transform: `translate(${x} ${y})`, "data-place": place, role: "button", tabindex: -1,
      "aria-roledescription": "node", "aria-label": this.spoken(node, mark),
    });
    group.append(svgEl("path", { class: "outline", d: outline(node.kind, width, this.height) }));
    if (node.group) {
      const inset = node.kind === "selection" ? 14 : node.kind === "norm" ? 8 : 6;
      group.append(svgEl("path", { class: "stripe", d: `M${inset} 7V${this.height - 7}` }));
    }
    const left = node.kind === "selection" ? 20 : 14;
    group.append(
      svgEl("text", { class: "label", x: left, y: 17 }, cut(node.label, label)),
      svgEl("text", { class: "name", x: left, y: 32 }, cut(node.name, name)),
    );
    if (node.shape !== null) {
      const end = width - (node.kind === "parameter" || node.kind === "selection" ? 16 : 10);
      group.append(
        svgEl("text", { class: "shape", x: end, y: 17 }, cut(shapeText(node), shape)));
    }
    if (mark) {
      group.append(svgEl("path", {
        class: `mark ${mark}`, transform: `translate(${width - 3} ${3})`,
        d: MARKS[mark],
      }));
    }
    return group;
  }

  spoken(node, mark) {
    return [
      `${node.label} ${node.name}`, KINDS[node.kind], node.layer ? `layer ${node.layer}` : "",
      node.packed ? "packed" : "", node.group ? `selection of ${node.group}` : "",
      shapeText(node), mark ? `${mark} in this stage` : "",
    ].filter(Boolean).join(", ");
  }

  wirePath(wire) {
    const { tops, row } = this.graph.layout;
    const first = row[wire.source];
    const h = this.height;
    const parts = [];
    const stops = [];
    let [x, below] = [wire.start, first];
    for (let i = 0; i < wire.bends.length; i += 2) {
      const toX = wire.bends[i];
      parts.push(curve(x, tops[below] + h, toX, tops[below + 1]));
      below += wire.bends[i + 1];
      parts.push(`V${tops[below] + h}`);
      stops.push([toX, below]);
      x = toX;
    }
    for (let i = 0, stop = -1; i < wire.ends.length; i += 2) {
      const above = row[wire.ends[i]] - 1;
      while (stop < stops.length - 1 && (stop < 0 ? first : stops[stop][1]) < above) stop += 1;
      const from = stop < 0 ? wire.start : stops[stop][0];
      parts.push(curve(from, tops[above] + h, wire.ends[i + 1], tops[above + 1] - 3));
    }
    return parts.join("");
  }

  head(target, x, style) {
    const y = this.graph.layout.tops[this.graph.layout.row[target]];
    const w = style === "packed" ? 5 : style === "dense" ? 4 : 3;
    return `M${x - w} ${y - 2 * w}H${x + w}L${x} ${y - 0.5}Z`;
  }

  rectangle(place) {
    const { layout } = this.graph;
    const width = layout.widths[place];
    return {
      x: layout.x[place] - width / 2, y: layout.tops[layout.row[place]],
      width, height: this.height,
    };
  }

  // Marks the chosen node, the nodes of its layer, and what goes in and out of it.
  choose(place, layer) {
    this.boxes.forEach((box, other) => {
      const chosen = other === place;
      const near = layer !== "" && this.graph.nodes[other].layer === layer;
      if (box.classList.contains("chosen") !== chosen) box.classList.toggle("chosen", chosen);
      if (box.classList.contains("near") !== near) box.classList.toggle("near", near);
      if (chosen) box.setAttribute("aria-current", "true");
      else if (box.hasAttribute("aria-current")) box.removeAttribute("aria-current");
    });
    this.trace.setAttribute("d", place < 0 ? "" : this.tracePath(place));
  }

  // The wires into and out of a node; of a wire that has other readers, only the way to this one.
  tracePath(place) {
    const parts = [];
    for (const wire of this.graph.wires) {
      if (wire.source === place) parts.push(this.wirePath(wire));
      const at = wire.ends.findIndex((end, i) => i % 2 === 0 && end === place);
      if (at >= 0) parts.push(this.wirePath(this.only(wire, at)));
    }
    return parts.join("");
  }

  only(wire, at) {
    const { row } = this.graph.layout;
    let left = row[wire.ends[at]] - row[wire.source] - 1;
    const bends = [];
    for (let i = 0; i < wire.bends.length && left > 0; i += 2) {
      const rows = Math.min(left, wire.bends[i + 1]);
      bends.push(wire.bends[i], rows);
      left -= rows;
    }
    return { ...wire, bends, ends: wire.ends.slice(at, at + 2) };
  }

  hits(places, now) {
    for (const box of this.world.querySelectorAll(".hit")) box.classList.remove("hit", "hit-now");
    for (const place of places) this.boxes[place].classList.add("hit");
    if (now >= 0) this.boxes[now].classList.add("hit-now");
  }

  setTabStop(place) {
    if (this.focused >= 0) this.boxes[this.focused].setAttribute("tabindex", "-1");
    if (place >= 0) this.boxes[place].setAttribute("tabindex", "0");
    this.focused = place;
  }
}
