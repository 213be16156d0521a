// The page's data: parts are unpacked when they are first needed.

const STYLES = ["dense", "packed", "selection"];
const COLOURS = 8;

class Store {
  constructor(data) {
    this.data = data;
    this.opened = new Map();
    this.layerByName = new Map(data.layers.map((layer) => [layer.name, layer]));
    this.colours = new Map(data.groups.map((group, place) => [group, place % COLOURS]));
  }

  // The class name that colours a mask group.
  colour(group) {
    return group ? `c${this.colours.get(group)}` : "";
  }

  // The value of a part; a promise, since browsers decompress in streams.
  open(part) {
    if (!this.opened.has(part)) this.opened.set(part, unpack(part));
    return this.opened.get(part);
  }

  text(number) {
    return number < 0 ? Promise.resolve("") : this.open(this.data.texts[number]);
  }

  // The graph of a stage. Stages with an equal graph get the same object.
  graph(stage) {
    const packed = this.data.graphs[this.data.stages[stage].graph];
    if (!this.opened.has(packed)) this.opened.set(packed, this.readGraph(packed));
    return this.opened.get(packed);
  }

  async readGraph(packed) {
    const [records, numbers, layout] = await Promise.all([
      this.open(this.data.nodes), this.open(packed.nodes),
      this.open(this.data.layouts[packed.layout]),
    ]);
    return new Graph(numbers, records, layout);
  }
}

async function unpack(part) {
  if ("plain" in part) return part.plain;
  if (typeof DecompressionStream !== "function") {
    throw new Error("this browser is too old for the page: it has no DecompressionStream");
  }
  const bytes = Uint8Array.from(atob(part.deflate), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

class Graph {
  constructor(numbers, records, layout) {
    this.numbers = numbers;
    this.layout = layout;
    this.nodes = numbers.map((number) => {
      const [name, label, kind, layer, packed, group, shape, dtype, where, facts] = records[number];
      return { name, label, kind, layer, packed: packed === 1, group, shape, dtype, where, facts };
    });
    this.byName = new Map(this.nodes.map((node, place) => [node.name, place]));
    this.reads = this.nodes.map(() => []);
    this.feeds = this.nodes.map(() => []);
    this.wires = layout.wires.map(([source, style, start, bends, ends]) => {
      for (let i = 0; i < ends.length; i += 2) {
        this.feeds[source].push({ node: ends[i], style: STYLES[style] });
        this.reads[ends[i]].push({ node: source, style: STYLES[style] });
      }
      return { source, style: STYLES[style], start, bends, ends };
    });
    this.rows = layout.tops.map(() => []);
    layout.row.forEach((row, place) => this.rows[row].push(place));
    for (const row of this.rows) row.sort((a, b) => layout.x[a] - layout.x[b]);
    this.order = this.rows.flat();
    // Where walking begins: an input, or else what stands first.
    this.first = this.order.find((place) => this.nodes[place].kind === "input") ?? this.order[0];
  }

  ofLayer(layer) {
    return this.order.filter((place) => this.nodes[place].layer === layer);
  }

  // What is new or changed since the graph before, by node, and how much is gone.
  changes(before) {
    const marks = new Map();
    if (before === null || before === this) return { marks, fresh: 0, changed: 0, gone: 0 };
    let fresh = 0;
    this.nodes.forEach((node, place) => {
      const old = before.byName.get(node.name);
      if (old === undefined) {
        marks.set(place, "new");
        fresh += 1;
      } else if (before.numbers[old] !== this.numbers[place]) {
        marks.set(place, "changed");
      }
    });
    const gone = before.nodes.filter((node) => !this.byName.has(node.name)).length;
    return { marks, fresh, changed: marks.size - fresh, gone };
  }
}

function shapeText(node) {
  if (node.shape === null) return "";
  return node.shape.length ? node.shape.join("×") : "scalar";
}
