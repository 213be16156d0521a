// The whole graph in a strip beside it, for graphs that are much higher than what is seen.

class MiniMap {
  constructor(place, view, viewport) {
    this.place = place;
    this.canvas = place.querySelector("canvas");
    this.window = place.querySelector(".window");
    this.view = view;
    this.viewport = viewport;
    const go = (event) => {
      const y = (event.clientY - place.getBoundingClientRect().top) / this.scale();
      viewport.set(viewport.x, viewport.height / 2 - y * viewport.scale, viewport.scale);
    };
    place.addEventListener("pointerdown", (event) => {
      place.setPointerCapture(event.pointerId);
      go(event);
    });
    place.addEventListener("pointermove", (event) => {
      if (place.hasPointerCapture(event.pointerId)) go(event);
    });
    viewport.onMove(() => this.follow());
  }

  scale() {
    return this.height / this.viewport.content.height;
  }

  // The map lies over the graph: what is brought into sight comes beside it.
  hide(hidden) {
    this.place.hidden = hidden;
    this.viewport.cover({ right: hidden ? 0 : this.place.offsetWidth + 20 });
  }

  draw() {
    const { graph } = this.view;
    const { content, height } = this.viewport;
    this.hide(!graph || !graph.nodes.length || content.height < 2 * height);
    if (this.place.hidden) return;
    const [width, tall] = [this.place.clientWidth, this.place.clientHeight];
    const dense = devicePixelRatio || 1;
    this.height = tall;
    this.canvas.width = width * dense;
    this.canvas.height = tall * dense;
    const context = this.canvas.getContext("2d");
    const style = getComputedStyle(this.place);
    const colours = new Map();
    const colour = (name) => {
      if (!colours.has(name)) colours.set(name, resolved(style.getPropertyValue(name)));
      return colours.get(name);
    };
    const resolved = (value) => {
      this.place.style.color = value;
      return getComputedStyle(this.place).color;
    };
    context.scale(dense, dense);
    const [sx, sy] = [width / content.width, tall / content.height];
    const { layout, nodes } = graph;
    nodes.forEach((node, place) => {
      const group = this.view.store.colour(node.group);
      context.fillStyle = colour(group ? `--${group}` : "--wire");
      context.globalAlpha = node.kind === "parameter" ? 0.35 : group ? 1 : 0.7;
      const w = layout.widths[place];
      context.fillRect((layout.x[place] - w / 2) * sx, layout.tops[layout.row[place]] * sy,
        Math.max(2, w * sx), Math.max(1, this.view.height * sy));
    });
    this.follow();
  }

  follow() {
    if (this.place.hidden) return;
    const { viewport } = this;
    const s = this.scale() / viewport.scale;
    const top = Math.max(0, -viewport.y * s);
    const bottom = Math.min(this.height, (viewport.height - viewport.y) * s);
    this.window.style.transform = `translateY(${top}px)`;
    this.window.style.height = `${Math.max(6, bottom - top)}px`;
  }
}
