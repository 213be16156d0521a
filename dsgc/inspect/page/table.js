// A table that sorts by its columns and chooses rows.

const UNITS = {
  "": 1, "%": 1, x: 1, "×": 1, B: 1,
  ns: 1e-9, us: 1e-6, "µs": 1e-6, "μs": 1e-6, ms: 1e-3, s: 1, min: 60, h: 3600,
  k: 1e3, K: 1e3, M: 1e6, G: 1e9, T: 1e12, Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30, Ti: 2 ** 40,
  kB: 1e3, KB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12,
  KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40,
};
const NUMBER = /^([-+−]?\d[\d,\u202f\u00a0_]*\.?\d*(?:e[-+]?\d+)?)\s*(\D*)$/i;
const collator = new Intl.Collator("en", { numeric: true });

function isBlank(text) {
  return ["", "-", "–", "—", "n/a"].includes(text.trim());
}

// The number that a cell holds, its unit counted in; NaN if it holds something else.
function numberIn(text) {
  const found = NUMBER.exec(text.trim());
  if (!found || !(found[2].trim() in UNITS)) return NaN;
  const digits = found[1].replace("−", "-").replace(/[,\u202f\u00a0_]/g, "");
  return Number(digits) * UNITS[found[2].trim()];
}

class SortTable {
  // `rows` are {key, cells: [text], className}; `pick` gets the key of a row that was chosen.
  constructor(caption, columns, rows, pick) {
    this.rows = rows;
    this.pick = pick;
    this.sorted = { column: -1, down: false };
    this.numeric = columns.map((_, i) => {
      const filled = rows.map((row) => row.cells[i]).filter((text) => !isBlank(text));
      return filled.length > 0 && filled.every((text) => !Number.isNaN(numberIn(text)));
    });
    this.heads = columns.map((column, i) =>
      el("th", { scope: "col", "aria-sort": "none", class: this.numeric[i] ? "number" : "" },
        el("button", { type: "button", class: "sort", click: () => this.sort(i) }, column)));
    this.body = el("tbody", {
      click: (event) => this.clicked(event), keydown: (event) => this.key(event),
    });
    this.element = el("table", {},
      el("caption", { class: "unseen" }, caption),
      el("thead", {}, el("tr", {}, ...this.heads)), this.body);
    this.lines = new Map(rows.map((row) => [row.key, this.line(row)]));
    this.fill(rows);
    this.setTabStop(this.body.rows[0]);
  }

  line(row) {
    const [first, ...others] = row.cells;
    const line = el("tr", { class: row.className },
      el("th", { scope: "row" },
        el("button", { type: "button", class: "link", tabindex: -1 }, first)),
      ...others.map((text, i) => el("td", {
        class: this.numeric[i + 1] ? "number" : text.length > 48 ? "long" : undefined,
      }, text)));
    line.key = row.key;
    return line;
  }

  fill(rows) {
    this.body.replaceChildren(...rows.map((row) => this.lines.get(row.key)));
  }

  // Upwards, downwards, and back to the order in which the rows came.
  sort(column) {
    const { column: old, down } = this.sorted;
    this.sorted = column !== old ? { column, down: false }
      : down ? { column: -1, down: false } : { column, down: true };
    this.heads.forEach((head, i) => {
      const by = i === this.sorted.column;
      head.setAttribute("aria-sort", !by ? "none" : this.sorted.down ? "descending" : "ascending");
    });
    if (this.sorted.column < 0) {
      this.fill(this.rows);
      announce("Original order");
      return;
    }
    const value = (row) => row.cells[column];
    const sign = this.sorted.down ? -1 : 1;
    const compare = this.numeric[column]
      ? (a, b) => numberIn(a) - numberIn(b) : (a, b) => collator.compare(a, b);
    const [blank, filled] = [[], []];
    for (const row of this.rows) (isBlank(value(row)) ? blank : filled).push(row);
    filled.sort((a, b) => sign * compare(value(a), value(b)));
    this.fill([...filled, ...blank]);
    const way = this.sorted.down ? "falling" : "rising";
    announce(`Sorted by ${this.heads[column].textContent}, ${way}`);
  }

  clicked(event) {
    const line = event.target.closest("tr");
    if (!line) return;
    this.setTabStop(line);
    this.pick(line.key);
  }

  key(event) {
    const line = event.target.closest("tr");
    const next = {
      ArrowDown: line.nextElementSibling, ArrowUp: line.previousElementSibling,
      Home: this.body.rows[0], End: this.body.rows[this.body.rows.length - 1],
    }[event.key];
    if (!next) return;
    event.preventDefault();
    this.setTabStop(next);
    next.querySelector("button").focus();
  }

  setTabStop(line) {
    if (!line) return;
    this.stop?.querySelector("button").setAttribute("tabindex", "-1");
    line.querySelector("button").setAttribute("tabindex", "0");
    this.stop = line;
  }

  choose(key, scroller) {
    const line = this.lines.get(key);
    if (this.chosen && this.chosen !== line) {
      this.chosen.classList.remove("chosen");
      this.chosen.removeAttribute("aria-current");
    }
    this.chosen = line;
    if (!line) return;
    line.classList.add("chosen");
    line.setAttribute("aria-current", "true");
    this.setTabStop(line);
    if (!scroller) return;
    const head = this.element.tHead.offsetHeight;
    const top = line.offsetTop - head;
    const bottom = line.offsetTop + line.offsetHeight - scroller.clientHeight;
    if (scroller.scrollTop > top) scroller.scrollTop = top;
    else if (scroller.scrollTop < bottom) scroller.scrollTop = bottom;
  }
}

function layerTable(store, pick) {
  const { layers } = store.data;
  const names = [...new Set(layers.flatMap((layer) => layer.row.map(([column]) => column)))];
  const rows = layers.map((layer) => {
    const row = new Map(layer.row);
    const colour = store.colours.has(layer.name) ? store.colour(layer.name) : "";
    return {
      key: layer.name,
      className: `${layer.sparse ? "sparse" : "dense"} ${colour}`,
      cells: [layer.name, layer.sparse ? "sparse" : "dense",
        ...names.map((column) => row.get(column) ?? "")],
    };
  });
  return new SortTable("Layers in the order of execution", ["Layer", "Kind", ...names], rows, pick);
}

function nodeTable(graph, pick) {
  const name = (edge) => graph.nodes[edge.node].name;
  const rows = graph.order.map((place) => {
    const node = graph.nodes[place];
    return {
      key: place,
      cells: [node.name, node.label, KINDS[node.kind], node.layer, shapeText(node),
        node.packed ? "packed" : node.shape === null ? "" : "dense", node.group,
        graph.reads[place].map(name).join(", "), graph.feeds[place].map(name).join(", ")],
    };
  });
  const columns = ["Node", "Operation", "Kind", "Layer", "Shape", "Value", "Selection of", "Reads",
    "Read by"];
  return new SortTable("Nodes from top to bottom", columns, rows, pick);
}
