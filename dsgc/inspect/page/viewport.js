// Pan and zoom: which part of the graph is seen, and how large.

const SMALLEST = 0.004;
const LARGEST = 3;
const READABLE = 0.8;
const EDGE = 60;

class Viewport {
  constructor(svg, world) {
    this.svg = svg;
    this.world = world;
    this.width = 1;
    this.height = 1;
    this.content = { width: 1, height: 1 };
    this.covered = { right: 0, bottom: 0 };
    this.x = 0;
    this.y = 0;
    this.scale = 1;
    this.moved = [];
    this.pointers = new Map();
    this.frame = 0;
    new ResizeObserver(([entry]) => this.resize(entry.contentRect)).observe(svg);
    svg.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    svg.addEventListener("pointerdown", (event) => this.press(event));
    svg.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) {
      svg.addEventListener(end, (event) => this.release(event));
    }
  }

  // Called after every move, once a frame.
  onMove(listener) {
    this.moved.push(listener);
  }

  resize(rectangle) {
    if (!rectangle.width || !rectangle.height) return;
    const first = this.width === 1;
    const middle = this.width / 2;
    this.width = rectangle.width;
    this.height = rectangle.height;
    if (first) this.showStart();
    else this.set(this.x + rectangle.width / 2 - middle, this.y, this.scale);
  }

  // How much of a side lies under something else, such as the map.
  cover(sides) {
    Object.assign(this.covered, sides);
  }

  setContent(width, height, start) {
    this.content = { width, height, start };
  }

  set(x, y, scale) {
    const { width, height } = this.content;
    this.scale = Math.min(LARGEST, Math.max(SMALLEST, scale));
    const clamp = (value, seen, size) =>
      Math.min(seen - EDGE, Math.max(EDGE - size * this.scale, value));
    this.x = clamp(x, this.width, width);
    this.y = clamp(y, this.height, height);
    if (!this.frame) this.frame = requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = 0;
    this.world.setAttribute("transform", `translate(${this.x} ${this.y}) scale(${this.scale})`);
    for (const listener of this.moved) listener();
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const scale = Math.min(LARGEST, Math.max(SMALLEST, this.scale * factor));
    const grown = scale / this.scale;
    this.set(x - (x - this.x) * grown, y - (y - this.y) * grown, scale);
  }

  showWhole() {
    const { width, height } = this.content;
    const room = this.width - this.covered.right;
    const scale = Math.min(1.2, room / width, this.height / height);
    this.set((room - width * scale) / 2, (this.height - height * scale) / 2, scale);
  }

  // The whole graph if that can be read, or else its beginning.
  showStart() {
    const { width, height, start } = this.content;
    const room = this.width - this.covered.right;
    const whole = Math.min(room / width, this.height / height);
    if (whole >= READABLE) {
      this.showWhole();
      return;
    }
    const scale = Math.min(1, Math.max(READABLE, room / width));
    const x = width * scale <= room ? width / 2 : start;
    this.set(room / 2 - x * scale, 0, scale);
  }

  // Moves as little as needed to see a rectangle of the graph, `smooth`ly where that is welcome.
  reveal(box, smooth = true) {
    const scale = this.scale < 0.5 ? READABLE : this.scale;
    const fit = (start, size, offset, from, to) => {
      const low = offset + start * scale;
      if (size * scale > to - from) return (from + to) / 2 - (start + size / 2) * scale;
      if (low < from) return from - start * scale;
      return low + size * scale > to ? to - (start + size) * scale : offset;
    };
    const [right, bottom] = [this.width - this.covered.right, this.height - this.covered.bottom];
    const margin = Math.min(48, right / 8, bottom / 8);
    let [x, y] = [this.x, this.y];
    if (scale !== this.scale) {
      x = right / 2 - (box.x + box.width / 2) * scale;
      y = bottom / 2 - (box.y + box.height / 2) * scale;
    }
    this.glide(fit(box.x, box.width, x, margin, right - margin),
      fit(box.y, box.height, y, margin, bottom - margin), scale, smooth);
  }

  glide(x, y, scale, smooth) {
    const from = [this.x, this.y, this.scale];
    cancelAnimationFrame(this.gliding);
    if (!smooth || lessMotion.matches) {
      this.set(x, y, scale);
      return;
    }
    const start = performance.now();
    const step = (now) => {
      const part = Math.min(1, Math.max(0, (now - start) / 180));
      const eased = 1 - (1 - part) ** 3;
      const [a, b, c] = [x, y, scale].map((goal, i) => from[i] + (goal - from[i]) * eased);
      this.set(a, b, c);
      if (part < 1) this.gliding = requestAnimationFrame(step);
    };
    this.gliding = requestAnimationFrame(step);
  }

  wheel(event) {
    cancelAnimationFrame(this.gliding);
    const unit = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? this.height : 1;
    const [dx, dy] = [event.deltaX * unit, event.deltaY * unit];
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      this.zoom(Math.exp(-dy * 0.004), event.offsetX, event.offsetY);
      return;
    }
    const before = [this.x, this.y];
    if (event.shiftKey && !dx) this.set(this.x - dy, this.y, this.scale);
    else this.set(this.x - dx, this.y - dy, this.scale);
    // At the graph's end the page itself may scroll on.
    if (this.x !== before[0] || this.y !== before[1]) event.preventDefault();
  }

  press(event) {
    if (event.button !== 0) return;
    cancelAnimationFrame(this.gliding);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    this.travelled = 0;
  }

  drag(event) {
    const last = this.pointers.get(event.pointerId);
    if (!last) return;
    const now = [event.clientX, event.clientY];
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId);
    this.pointers.set(event.pointerId, now);
    const [dx, dy] = [now[0] - last[0], now[1] - last[1]];
    this.travelled += Math.abs(dx) + Math.abs(dy);
    if (this.travelled > 4 && !this.svg.hasPointerCapture(event.pointerId)) {
      this.svg.setPointerCapture(event.pointerId);
      this.svg.classList.add("dragged");
    }
    if (others.length) {
      const [x, y] = others[0][1];
      const grown = Math.hypot(now[0] - x, now[1] - y) / Math.hypot(last[0] - x, last[1] - y);
      const box = this.svg.getBoundingClientRect();
      this.set(this.x + dx / 2, this.y + dy / 2, this.scale);
      if (Number.isFinite(grown) && grown > 0) {
        this.zoom(grown, (now[0] + x) / 2 - box.left, (now[1] + y) / 2 - box.top);
      }
    } else {
      this.set(this.x + dx, this.y + dy, this.scale);
    }
  }

  release(event) {
    this.pointers.delete(event.pointerId);
    this.svg.classList.remove("dragged");
  }

  // Whether the press that just ended moved the graph, and so was no click.
  wasDragged() {
    return this.travelled > 4;
  }
}
