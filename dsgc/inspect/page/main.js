// Puts the page together. What is shown and chosen is kept here, and only here.

class Page {
  constructor(data) {
    this.store = new Store(data);
    this.stage = -1;
    this.graph = null;
    this.selected = { node: -1, layer: "" };
    byId("title").textContent = data.title;
    const sparse = data.layers.filter((layer) => layer.sparse).length;
    byId("subtitle").textContent = data.layers.length
      ? `${countOf(data.layers.length, "layer")}, ${sparse} sparse` : "";
    this.view = new GraphView(this.store, byId("graph"), byId("world"));
    this.viewport = new Viewport(byId("graph"), byId("world"));
    this.map = new MiniMap(byId("map"), this.view, this.viewport);
    this.viewport.onMove(() => this.detail());
    this.stages = new Stages(this);
    this.walk = new Walk(this);
    this.details = new Details(this);
    this.search = new Search(this);
    this.views = new Views(this);
    this.table = this.layerTable();
    this.controls();
    byId("legend").append(...legend(data));
  }

  layerTable() {
    const { layers } = this.store.data;
    const sparse = layers.filter((layer) => layer.sparse).length;
    const count = `${countOf(layers.length, "layer")}, ${sparse} sparse.`;
    byId("layers-count").textContent =
      layers.length ? `${count} Choose one to see it in the graph.` : "";
    const place = byId("layers-table");
    if (!layers.length) {
      place.replaceChildren(el("p", { class: "empty" }, "There is no report about any layer."));
      return null;
    }
    const table = layerTable(this.store, (name) => this.selectLayer(name));
    place.replaceChildren(table.element);
    return table;
  }

  controls() {
    const { viewport } = this;
    byId("zoom-in").addEventListener("click", () => viewport.zoom(1.25));
    byId("zoom-out").addEventListener("click", () => viewport.zoom(0.8));
    byId("zoom-whole").addEventListener("click", () => viewport.showWhole());
    byId("zoom-start").addEventListener("click", () => viewport.showStart());
    byId("keys-open").addEventListener("click", () => byId("keys").showModal());
    theme(() => this.map.draw());
    split(byId("splitter"), byId("layers"));
    new ResizeObserver(() => this.map.draw()).observe(byId("view-graph"));
  }

  // Texts that are too small to read are not drawn.
  detail() {
    const { svg } = this.view;
    svg.classList.toggle("far", this.viewport.scale < 0.45);
    svg.classList.toggle("farther", this.viewport.scale < 0.22);
  }

  async showStage(number) {
    const { stages } = this.store.data;
    this.wanted = number;
    const [graph, before] = await Promise.all([
      this.store.graph(number), number > 0 ? this.store.graph(number - 1) : null]);
    if (this.wanted !== number) return;
    const first = this.stage < 0;
    const chosen = this.selected.node >= 0 ? this.graph.nodes[this.selected.node].name : "";
    const anchor = first ? null : this.anchor();
    const hadFocus = byId("world").contains(document.activeElement);
    const changes = graph.changes(before);
    this.stage = number;
    const same = graph === this.graph;
    this.graph = graph;
    this.view.svg.setAttribute("aria-label", `Graph after ${stages[number].name}`);
    this.empty(graph.nodes.length ? "" : "This stage's graph has no nodes.");
    this.view.draw(graph, changes.marks);
    const { width, height } = graph.layout;
    this.viewport.setContent(width || 1, height || 1, graph.layout.x[graph.first] ?? 0);
    this.map.draw();
    if (first) this.viewport.showStart();
    else this.keepPlace(anchor, same);
    const node = graph.byName.get(chosen) ?? -1;
    this.selected = { node, layer: this.selected.layer };
    this.showSelection(false);
    if (node >= 0) this.view.setTabStop(node);
    if (hadFocus && this.view.focused >= 0) this.walk.go(this.view.focused);
    this.search.refresh();
    this.views.fill();
    const said = this.stages.show(number, graph, changes);
    if (!first) announce(said);
  }

  // A node that is seen and where it is seen, so that the next stage can show it there.
  anchor() {
    const { viewport, graph, view } = this;
    const where = (place) => {
      const { x, y } = view.rectangle(place);
      return [x * viewport.scale + viewport.x, y * viewport.scale + viewport.y];
    };
    const seen = ([x, y]) => x > -60 && y > -20 && x < viewport.width && y < viewport.height;
    const all = this.selected.node >= 0 ? [this.selected.node, ...graph.order] : graph.order;
    return all.filter((place) => seen(where(place)))
      .map((place) => ({ name: graph.nodes[place].name, at: where(place) }));
  }

  keepPlace(anchors, same) {
    const { viewport, graph, view } = this;
    if (same) return;
    const kept = anchors.find(({ name }) => graph.byName.has(name));
    if (!kept) {
      viewport.showStart();
      return;
    }
    const { x, y } = view.rectangle(graph.byName.get(kept.name));
    const { scale } = viewport;
    viewport.set(kept.at[0] - x * scale, kept.at[1] - y * scale, scale);
  }

  selectNode(place) {
    const node = this.graph.nodes[place];
    this.selected = { node: place, layer: node.layer };
    this.showSelection(true);
    announce(`${this.view.spoken(node)}. Details shown.`);
  }

  selectLayer(name) {
    this.selected = { node: -1, layer: name };
    this.showSelection(true);
    const places = this.graph ? this.graph.ofLayer(name) : [];
    if (places.length) {
      this.view.setTabStop(places[0]);
      if (this.views.shown === "graph") this.viewport.reveal(this.around(places));
    }
    announce(`Layer ${name}, ${countOf(places.length, "node")} in this stage. Details shown.`);
  }

  // The rectangle around some nodes, or that of the first one if they are far apart.
  around(places) {
    const all = places.map((place) => this.view.rectangle(place));
    const x = Math.min(...all.map((box) => box.x));
    const y = Math.min(...all.map((box) => box.y));
    const width = Math.max(...all.map((box) => box.x + box.width)) - x;
    const height = Math.max(...all.map((box) => box.y + box.height)) - y;
    const { viewport } = this;
    const fits = Math.max(width / viewport.width, height / viewport.height) * viewport.scale < 0.9;
    return fits ? { x, y, width, height } : all[0];
  }

  // Chooses a node and shows it, wherever it is; `focus` goes there too.
  goTo(place, focus = true) {
    this.views.open("graph");
    this.selectNode(place);
    this.view.setTabStop(place);
    if (focus) this.walk.go(place);
    this.viewport.reveal(this.view.rectangle(place));
  }

  clear() {
    if (this.selected.node < 0 && !this.selected.layer) return;
    this.selected = { node: -1, layer: "" };
    this.showSelection(true);
    announce("Nothing chosen");
  }

  backToGraph() {
    this.clear();
    if (this.views.shown === "graph" && this.view.focused >= 0) this.walk.go(this.view.focused);
    else if (this.graph) byId(`tab-${this.views.shown}`).focus();
    else byId("layers").focus();
  }

  showSelection(scroll) {
    const { node, layer } = this.selected;
    if (this.graph) this.view.choose(node, layer);
    this.table?.choose(layer, scroll ? byId("layers-table") : null);
    this.views.choose(node);
    this.details.show();
  }

  empty(text) {
    byId("graph-empty").textContent = text;
    byId("graph-empty").hidden = !text;
    for (const id of ["legend", "graph"]) byId(id).toggleAttribute("hidden", Boolean(text));
    document.querySelector(".zoom").hidden = Boolean(text);
    if (text) this.map.hide(true);
  }

  async start() {
    const { stages } = this.store.data;
    if (stages.length) {
      await this.showStage(stages.length - 1);
      return;
    }
    this.empty("No stage was recorded, so there is no graph to draw.");
    byId("tabs").parentElement.hidden = true;
    byId("stage-note").hidden = true;
    this.details.show();
  }
}

// The button for light and dark. The system's choice holds until it is pressed.
function theme(changed) {
  const button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const update = () => {
    button.setAttribute("aria-pressed", String(dark()));
    changed();
  };
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    update();
  });
  system.addEventListener("change", update);
  button.setAttribute("aria-pressed", String(dark()));
}

// The line between graph and layers: dragged, or moved with arrow keys.
function split(line, below) {
  let part = 30;
  const set = (value) => {
    part = Math.min(70, Math.max(8, value));
    document.body.style.setProperty("--below", `${part}%`);
    line.setAttribute("aria-valuenow", String(Math.round(part)));
  };
  line.setAttribute("aria-valuemin", "8");
  line.setAttribute("aria-valuemax", "70");
  line.addEventListener("pointerdown", (event) => line.setPointerCapture(event.pointerId));
  line.addEventListener("pointermove", (event) => {
    if (!line.hasPointerCapture(event.pointerId)) return;
    set((100 * (below.getBoundingClientRect().bottom - event.clientY)) / innerHeight);
  });
  line.addEventListener("keydown", (event) => {
    const step = { ArrowUp: 4, ArrowDown: -4 }[event.key];
    if (!step) return;
    event.preventDefault();
    set(part + step);
  });
  set(part);
}

performance.mark("dsgc-start");
const page = new Page(JSON.parse(byId("data").textContent));
page.start().then(() => {
  // After the frame in which the graph was painted.
  requestAnimationFrame(() => setTimeout(() => performance.mark("dsgc-drawn")));
}).catch((error) => {
  page.empty(`This page could not be drawn: ${error.message}.`);
  throw error;
});
