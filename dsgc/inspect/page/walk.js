// Going from node to node with keys, mouse and touch.

class Walk {
  constructor(page) {
    this.page = page;
    this.view = page.view;
    this.siblings = [];
    const { svg } = this.view;
    svg.addEventListener("keydown", (event) => this.key(event));
    svg.addEventListener("click", (event) => this.click(event));
    svg.addEventListener("focusin", (event) => this.entered(event));
    svg.addEventListener("pointerover", (event) => this.over(event));
    svg.addEventListener("pointerleave", () => this.hideTip());
    this.tip = byId("tip");
    page.viewport.onMove(() => this.hideTip());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.hideTip();
    });
  }

  at(event) {
    const box = event.target.closest?.(".node");
    return box ? Number(box.dataset.place) : -1;
  }

  click(event) {
    if (this.page.viewport.wasDragged() && event.detail > 0) return;
    const place = this.at(event);
    if (place >= 0) {
      this.view.setTabStop(place);
      this.siblings = [];
      this.page.selectNode(place);
    } else {
      this.page.clear();
    }
  }

  entered(event) {
    const place = this.at(event);
    if (place < 0 || !event.target.matches(":focus-visible")) return;
    this.page.viewport.reveal(this.view.rectangle(place));
  }

  go(place) {
    this.view.setTabStop(place);
    this.view.boxes[place].focus({ preventScroll: true });
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const action = {
      ArrowDown: () => this.along("feeds"), ArrowUp: () => this.along("reads"),
      ArrowRight: () => this.beside(1), ArrowLeft: () => this.beside(-1),
      Home: () => this.end(this.view.graph.first),
      End: () => this.end(this.view.graph.order.at(-1)),
      Enter: () => this.show(event, true), " ": () => this.show(event, false),
      Escape: () => this.page.clear(),
      "+": () => this.page.viewport.zoom(1.25), "=": () => this.page.viewport.zoom(1.25),
      "-": () => this.page.viewport.zoom(0.8), 0: () => this.page.viewport.showWhole(),
      "[": () => this.page.stages.step(-1), "]": () => this.page.stages.step(1),
      "/": () => byId("search").focus(),
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  show(event, enter) {
    const place = this.at(event);
    if (place < 0) return;
    this.page.selectNode(place);
    if (enter) this.page.details.enter();
  }

  end(place) {
    this.siblings = [];
    if (place !== undefined) this.go(place);
  }

  // Along an edge: `feeds` goes down, `reads` goes up. Values come before selections.
  along(direction) {
    const { graph, focused } = this.view;
    if (focused < 0) return;
    const edges = graph[direction][focused];
    if (!edges.length) {
      announce(direction === "feeds" ? "Nothing reads this node" : "This node reads nothing");
      return;
    }
    const x = (place) => graph.layout.x[place];
    const far = (edge) => Math.abs(x(edge.node) - x(focused)) + (edge.style === "selection") * 1e6;
    const best = edges.reduce((a, b) => (far(b) < far(a) ? b : a));
    this.siblings = [...new Set(edges.map((edge) => edge.node))].sort((a, b) => x(a) - x(b));
    this.go(best.node);
  }

  // To the other ends of the edges of the last step, or along the row if there was one only.
  beside(step) {
    const { graph, focused } = this.view;
    if (focused < 0) return;
    const known = this.siblings.length > 1 && this.siblings.includes(focused);
    const line = known ? this.siblings : graph.rows[graph.layout.row[focused]];
    const next = line[line.indexOf(focused) + step];
    if (next === undefined) announce("No further node on this side");
    else this.go(next);
  }

  over(event) {
    const place = this.at(event);
    if (place < 0 || event.pointerType === "touch") {
      this.hideTip();
      return;
    }
    const { nodes, reads, feeds } = this.view.graph;
    const node = nodes[place];
    const line = (name, value) =>
      (value ? el("div", {}, el("dt", {}, name), el("dd", {}, value)) : null);
    const value = [shapeText(node), node.dtype, node.packed ? "packed" : ""];
    this.tip.replaceChildren(
      el("p", {}, el("strong", {}, node.label), ` ${node.name}`),
      el("dl", {},
        line("kind", KINDS[node.kind]),
        line("layer", node.layer),
        line("value", value.filter(Boolean).join(" ")),
        line("selection of", node.group),
        line("edges", `${reads[place].length} in, ${feeds[place].length} out`)));
    this.tip.hidden = false;
    const frame = this.view.svg.getBoundingClientRect();
    const box = event.target.closest(".node").getBoundingClientRect();
    const [width, height] = [this.tip.offsetWidth, this.tip.offsetHeight];
    const left = Math.min(frame.width - width - 8, Math.max(8, box.left - frame.left));
    const below = box.bottom - frame.top + 8;
    const top = below + height < frame.height ? below : box.top - frame.top - height - 8;
    this.tip.style.transform = `translate(${left}px, ${Math.max(8, top)}px)`;
  }

  hideTip() {
    this.tip.hidden = true;
  }
}
