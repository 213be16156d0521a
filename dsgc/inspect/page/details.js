// The panel that tells about the chosen node or layer, or about the model if nothing is chosen.

class Details {
  constructor(page) {
    this.page = page;
    this.panel = byId("details");
    this.panel.addEventListener("keydown", (event) => {
      if (event.key === "Escape") page.backToGraph();
    });
      }

  // Moves the focus to the panel's heading.
  enter() {
    this.panel.querySelector("h2")?.focus();
  }

  show() {
    const { node, layer } = this.page.selected;
    const { graph, store } = this.page;
    this.panel.classList.toggle("open", node >= 0 || layer !== "");
    this.panel.scrollTop = 0;
    if (node >= 0) this.panel.replaceChildren(...this.ofNode(graph.nodes[node], node));
    else if (layer) this.panel.replaceChildren(...this.ofLayer(layer));
    else this.panel.replaceChildren(...this.overview());
    const known = store.layerByName.get(layer);
    if (known) this.panel.append(...this.firings(known), ...this.kernels(known));
    // On narrow screens the panel lies over the lower part of the page.
    const over = getComputedStyle(this.panel).position === "fixed"
      ? byId("view-graph").getBoundingClientRect().bottom - this.panel.getBoundingClientRect().top
      : 0;
    const most = this.page.viewport.height - 80;
    this.page.viewport.cover({ bottom: Math.min(Math.max(0, over), most) });
  }

  overview() {
    const { facts, stages, layers } = this.page.store.data;
    const sparse = layers.filter((layer) => layer.sparse).length;
    const counted = [
      ["Layers", layers.length ? `${layers.length}, of which ${sparse} sparse` : "none recorded"],
      ["Stages", stages.length ? String(stages.length) : "none recorded"],
    ];
    return [
      el("header", {}, el("h2", { tabindex: -1 }, "This model")),
      this.list([...facts, ...counted]),
      stages.length ? el("section", { class: "key" }, el("h3", {}, "Legend"),
        ...legend(this.page.store.data)) : null,
      el("p", { class: "hint" }, "Choose a node of the graph or a row of the table of layers to " +
        "see what it computes, how often its blocks fire, and the kernels it calls."),
    ].filter(Boolean);
  }

  head(kicker, title, name, colour) {
    return el("header", { class: colour },
      el("p", { class: "kicker" }, kicker), el("h2", { tabindex: -1 }, title),
      name ? el("p", { class: "full-name" }, name) : null,
      el("button", {
        type: "button", class: "icon close", "aria-label": "Close the details",
        click: () => this.page.backToGraph(),
      }, svgEl("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" },
        svgEl("path", { d: "M4 4l8 8M12 4l-8 8" }))));
  }

  ofNode(node, place) {
    const { store, graph } = this.page;
    const value = node.packed ? "packed" : node.shape === null ? "no tensor" : "dense";
    const facts = [
      ["Shape", shapeText(node)], ["Dtype", node.dtype], ["Value", value],
      ["Selection of", node.group], ["Source", node.where], ...node.facts,
    ];
    const parts = [
      this.head(KINDS[node.kind], node.label, node.name, store.colour(node.group)),
      this.list(facts),
      this.edges("Reads", graph.reads[place], "It reads nothing."),
      this.edges("Read by", graph.feeds[place], "Nothing reads it."),
    ];
    const layer = store.layerByName.get(node.layer);
    if (layer) {
      parts.push(el("section", {},
        el("h3", {}, "Layer ", el("button", {
          type: "button", class: "link", click: () => this.page.selectLayer(layer.name),
        }, layer.name)), this.row(layer)));
    } else {
      const why = node.layer ? `There is no report about its layer, ${node.layer}.`
        : "It belongs to no layer of the model.";
      parts.push(el("p", { class: "hint" }, why));
    }
    return parts;
  }

  ofLayer(name) {
    const { graph, store } = this.page;
    const layer = store.layerByName.get(name);
    const places = graph ? graph.ofLayer(name) : [];
    const colour = store.colours.has(name) ? store.colour(name) : "";
    return [
      this.head(layer?.sparse ? "sparse layer" : "layer", name, "", colour),
      layer ? this.row(layer) : el("p", { class: "hint" }, "There is no report about this layer."),
      this.edges("Nodes in this stage", places.map((node) => ({ node, style: "" })),
        "It has no node in this stage."),
    ];
  }

  list(facts) {
    return el("dl", { class: "facts" }, ...facts.filter(([, value]) => value !== "").map(
      ([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  }

  row(layer) {
    return layer.row.length ? this.list([["Kind", layer.sparse ? "sparse" : "dense"], ...layer.row])
      : el("p", { class: "hint" }, "The report says nothing about this layer.");
  }

  edges(title, edges, none) {
    const { graph } = this.page;
    const items = edges.map(({ node, style }) => {
      const { name, label } = graph.nodes[node];
      return el("li", {},
        el("button", { type: "button", class: "link", click: () => this.page.goTo(node) }, name),
        el("span", { class: "what" }, style && style !== "dense" ? `${label}, ${style}` : label));
    });
    return el("section", {}, el("h3", {}, title),
      items.length ? el("ul", { class: "edges" }, ...items) : el("p", { class: "hint" }, none));
  }

  firings(layer) {
    const place = el("div", { class: "firings" });
    const section = el("section", {}, el("h3", {}, "How often its blocks fire"), place);
    if (!layer.firings.length) {
      const why = layer.sparse ? "No run was recorded, so there are no pictures."
        : "A dense layer computes all of them.";
      place.append(el("p", { class: "hint" }, why));
    }
    for (const firing of layer.firings) {
      const slot = el("div");
      place.append(slot);
      this.page.store.open(firing.values).then((values) => {
        const available = Math.max(200, Math.min(420, this.panel.clientWidth - 40));
        slot.replaceWith(new HeatMap(firing, values, available).element);
      });
    }
    return [section];
  }

  kernels(layer) {
    return [el("section", {}, el("h3", {}, "Kernels"), layer.kernels.length
      ? sourcesOf(this.page.store, layer)
      : el("p", { class: "hint" }, "It calls no generated kernel."))];
  }
}
