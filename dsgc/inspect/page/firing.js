// Heat maps of how often blocks fire.

// From rare to often: dark blue over teal to yellow, even steps of lightness.
const SCALE = [[38, 24, 84], [44, 62, 124], [36, 104, 142], [32, 144, 140], [74, 182, 118],
  [160, 214, 74], [250, 230, 60]];

const LABEL = 12;

function colourAt(part) {
  const place = Math.min(0.9999, Math.max(0, part)) * (SCALE.length - 1);
  const low = Math.floor(place);
  return SCALE[low].map((value, i) =>
    Math.round(value + (SCALE[low + 1][i] - value) * (place - low)));
}

function percent(value) {
  const digits = value > 0 && value < 0.1 ? 1 : 0;
  return value === null ? "not known" : `${(100 * value).toFixed(digits)} %`;
}

// The length of the longest label as it is shown.
function longestName(count, name) {
  let longest = 0;
  for (let i = 0; i < count; i += 1) longest = Math.max(longest, name(i).length);
  return Math.min(longest, LABEL);
}

class HeatMap {
  constructor(firing, values, available) {
    this.firing = firing;
    this.values = values;
    this.width = firing.width;
    this.height = this.width ? values.length / this.width : 0;
    const known = values.filter((value) => value !== null);
    const top = known.reduce((a, b) => Math.max(a, b), 0);
    this.top = [0.05, 0.1, 0.2, 0.25, 0.5, 0.75].find((step) => top <= step) ?? 1;
    this.known = known;
    this.at = null;
    this.element = known.length ? this.build(available) : this.nothing();
  }

  rowName(row) {
    return this.firing.rows[row] ?? String(row);
  }

  columnName(column) {
    return this.firing.columns[column] ?? String(column);
  }

  nothing() {
    return el("figure", { class: "firing" }, el("figcaption", {}, this.firing.title),
      el("p", { class: "empty" }, "Nothing was recorded here."));
  }

  summary() {
    const { known, width, height, firing } = this;
    const mean = known.reduce((a, b) => a + b, 0) / known.length;
    const extreme = (better) => {
      const value = known.reduce((a, b) => (better(b, a) ? b : a));
      return `${percent(value)} at ${this.where(this.values.indexOf(value))}`;
    };
    return `${firing.title}: ${height} × ${width} values, ${percent(mean)} on average, ` +
      `least ${extreme((a, b) => a < b)}, most ${extreme((a, b) => a > b)}.`;
  }

  where(place) {
    const { rowAxis, columnAxis } = this.firing;
    return `${rowAxis || "row"} ${this.rowName(Math.floor(place / this.width))}, ` +
      `${columnAxis || "column"} ${this.columnName(place % this.width)}`;
  }

  build(available) {
    const { firing, width, height } = this;
    const longest = longestName(height, (row) => this.rowName(row));
    const labels = 10 + 6.6 * longest + (firing.rowAxis ? 18 : 0);
    const room = available - labels;
    const square = !firing.rows.length || !firing.columns.length;
    const across = Math.max(0.5, Math.min(24, room / width));
    const tall = square ? Math.min(across, 320 / height)
      : Math.max(Math.min(4, 320 / height), Math.min(20, 320 / height, 20));
    this.cell = [square ? tall : across, tall];
    const [w, h] = [Math.max(1, this.cell[0] * width), Math.max(1, tall * height)];
    this.canvas = el("canvas", {
      role: "img", tabindex: 0, "aria-label": this.summary(),
      pointermove: (event) => this.point(event), pointerleave: () => this.show(null),
      keydown: (event) => this.key(event), blur: () => this.show(null),
    });
    const dense = devicePixelRatio || 1;
    this.canvas.width = Math.round(w * dense);
    this.canvas.height = Math.round(h * dense);
    this.canvas.style.width = `${w}px`;
    this.canvas.style.height = `${h}px`;
    this.cursor = el("div", { class: "cursor", hidden: true });
    this.output = el("p", { class: "readout", "aria-live": "polite" }, this.hint());
    this.paint();
    const plot = el("div", { class: "plot" },
      this.axis("rows", height, (row) => this.rowName(row), h),
      el("div", { class: "cells" }, this.canvas, this.cursor),
      this.axis("columns", width, (column) => this.columnName(column), w));
    plot.style.gridTemplateColumns = `${labels}px ${w}px`;
    return el("figure", { class: "firing" }, el("figcaption", {}, firing.title),
      firing.note ? el("p", { class: "note" }, firing.note) : null,
      plot, this.legend(), this.output, this.table());
  }

  hint() {
    return "Point at a cell, or use arrow keys, to read its value.";
  }

  // Labels along a side: as many as fit, the first and the last among them.
  axis(side, count, name, length) {
    const down = side === "rows";
    const { rowAxis, columnAxis } = this.firing;
    const room = down ? 15 : Math.max(26, 7 * longestName(count, name) + 8);
    const most = Math.max(2, Math.floor(length / room));
    const step = Math.ceil((count - 1) / Math.max(1, Math.min(count, most) - 1)) || 1;
    const labels = el("div", { class: `axis ${side}`, "aria-hidden": "true" });
    for (let i = 0; i < count; i += step) {
      const label = el("span", {}, cut(name(i), LABEL));
      label.style[down ? "top" : "left"] = `${((i + 0.5) / count) * 100}%`;
      labels.append(label);
    }
    const title = down ? rowAxis : columnAxis;
    if (title) labels.append(el("em", {}, title));
    return labels;
  }

  paint() {
    const { width, height, values, top } = this;
    const small = el("canvas", { width, height });
    const context = small.getContext("2d");
    const image = context.createImageData(width, height);
    values.forEach((value, i) => {
      const colour = value === null ? [128, 128, 128, 90] : [...colourAt(value / top), 255];
      image.data.set(colour, 4 * i);
    });
    context.putImageData(image, 0, 0);
    const target = this.canvas.getContext("2d");
    target.imageSmoothingEnabled = false;
    target.drawImage(small, 0, 0, this.canvas.width, this.canvas.height);
  }

  legend() {
    const bar = el("canvas", { width: 128, height: 1, "aria-hidden": "true" });
    const context = bar.getContext("2d");
    const image = context.createImageData(128, 1);
    for (let i = 0; i < 128; i += 1) image.data.set([...colourAt(i / 127), 255], 4 * i);
    context.putImageData(image, 0, 0);
    return el("div", { class: "scale" }, el("span", {}, "0 %"), bar,
      el("span", {}, percent(this.top)), el("span", { class: "what" }, "of cases selected"));
  }

  point(event) {
    const x = Math.floor(event.offsetX / this.cell[0]);
    const y = Math.floor(event.offsetY / this.cell[1]);
    const inside = x >= 0 && y >= 0 && x < this.width && y < this.height;
    this.show(inside ? y * this.width + x : null);
  }

  key(event) {
    const step = {
      ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0],
    }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const now = this.at ?? 0;
    const row = Math.floor(now / this.width) + (this.at === null ? 0 : step[0]);
    const column = (now % this.width) + (this.at === null ? 0 : step[1]);
    if (row < 0 || column < 0 || row >= this.height || column >= this.width) return;
    this.show(row * this.width + column);
  }

  show(place) {
    this.at = place;
    this.cursor.hidden = place === null;
    this.output.textContent = place === null ? this.hint()
      : `${this.where(place)}: ${percent(this.values[place])}`;
    if (place === null) return;
    const [w, h] = this.cell;
    const [x, y] = [(place % this.width) * w, Math.floor(place / this.width) * h];
    Object.assign(this.cursor.style, {
      transform: `translate(${x}px, ${y}px)`, width: `${w}px`, height: `${h}px`,
    });
  }

  table() {
    const details = el("details", { class: "as-table" }, el("summary", {}, "Values as a table"));
    details.addEventListener("toggle", () => {
      if (details.childElementCount > 1) return;
      const name = `${this.firing.title}, values`;
      details.append(
        el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": name },
          this.allValues()));
    });
    return details;
  }

  allValues() {
    const columns = Array.from({ length: this.width }, (_, i) => i);
    const head = columns.map((c) => el("th", { scope: "col" }, this.columnName(c)));
    const body = el("tbody");
    for (let row = 0; row < this.height; row += 1) {
      const cells = columns.map((c) =>
        el("td", { class: "number" }, percent(this.values[row * this.width + c])));
      body.append(el("tr", {}, el("th", { scope: "row" }, this.rowName(row)), ...cells));
    }
    return el("table", {}, el("caption", { class: "unseen" }, this.summary()),
      el("thead", {}, el("tr", {}, el("td"), ...head)), body);
  }
}
